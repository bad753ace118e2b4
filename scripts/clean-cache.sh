#!/usr/bin/env bash
# clean-cache.sh: throws away everything that ./dev downloaded or built into the cache.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

[[ -d $CACHE ]] || exit 0
say "removing $CACHE ($(du -sh "$CACHE" | cut -f1))"
# By name, so that a VMINITD_CACHE that points at something else loses nothing of its own.
rm -rf "$CACHE"/{kernel,tools,containerd,tmp,apt.log,apt.lock} "$CACHE"/{apt,rust,busybox}-*
rmdir --ignore-fail-on-non-empty "$CACHE"

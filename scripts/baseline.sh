#!/usr/bin/env bash
# baseline.sh REV: builds the guest of another revision of this repository, with that revision's own scripts, and prints the directory
# with its initramfs.cpio.zst and vminitd. Once for each revision: it is kept in the cache.
# Never: touches this checkout, its target/ or dist/.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$ROOT"

# build_baseline COMMIT DIR
build_baseline() {
    say "the guest of ${1:0:10}, to compare with (2 minutes; then it is in the cache)"
    mkdir "$2/source"
    git archive "$1" | tar -x -C "$2/source"
    env -u CARGO_TARGET_DIR -u VMINITD_GUEST_PROFILE "$2/source/scripts/build.sh" initramfs >&2
    mv "$2/source/dist/share/vminitd"/*/{vminitd,initramfs.cpio.zst} "$2"
    rm -rf "$2/source"
}

commit=$(git rev-parse --verify --quiet "${1:?}^{commit}") || die "$1 is no revision of this repository; a shallow clone has not all of them"
path=baseline/$commit-$(system_hash)
in_cache "$path" build_baseline "$commit"
echo "$CACHE/$path"

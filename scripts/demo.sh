#!/usr/bin/env bash
# demo.sh: what `./dev demo` shows: one VM, one container from an OCI bundle, its output, exit status and times.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

bundle=$ROOT/target/demo/bundle
# shellcheck disable=SC2016 # for the shell in the container
"$ROOT/scripts/busybox-bundle.sh" "$bundle" '
    echo "hello from a container on Linux $(uname -r), as pid $$"
    echo "its root filesystem: $(ls / | tr "\n" " ")"
    for i in 1 2 3; do echo "output as it comes, line $i"; sleep 0.3; done
    echo "and this went to stderr" >&2
    exit 0'
say "dist/bin/vminitctl run --timings --bundle ${bundle#"$ROOT/"}"
status=0
"$ROOT/dist/bin/vminitctl" run --timings --bundle "$bundle" || status=$?
say "the container's exit status is $status"
exit "$status"

#!/usr/bin/env bash
# bench-containerd.sh: measures a task in a VM beside one of runc, with the same containerd; what `build` left in dist/ is measured.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$ROOT"

export VMINITD_DIST=$ROOT/dist
export VMINITD_TEST_BIN=$ROOT/target/guest/$MACHINE-unknown-linux-gnu/guest

say "the benchmark's programs"
RUSTFLAGS="-C target-feature=+crt-static" \
    cargo build --locked --profile guest --target "$MACHINE-unknown-linux-gnu" --target-dir target/guest -p test-guest
cargo build --locked --release -p qemu-tests --bin bench-containerd
temp=
temp_dir temp bench-containerd
scripts/containerd.sh >"$temp/containerd"
export VMINITD_CONTAINERD=$temp/containerd
load=$(cut -d ' ' -f 1 /proc/loadavg)
[[ ${load%.*} -eq 0 ]] || say "this machine is not idle (load $load): trust ratios more than times, and measure again on a quiet one"
target/release/bench-containerd

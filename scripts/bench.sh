#!/usr/bin/env bash
# bench.sh [--json FILE] [FLAG...]: measures what `build` left in dist/ against the yardsticks, and keeps the record.
# `--only baseline` boots this build and an older one in turns: VMINITD_BENCH_BASELINE names its revision, by default the one before
# disks (issue 5) began; d83726c47a is the one before the supervisor (issue 6).
# Promises: a record is never overwritten; without a crun to measure against the rest is measured all the same, and it is said.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$ROOT"

export VMINITD_DIST=$ROOT/dist
export VMINITD_TEST_BIN=$ROOT/target/guest/$MACHINE-unknown-linux-gnu/guest

# A file name's worth of the processor's name: `AMD EPYC 7B13` becomes `amd-epyc-7b13`.
cpu() { sed -nE 's/^model name\s*: //p;T;q' /proc/cpuinfo | tr '[:upper:]' '[:lower:]' | tr -cs 'a-z0-9\n' '-' | sed 's/^-//;s/-$//'; }

# commit, and whether the tree is it
commit() {
    local hash
    hash=$(git rev-parse --short=10 HEAD)
    [[ -z $(git status --porcelain --untracked-files=no) ]] && echo "$hash" || echo "$hash-dirty"
}

record() {
    local stem path number=1
    stem=qemu-tests/results/$(date +%F)-$(cpu)-$(commit)
    path=$stem.json
    while [[ -e $path ]]; do
        number=$((number + 1))
        path=$stem-$number.json
    done
    mkdir -p qemu-tests/results
    echo "$path"
}

say "the benchmark's programs"
RUSTFLAGS="-C target-feature=+crt-static" \
    cargo build --locked --profile guest --target "$MACHINE-unknown-linux-gnu" --target-dir target/guest -p test-guest
cargo build --locked --release -p qemu-tests --bin bench
crun=$(scripts/crun.sh)
# The last revision without disks, see above.
revision=${VMINITD_BENCH_BASELINE:-e9f3868d59f14d24578993f2695369356dbb2934}
baseline=()
if [[ " $* " != *" --only "* || " $* " == *" --only baseline "* ]]; then
    if directory=$(scripts/baseline.sh "$revision"); then
        baseline=(--baseline "$directory" --revision "$(git rev-parse --short=10 "$revision")")
    else
        say "there is no $revision to compare with: its figures are left out"
    fi
fi
record=$(record)
load=$(cut -d ' ' -f 1 /proc/loadavg)
[[ ${load%.*} -eq 0 ]] || say "this machine is not idle (load $load): trust ratios more than times, and measure again on a quiet one"
say "measuring (10 minutes under emulation)"
target/release/bench ${crun:+--crun "$crun"} "${baseline[@]}" --record "$record" "$@"
say "record: $record"

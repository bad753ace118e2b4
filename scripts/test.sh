#!/usr/bin/env bash
# test.sh [--soak] [FILTER...]: runs all tests, unit and VM, with what `build` left in dist/, and ends with the line
#   N passed, N failed
# over all suites, alone, for whoever counts. Tests whose names begin with `soak_` are `#[ignore]`d and run only with --soak.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$ROOT"

export VMINITD_DIST=$ROOT/dist
arguments=()
if [[ ${1:-} == --soak ]]; then
    shift
    arguments=(--ignored soak_)
fi

guest_programs() {
    say "programs that misbehave inside test VMs"
    # The same flags and place as the guest's binary: scripts/build.sh says why.
    RUSTFLAGS="-C target-feature=+crt-static" \
        cargo build --locked --profile guest --target "$MACHINE-unknown-linux-gnu" --target-dir target/guest -p test-guest
    export VMINITD_TEST_GUEST=$ROOT/target/guest/$MACHINE-unknown-linux-gnu/guest
    export VMINITD_TEST_BIN=$VMINITD_TEST_GUEST
}

# Shows what cargo says as it comes, and adds up what each suite reports.
tally() {
    awk '
        { print; fflush() }
        /^test result: / { for (i = 2; i <= NF; i++) { if ($i == "passed;") passed += $(i - 1); if ($i == "failed;") failed += $(i - 1) } }
        END { print passed + 0, failed + 0 > counts }' counts="$1"
}

guest_programs
temp=
temp_dir temp test
scripts/containerd.sh >"$temp/containerd"
export VMINITD_CONTAINERD=$temp/containerd
say "tests (compiling them takes 2 minutes when everything is new)"
status=0
cargo test --locked --workspace --no-run || status=$?
((status)) || CARGO_TERM_QUIET=false cargo test --locked --workspace --no-fail-fast -- "${arguments[@]}" "$@" 2>&1 | tally "$temp/counts" || status=$?
passed=0 failed=0
[[ ! -s $temp/counts ]] || read -r passed failed <"$temp/counts"
# A suite that does not compile, or dies, reports no number.
((status == 0 || failed > 0)) || failed=1
echo "$passed passed, $failed failed"
exit "$status"

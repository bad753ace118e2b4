#!/usr/bin/env bash
# fuzz.sh [--seconds N] [TARGET...]: runs each fuzz target (all of fuzz/targets/ when none is named) for N seconds, 60 unless said
# otherwise, beginning with fuzz/seeds/<target>/ and what earlier runs found (target/fuzz/corpus/<target>/).
# An input that breaks a target is left in target/fuzz/found/<target>/, shown, and the next target has its turn.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$ROOT"

MOST_BYTES=65536 # of an input: longer ones find nothing new and run slower

seconds=60
if [[ ${1:-} == --seconds ]]; then
    seconds=$2
    shift 2
fi

targets=("$@")
if ((${#targets[@]} == 0)); then
    for file in fuzz/targets/*.rs; do
        file=${file##*/}
        targets+=("${file%.rs}")
    done
fi
bins=()
for target in "${targets[@]}"; do
    [[ -e fuzz/targets/$target.rs ]] || die "there is no fuzz target $target; there are: $(cd fuzz/targets && echo *.rs)"
    [[ -n $(ls "fuzz/seeds/$target" 2>/dev/null) ]] || die "fuzz/seeds/$target is empty: a target begins with inputs that are right"
    bins+=(--bin "$target")
done

# What makes libFuzzer see which way an input takes, as LLVM's own documentation has it. These flags are stable ones, so that no
# nightly compiler is needed; the address sanitizer, which wants one, would find nothing in code without `unsafe`.
COVERAGE="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters
    -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing"

say "fuzz targets (2 minutes when everything is new)"
# With a target named, these flags are not for build scripts and macros, which have no runtime to report to.
RUSTFLAGS=$COVERAGE cargo build --locked --release --manifest-path fuzz/Cargo.toml --target-dir target/fuzz \
    --target "$MACHINE-unknown-linux-gnu" "${bins[@]}"

failed=()
for target in "${targets[@]}"; do
    corpus=target/fuzz/corpus/$target found=target/fuzz/found/$target
    mkdir -p "$corpus" "$found"
    say "fuzzing $target for $seconds s"
    log=target/fuzz/$target.log
    status=0
    "target/fuzz/$MACHINE-unknown-linux-gnu/release/$target" -max_total_time="$seconds" -max_len="$MOST_BYTES" -timeout=20 \
        -rss_limit_mb=2048 -print_final_stats=1 -artifact_prefix="$found/" "$corpus" "fuzz/seeds/$target" >"$log" 2>&1 || status=$?
    if ((status != 0)); then
        tail -n 40 "$log" >&2
        failed+=("$target")
    else
        say "$target: $(awk '/number_of_executed_units/ { print $2 }' "$log") inputs, $(find "$corpus" -type f | wc -l) that differ"
    fi
done
((${#failed[@]} == 0)) || die "broken by an input: ${failed[*]} (the inputs are in target/fuzz/found/)"

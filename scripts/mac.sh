#!/usr/bin/env bash
# mac.sh [--lint] [--link]: what can be proved of the programs for macOS (arm64); without a flag all of it.
#   --lint   clippy, warnings denied, over host-shim and protocol
#   --link   links the three programs and checks their libraries, classes and selectors (mac-check); 2 minutes when everything is new
# On Linux with a stub SDK (scripts/mac-sdk.sh), on a Mac with its own. Neither makes what users get: that is `./dev build` on a Mac.
# What cannot be had here is said, with a line `1 skipped`, and ends with 77.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$ROOT"

NOT_HERE=77
TARGET=aarch64-apple-darwin
PROGRAMS=(vminitctl vminit-vmm containerd-shim-vminitd-v1)
# Beside what is built for this machine: neither throws the other away.
OUT=$ROOT/target/mac
# The oldest macOS that the programs run on.
OLDEST=13.0

not_here() {
    say "SKIPPED: programs for macOS cannot be $1 here: $2"
    echo "1 skipped"
    exit "$NOT_HERE"
}

# find_std WHAT
find_std() {
    [[ ! -e $(rustc --print sysroot)/lib/rustlib/$TARGET/lib ]] || return 0
    command -v rustup >/dev/null || not_here "$1" "there is no rustup to bring Rust's standard library for $TARGET"
    say "adding $TARGET to your Rust (10 s)"
    mkdir -p "$CACHE"
    timeout 300 rustup target add "$TARGET" >"$CACHE/rustup.log" 2>&1 && return
    tail -n 3 "$CACHE/rustup.log" >&2
    not_here "$1" "rustup cannot bring the standard library for $TARGET"
}

lint() {
    find_std linted
    # What is C in the tests' own dependencies (zstd) is not compiled where nothing compiles it for a Mac: a checker needs none of it.
    [[ $(uname) == Darwin ]] || export CC_aarch64_apple_darwin=true AR_aarch64_apple_darwin=true
    cargo clippy --locked --target "$TARGET" --target-dir "$OUT" -p host-shim -p vminitd-protocol --all-targets -- -D warnings
    # The VM tests run on a Mac too (docs/macos.md).
    cargo check --locked --target "$TARGET" --target-dir "$OUT" -p qemu-tests --lib --test vm
}

link() {
    local temp status=0 program paths=()
    find_std linked
    if [[ $(uname) == Linux ]]; then
        temp_dir temp sdk
        (scripts/mac-sdk.sh "$temp") || status=$?
        ((status != NOT_HERE)) || not_here linked "there is no list of the symbols of macOS' C library"
        ((status == 0)) || exit "$status"
    fi
    # rustc's own lld; it is told by its target to link as Apple's does.
    local environment=("MACOSX_DEPLOYMENT_TARGET=$OLDEST" CARGO_PROFILE_DEV_DEBUG=0)
    [[ -z ${temp:-} ]] || environment+=("SDKROOT=$temp" CARGO_TARGET_AARCH64_APPLE_DARWIN_LINKER=rust-lld)
    # With the names as sections of the program, to be read below. Unoptimised: what is linked does not depend on that.
    say "linking ${PROGRAMS[*]} for $TARGET"
    env "${environment[@]}" cargo build --locked --target "$TARGET" --target-dir "$OUT" -p host-shim --bins --features mac-names
    for program in "${PROGRAMS[@]}"; do
        [[ $program == vminit-vmm ]] || paths+=("$OUT/$TARGET/debug/$program")
    done
    cargo run --quiet --locked -p mac-check -- --names mac-check/names.txt \
        --sources host-shim/src/bin/vminit-vmm/vz --vmm "$OUT/$TARGET/debug/vminit-vmm" "${paths[@]}"
}

(($#)) || set -- --lint --link
for part in "$@"; do
    case $part in
    --lint) lint ;;
    --link) link ;;
    *) die "mac.sh: $part is neither --lint nor --link" ;;
    esac
done

# cross.sh: building the guest of an architecture that need not be this machine's; sourced, never run.
# Owns: which target, cargo, linker and standard library that takes.
# Promises: what cannot be had here is said aloud, and the script ends with $NOT_HERE, by which its caller tells that from a failure.
# shellcheck shell=bash disable=SC2034 # for those who source this
source "$(dirname "${BASH_SOURCE[0]}")/apt-mirror.sh"

NOT_HERE=77

# not_here ARCH REASON
not_here() {
    say "SKIPPED: guests of $1 cannot be made here: $2"
    exit "$NOT_HERE"
}

# rust_target ARCH
rust_target() { echo "${1/#arm64/aarch64}-unknown-linux-gnu"; }

# cross ARCH: sets TARGET, and GUEST_CARGO and GUEST_STD, the command and the arguments that build for it
cross() {
    TARGET=$(rust_target "$1") GUEST_CARGO=(cargo) GUEST_STD=()
    [[ $1 != "$GUEST_ARCH" ]] || return 0
    [[ $1 == arm64 ]] || not_here "$1" "there is no cross compiler for it on $MACHINE"
    (apt_need "guests of arm64" gcc-aarch64-linux-gnu libc6-dev-arm64-cross) || not_here "$1" "its compiler cannot be installed"
    command -v aarch64-linux-gnu-gcc >/dev/null || not_here "$1" "there is no aarch64-linux-gnu-gcc"
    export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
    std_by_rustup || std_from_source || not_here "$1" "Rust's standard library for it cannot be had"
}

# VMINITD_STD=source tries the other way where this one works.
std_by_rustup() {
    [[ ${VMINITD_STD:-} != source ]] || return 1
    [[ ! -e $(rustc --print sysroot)/lib/rustlib/$TARGET/lib ]] || return 0
    command -v rustup >/dev/null || return 1
    say "adding $TARGET to your Rust (10 s)"
    mkdir -p "$CACHE"
    timeout 300 rustup target add "$TARGET" >"$CACHE/rustup.log" 2>&1 || {
        tail -n 3 "$CACHE/rustup.log" >&2
        return 1
    }
}

# Debian sid's source of the standard library, compiled by a nightly of the same version; that of another does not compile. rustup is told
# not to bring a nightly that its owner has not.
std_from_source() {
    local nightly library
    nightly=$(RUSTUP_AUTO_INSTALL=0 rustc +nightly --version 2>/dev/null | sed -nE 's/^rustc ([0-9]+\.[0-9]+)\..*/\1/p')
    [[ -n $nightly ]] || {
        say "there is no nightly Rust here that could compile the standard library"
        return 1
    }
    (in_cache "rust-src-$nightly" fetch_rust_src "$nightly") || return 1
    library=$(echo "$CACHE/rust-src-$nightly"/usr/src/rustc-*/library)
    export __CARGO_TESTS_ONLY_SRC_ROOT=$library
    GUEST_CARGO=(cargo +nightly) GUEST_STD=(-Z "build-std=std,panic_unwind")
    say "the standard library for $TARGET is compiled from ${library%/library} (3 minutes)"
}

# Both end their subshell when they fail: `||` behind it takes `set -e` away, and in_cache would keep what they have not made.
fetch_rust_src() {
    local wanted=$1 into=$2 found
    say "fetching the source of Rust's standard library from Debian sid into the cache (30 s)"
    debs sid "$(dpkg --print-architecture)" rust-src "$into" || exit 1
    found=$(echo "$into"/usr/src/rustc-*)
    [[ $found == *"/rustc-$wanted."* ]] || {
        say "Debian sid has ${found##*/}, the nightly Rust here is $wanted: they do not match"
        exit 1
    }
}

fetch_busybox() {
    say "fetching busybox for $1 into the cache"
    debs "$(. /etc/os-release && echo "${VERSION_CODENAME:-bookworm}")" "$1" busybox-static "$2" || exit 1
}

# The busybox of another architecture: Debian's package, unpacked into the cache. Prints where it is.
cross_busybox() {
    local path=busybox-$1
    (in_cache "$path" fetch_busybox "$1") || not_here "$1" "its busybox cannot be had"
    find "$CACHE/$path" -name busybox -path '*bin/busybox'
}

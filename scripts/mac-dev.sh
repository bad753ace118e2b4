#!/bin/bash
# mac-dev.sh RECIPE: what `./dev` does on macOS. `build` makes and signs the programs in dist/, `demo` runs a container in
# Virtualization.framework, `test` runs the unit tests and then the basic VM tests there, `lint` clippy.
# For the bash 3.2 and the BSD tools that macOS has: no mapfile, no associative arrays, no namerefs, no printf of times, and none of
# lib.sh, which wants later ones. Needs Xcode's command line tools, rustup's cargo and protoc; no sudo, no QEMU.
# A Linux kernel is not built on a Mac: the guest (share/vminitd/arm64) comes from Linux, as a tar file that VMINITD_GUEST names; the
# workflow .github/workflows/macos.yml makes it, and docs/macos.md says how to by hand.
# Written on Linux and run on no Mac yet.
set -euo pipefail
cd "$(dirname "$0")/.."
ROOT=$PWD
DIST=$ROOT/dist
GUEST=$DIST/share/vminitd/arm64
IDENTITY=${VMINITD_SIGN_IDENTITY:--} # `-`: ad hoc, without a developer account

say() { echo "==> $*" >&2; }
die() {
    echo "error: $*" >&2
    exit 1
}

need() {
    xcode-select -p >/dev/null 2>&1 || die "please run: xcode-select --install"
    [ -x "$HOME/.cargo/bin/cargo" ] && PATH=$HOME/.cargo/bin:$PATH
    command -v cargo >/dev/null || die "there is no cargo; https://rustup.rs brings it, without sudo"
    command -v protoc >/dev/null || die "there is no protoc; brew install protobuf brings it"
    [ "$(uname -m)" = arm64 ] || say "this is no Apple silicon: only what needs no VM will work"
    export MACOSX_DEPLOYMENT_TARGET=13.0
}

# Signed anew after each build: a signature is of the bytes. A new file, since macOS remembers the old one's by its inode.
build() {
    local program
    need
    cargo build --locked --release -p host-shim --bins
    mkdir -p "$DIST/bin" "$DIST/share/vminitd"
    cp macos/vminit-vmm.entitlements "$DIST/share/vminitd/"
    for program in vminitctl vminit-vmm containerd-shim-vminitd-v1; do
        rm -f "$DIST/bin/$program"
        cp "target/release/$program" "$DIST/bin/$program"
    done
    codesign --force --sign "$IDENTITY" "$DIST/bin/vminitctl" "$DIST/bin/containerd-shim-vminitd-v1"
    codesign --force --sign "$IDENTITY" --options runtime --entitlements macos/vminit-vmm.entitlements "$DIST/bin/vminit-vmm"
    codesign --verify --strict "$DIST/bin/vminit-vmm"
}

guest() {
    if [ -n "${VMINITD_GUEST:-}" ]; then
        mkdir -p "$DIST/share/vminitd"
        tar -xzf "$VMINITD_GUEST" -C "$DIST/share/vminitd"
    fi
    [ -e "$GUEST/Image" ] || die "there is no guest in $GUEST: set VMINITD_GUEST to a vminitd-guest-arm64.tar.gz (docs/macos.md)"
}

demo() {
    build
    guest
    local status=0
    # shellcheck disable=SC2016 # for the shell in the container
    "$DIST/bin/vminitctl" run --timings --image "$GUEST/toolbox.erofs" -- \
        sh -c 'echo "hello from a container on Linux $(uname -r)"; echo "and this went to stderr" >&2' || status=$?
    say "the container's exit status is $status"
    exit "$status"
}

# The same test code as on Linux, by names; those that test QEMU or the host's Linux are not among them.
tests() {
    local names="$*" status=0
    build
    guest
    [ -n "$names" ] || names=$(sed -n '/^BASICS=(/,/^)/p' scripts/test.sh | sed '1d;$d')
    cargo test --locked -p host-shim -p vminitd-protocol -p mac-check || status=1
    export VMINITD_DIST=$DIST VMINITD_ARCH=arm64
    export VMINITD_TEST_GUEST=$GUEST/test VMINITD_TEST_BIN=$GUEST/test VMINITD_TEST_BUSYBOX=$GUEST/test/busybox
    # Names are words, so they may be split.
    # shellcheck disable=SC2086
    cargo test --locked -p qemu-tests --test vm -- --test-threads 1 $names || status=1
    exit "$status"
}

case ${1:-} in
build) build ;;
demo) demo ;;
test) shift && tests "$@" ;;
lint | mac) need && cargo clippy --locked -p host-shim -p vminitd-protocol --all-targets -- -D warnings ;;
*)
    sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p;}' "$0"
    exit 2
    ;;
esac

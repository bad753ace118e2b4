#!/usr/bin/env bash
# setup.sh NEED...: installs what a recipe needs, and only what is missing.
# One line per package group here says who wants it; the kernel's own are in kernel-config/build.sh, virtiofsd's in virtiofsd.sh.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

for need in "$@"; do
    case $need in
    # protoc (and the well-known messages) for the bindings
    rust)
        apt_need "our Rust code" gcc libc6-dev pkg-config protobuf-compiler libprotobuf-dev
        apt_need "the guest's root image" erofs-utils
        ;;
    vm) "$ROOT/scripts/qemu.sh" ;;
    busybox) apt_need "the containers' root filesystem" busybox-static ;;
    disks) apt_need "tests that make disk images" cryptsetup-bin e2fsprogs erofs-utils squashfs-tools fdisk ;;
    # Not containerd itself: that, and what runs it, is unpacked beside the system (scripts/containerd.sh).
    containerd) apt_need "hosts of their own for containerd's tests" iproute2 util-linux busybox-static ;;
    fuzz) apt_need "the engine of our fuzz targets" g++ ;;
    lint)
        apt_need "checking our scripts" shellcheck git
        # rustup's minimal profile and some distributions leave these out.
        if ! { cargo fmt --version && cargo clippy --version; } >/dev/null 2>&1; then
            say "adding clippy and rustfmt to your Rust"
            rustup component add clippy rustfmt >&2 || die "please install clippy and rustfmt for $(rustc --version)"
        fi
        ;;
    *) die "setup.sh: nobody knows what $need is" ;;
    esac
done

#!/usr/bin/env bash
# build.sh [--arch ARCH] [guest | initramfs]: leaves in dist/ what a user would install; with `guest` only the guest (kernel, vminitd,
# images), with `initramfs` not even the kernel.
# --arch x86_64|arm64 makes the guest of another architecture than this machine's; where that cannot be, it says so and ends with 77.
# Promises: with nothing changed it changes nothing in dist/ (a file is replaced only by different bytes, and by rename, so that a
# running VM keeps what it has), so a VM never reads half of one; of two builds of one checkout the second waits.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
source "$(dirname "${BASH_SOURCE[0]}")/cross.sh"
cd "$ROOT"

arch=$GUEST_ARCH what=all
while (($#)); do
    case $1 in
    --arch) arch=${2:?--arch wants x86_64 or arm64} && shift ;;
    guest | initramfs) what=$1 ;;
    *) die "build.sh: unknown argument $1" ;;
    esac
    shift
done
[[ $arch == x86_64 || $arch == arm64 ]] || die "--arch: $arch is neither x86_64 nor arm64"

DIST=$ROOT/dist
GUEST=$DIST/share/vminitd/$arch # what the guest is made of
PROFILE=${VMINITD_GUEST_PROFILE:-guest} # `guest-dev` builds in seconds what is large and slow, to try a change

# install_as MODE FROM TO
install_as() {
    cmp -s "$2" "$3" && return
    mkdir -p "${3%/*}"
    local new
    new=$(mktemp "$3.XXXXXX")
    install -m "$1" "$2" "$new"
    mv "$new" "$3"
    echo "    ${3#"$ROOT/"}  $(($(stat -c %s "$3") >> 10)) KiB" >&2
}

# Static, so that the initramfs is one file; a target directory of its own, so that these flags do not make the host's crates build anew.
guest_cargo() {
    RUSTFLAGS="-C target-feature=+crt-static" \
        "${GUEST_CARGO[@]}" rustc --locked "${GUEST_STD[@]}" --profile "$PROFILE" --target "$TARGET" --target-dir target/guest "$@"
}

guest() {
    say "guest binary (2 minutes when everything is new)"
    # At a fixed address: 430 KiB of relocations less, which each of init, agent and launchers would otherwise apply to pages of
    # its own. Given to the binary's crate alone, where everything is generated (lto), so that no other crate is built twice.
    # What a boot and a container's life run comes first, close together: a third of the page faults, and the kernel maps a third of
    # the text around them (scripts/text-order.sh).
    guest_cargo -p vminitd --bin vminitd -- -C relocation-model=static -C link-arg=-Wl,-T,"$ROOT/vminitd/text-order.ld"
    install_as 755 "target/guest/$TARGET/$PROFILE/vminitd" "$GUEST/vminitd"
    # The archive is the same for the same bytes, so it is made anew each time; that takes a moment.
    local images=target/images-$arch
    mkdir -p "$images"
    cargo run --locked --release -p initramfs -- --init "$GUEST/vminitd" --compress zstd -o "$images/initramfs.cpio.zst"
    install_as 644 "$images/initramfs.cpio.zst" "$GUEST/initramfs.cpio.zst"
    # The same on a read-only disk, for `vminitctl run --root-image`.
    cargo run --locked --release -p initramfs -- --init "$GUEST/vminitd" --format erofs -o "$images/root.erofs"
    install_as 644 "$images/root.erofs" "$GUEST/root.erofs"
}

host() {
    say "host programs (2 minutes when everything is new)"
    cargo build --locked --release -p host-shim --bins
    local program
    for program in vminitctl vminit-vmm containerd-shim-vminitd-v1; do
        install_as 755 "target/release/$program" "$DIST/bin/$program"
    done
}

# Tools for `vminitctl debug`: the guest has no shell. Made of a busybox of the guest's kind, as small as its message to a guest wants it.
toolbox() {
    local temp busybox=
    [[ $arch == "$GUEST_ARCH" ]] || busybox=$(cross_busybox "$arch")
    temp_dir temp toolbox
    scripts/busybox-bundle.sh "$temp" true "$busybox"
    mkfs.erofs --quiet -zlz4hc -T0 -U00000000-0000-0000-0000-000000000000 --all-root "$temp/toolbox.erofs" "$temp/rootfs" >/dev/null
    install_as 644 "$temp/toolbox.erofs" "$GUEST/toolbox.erofs"
}

# For shells and man(1), made by vminitctl itself.
pages() {
    local temp page
    temp_dir temp pages
    "$DIST/bin/vminitctl" generate man "$temp"
    for page in "$temp"/*.1; do install_as 644 "$page" "$DIST/share/man/man1/${page##*/}"; done
    "$DIST/bin/vminitctl" generate bash >"$temp/bash"
    install_as 644 "$temp/bash" "$DIST/share/bash-completion/completions/vminitctl"
    "$DIST/bin/vminitctl" generate zsh >"$temp/zsh"
    install_as 644 "$temp/zsh" "$DIST/share/zsh/site-functions/_vminitctl"
    "$DIST/bin/vminitctl" generate fish >"$temp/fish"
    install_as 644 "$temp/fish" "$DIST/share/fish/vendor_completions.d/vminitctl.fish"
}

# Two at once would install what the other is still linking.
mkdir -p target
exec {LOCK}>target/build.lock
flock -n "$LOCK" || {
    say "another build of this checkout is running; waiting for it"
    flock "$LOCK"
}

cross "$arch"
# The kernel first: it takes longest, so what is wrong with it shows before a coffee, not after.
if [[ $what != initramfs ]]; then
    kernel=$(kernel-config/build.sh --arch "$arch")
    for image in vmlinux Image; do
        [[ ! -e $kernel/$image ]] || install_as 644 "$kernel/$image" "$GUEST/$image"
    done
fi
if [[ $what == all ]]; then
    virtiofsd=$(scripts/virtiofsd.sh)
    install_as 755 "$virtiofsd" "$DIST/libexec/vminitd/virtiofsd"
    host
    pages
    toolbox
fi
guest

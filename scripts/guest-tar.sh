#!/usr/bin/env bash
# guest-tar.sh FILE: the arm64 guest as a tar file for a Mac, with the programs of the VM tests and their busybox. Run it on Linux.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
source "$(dirname "${BASH_SOURCE[0]}")/cross.sh"
file=$(realpath "${1:?the tar file to write}")
cd "$ROOT"

scripts/build.sh guest --arch arm64
cross arm64
RUSTFLAGS="-C target-feature=+crt-static" \
    "${GUEST_CARGO[@]}" build --locked "${GUEST_STD[@]}" --profile guest --target "$TARGET" --target-dir target/guest -p test-guest
busybox=$(command -v busybox)
[[ $GUEST_ARCH == arm64 ]] || busybox=$(cross_busybox arm64)
temp=
temp_dir temp guest
mkdir -p "$temp/arm64/test"
cp dist/share/vminitd/arm64/{Image,vminitd,initramfs.cpio.zst,root.erofs} "$temp/arm64/"
find "target/guest/$TARGET/guest" -maxdepth 1 -type f -perm -u+x -exec cp {} "$temp/arm64/test/" \;
cp "$busybox" "$temp/arm64/test/busybox"
scripts/busybox-bundle.sh "$temp/bundle" true "$busybox"
mkfs.erofs --quiet -zlz4hc -T0 --all-root "$temp/arm64/toolbox.erofs" "$temp/bundle/rootfs" >/dev/null
tar -C "$temp" --sort=name --owner=0 --group=0 -czf "$file" arm64

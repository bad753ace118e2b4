#!/usr/bin/env bash
# text-order.sh: makes vminitd/text-order.ld anew, from what a boot and a container's life run.
# To be done when much of that has changed; until then the link is only less tidy. Needs python3, a built dist/ and the test programs.
# Promises: nothing but that file changes.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$ROOT"

TARGET=$MACHINE-unknown-linux-gnu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 711 "$work"

say "vminitd with its symbols"
RUSTFLAGS="-C target-feature=+crt-static" cargo rustc --locked --config 'profile.guest.strip="none"' --profile guest --target "$TARGET" \
    --target-dir target/guest-symbols -p vminitd --bin vminitd -- -C relocation-model=static -C link-arg=-Wl,-Map="$work/map"
elf=target/guest-symbols/$TARGET/guest/vminitd
cp -a dist "$work/dist"
cp "$elf" "$work/vminitd"
strip "$work/vminitd"
cargo run -q --locked --release -p initramfs -- --init "$work/vminitd" --compress zstd -o "$work/dist/share/vminitd/x86_64/initramfs.cpio.zst"

say "a boot and some lives, traced"
qemu=$(command -v qemu-system-x86_64)
mkdir "$work/bin"
cat > "$work/bin/qemu-system-x86_64" <<END
#!/bin/sh
exec $qemu "\$@" -d in_asm -dfilter 0x200000..0x7fffff -D $work/trace
END
chmod +x "$work/bin/qemu-system-x86_64"
: > "$work/trace"
chmod 666 "$work/trace"
export VMINITD_DIST=$work/dist VMINITD_TEST_BIN=$ROOT/target/guest/$TARGET/guest VMINITD_TEST_GUEST=$ROOT/target/guest/$TARGET/guest
PATH=$work/bin:$PATH cargo test -q --locked -p qemu-tests --test vm -- --test-threads 1 exec::exec_is_what_its_process_says

python3 scripts/text-order.py "$work/map" "$elf" "$work/trace" > "$work/order"
install -m 644 "$work/order" vminitd/text-order.ld
# cargo does not know that the link depends on it.
touch vminitd/src/main.rs
say "vminitd/text-order.ld: $(wc -l < vminitd/text-order.ld) lines"

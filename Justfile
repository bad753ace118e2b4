# Recipes; `./dev <recipe>` runs them with what they need installed. `./dev --list` shows the line above each.
# Each is a script or two: what takes more than a line is in scripts/.

set positional-arguments

# Boot a VM, run a container in it, show its output, exit status and how long each phase took
demo: (_setup "rust" "vm" "busybox") _build
    @scripts/demo.sh

# Run every test, unit and VM, or those whose name has FILTER in it; `./dev test --arch arm64` the VM tests on arm64 guests
test *FILTER: (_setup "rust" "vm" "busybox" "disks" "containerd")
    @scripts/test.sh "$@"

# `test` with the tests of disks on both of the guest's media, then what takes too long for every change
test-all: (_setup "rust" "vm" "busybox" "disks" "containerd") _build && kernel-check soak fuzz
    @VMINITD_TEST_MEDIA=all scripts/test.sh

# Feed the parsers of what comes from outside with random input, a minute each; `./dev fuzz --seconds 600 mount_options` one of them
fuzz *FLAGS: (_setup "rust" "fuzz")
    @scripts/fuzz.sh "$@"

# Only the tests that repeat a thing for a long time
soak: (_setup "rust" "vm" "busybox" "disks" "containerd")
    @scripts/test.sh --soak

# Measure boot, a container's life, throughput, memory and sizes; `./dev bench --json FILE` writes the figures for programs
bench *FLAGS: (_setup "rust" "vm" "busybox" "disks") _build
    @scripts/bench.sh "$@"

# Measure a task of containerd in a VM beside one of runc
bench-containerd: (_setup "rust" "vm" "busybox" "containerd") _build
    @scripts/bench-containerd.sh

# Build what a user would install into dist/
build: (_setup "rust" "busybox") _build

# Build the guest alone: kernel, vminitd, initramfs; `./dev guest --arch arm64` that of another architecture
guest *FLAGS: (_setup "rust")
    @scripts/build.sh guest "$@"

# Check, as far as Linux can, the programs for macOS: `--lint` clippy, `--link` their libraries, classes and selectors
mac *FLAGS: (_setup "rust")
    @scripts/mac.sh "$@"

# Build the guest kernel, or find it in the cache; prints its directory
kernel *FLAGS:
    @kernel-config/build.sh "$@"

# Merge the kernel fragments of both architectures and check that every line was honoured
kernel-check:
    @kernel-config/build.sh --check-only
    @kernel-config/build.sh --arch arm64 --check-only

# Build the guest binary and pack it: dist/share/vminitd/<arch>/initramfs.cpio.zst
initramfs: (_setup "rust")
    @scripts/build.sh initramfs

# Format, clippy with warnings denied, licences and sources of dependencies, house rules
lint: (_setup "rust" "lint")
    @scripts/lint.sh

# Format the code
fmt: (_setup "rust" "lint")
    cargo fmt --all

# Throw away what was downloaded and built outside target/ (the kernel takes 10 minutes to come back)
clean-cache:
    @scripts/clean-cache.sh

_setup *NEEDS:
    @scripts/setup.sh "$@"

_build:
    @scripts/build.sh

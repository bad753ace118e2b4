#!/usr/bin/env bash
# build.sh: makes the guest kernel from the fragments beside it and Debian's Linux 6.12 source.
#
#   kernel-config/build.sh                this machine's kernel; about 10 minutes on 2 cores, nothing when it is in the cache
#   kernel-config/build.sh --arch arm64   the arm64 kernel, cross-built where this machine is none
#   kernel-config/build.sh --check-only   only merge the fragments, and check that every line was honoured (20 s)
#
# Prints the directory with the kernel and its `config` on stdout, everything else on stderr. The kernel is what VMMs boot without
# unpacking anything: x86_64's `vmlinux` (stripped ELF, booted through PVH), arm64's `Image`.
# The directory is named after a hash of all that goes in; it appears whole or not at all, and two runs at once build once.
# VMINITD_LINUX_TARBALL names another source (linux-6.12.*.tar.*) where apt has no linux-source-6.12.
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$HERE/../scripts/lib.sh"

work= # where the source is unpacked
EXPECTED_STEPS=2000 # lines of make's short output, only for the progress line
arch=$GUEST_ARCH
check_only=false
while (($#)); do
    case $1 in
    --arch) arch=${2:?--arch wants x86_64 or arm64} && shift ;;
    --check-only) check_only=true ;;
    -h | --help) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0" && exit 0 ;;
    *) die "unknown argument $1; see --help" ;;
    esac
    shift
done
[[ $arch == x86_64 || $arch == arm64 ]] || die "--arch: $arch is neither x86_64 nor arm64"
$check_only || [[ $arch == "$GUEST_ARCH" || $arch == arm64 ]] || die "only --check-only is there for $arch on $MACHINE"
fragments=("$HERE/common.fragment" "$HERE/$arch.fragment")

main() {
    check_reasons
    apt_need "the kernel build" make gcc libc6-dev flex bison bc libelf-dev xz-utils perl
    find_compiler
    find_source
    reproducible
    if $check_only; then
        prepare_tree
        configure
        return
    fi
    # The configuration's own answer depends on the compiler, so the compiler is part of the name.
    local id
    id=$({
        plain_fragments
        declare -f reproducible configure "$compile" # without their comments: wording rebuilds nothing
        echo "$source_id"
        "${prefix}gcc" --version | head -1
        "${prefix}ld" --version | head -1
    } | short_hash)
    in_cache "kernel/$arch-$id" build "$CACHE/kernel/$arch-$id.log"
    echo "$CACHE/kernel/$arch-$id"
}

check_reasons() {
    local bad
    bad=$(grep -nvE '^(#.*|CONFIG_[A-Za-z0-9_]+=("[^"]*"|[^ "]+)  # .+|)$' "${fragments[@]}") || return 0
    die $'these lines are not of the form OPTION=value  # why:\n'"$bad"
}

# Sets what the compiler's programs begin with (`prefix`), whether it makes code for $arch (`can_build`), and the function that builds.
find_compiler() {
    prefix='' can_build=true compile=compile
    [[ $arch != arm64 ]] || compile=compile_arm64
    [[ $arch == arm64 && $GUEST_ARCH != arm64 ]] || return 0
    $check_only || apt_need "the arm64 kernel" gcc-aarch64-linux-gnu
    if command -v aarch64-linux-gnu-gcc >/dev/null; then
        prefix=aarch64-linux-gnu-
    else
        $check_only || die "there is no aarch64-linux-gnu-gcc"
        can_build=false
    fi
    export CROSS_COMPILE=$prefix
}

find_source() {
    if [[ -n ${VMINITD_LINUX_TARBALL:-} ]]; then
        tarball=$VMINITD_LINUX_TARBALL
        source_id=$(sha256sum <"$tarball")
    else
        (apt_need "the kernel's source; 140 MB" linux-source-6.12) ||
            die "Debian 12 has it in bookworm-security; elsewhere set VMINITD_LINUX_TARBALL to a linux-6.12 tarball"
        tarball=/usr/src/linux-source-6.12.tar.xz
        [[ -e $tarball ]] || die "no $tarball; set VMINITD_LINUX_TARBALL to a linux-6.12 tarball"
        source_id=$(dpkg-query -W -f '${Version}' linux-source-6.12)
    fi
}

# Whose machine it was and when does not go into the image.
reproducible() {
    export KBUILD_BUILD_TIMESTAMP='1970-01-01 00:00:00 UTC' KBUILD_BUILD_USER=vminitd KBUILD_BUILD_HOST=vminitd KBUILD_BUILD_VERSION=1
    export ARCH=$arch LC_ALL=C TZ=UTC
}

prepare_tree() {
    temp_dir work kernel
    say "unpacking Linux ($source_id; 10 to 20 s)"
    mkdir "$work/src"
    tar -xf "$tarball" -C "$work/src" --strip-components=1
}

plain_fragments() { sed -nE '/^CONFIG_/s/  # .*//p' "${fragments[@]}"; }

configure() {
    plain_fragments >"$work/fragment"
    (
        cd "$work/src"
        make -s tinyconfig
        scripts/kconfig/merge_config.sh -m -O . .config "$work/fragment"
        make -s olddefconfig
    ) >"$work/configure.log" 2>&1 || {
        tail -n 30 "$work/configure.log" >&2
        die "the kernel could not be configured"
    }
    check_honoured
}

# olddefconfig silently drops what it cannot have: a missing dependency, a renamed option, one that another selects.
check_honoured() {
    local line option wanted got checked=0 skipped=() bad=()
    while IFS= read -r line; do
        [[ $line == CONFIG_* ]] || continue
        option=${line%%=*}
        wanted=${line#*=} && wanted=${wanted%%  \# *}
        got=$(grep -E "^$option=" "$work/src/.config") && got=${got#*=} || got=n
        checked=$((checked + 1))
        [[ $got == "$wanted" ]] && continue
        if [[ $line == *"  # [cc] "* ]] && ! $can_build; then
            skipped+=("$option")
        else
            bad+=("$option: the fragment says $wanted, the kernel's configuration $got")
        fi
    done < <(cat "${fragments[@]}")
    if ((${#skipped[@]})); then
        say "NOT CHECKED for want of aarch64-linux-gnu-gcc: ${skipped[*]}"
    fi
    if ((${#bad[@]})); then
        printf '  %s\n' "${bad[@]}" >&2
        die "${#bad[@]} of $checked fragment lines were not honoured"
    fi
    say "$arch: $((checked - ${#skipped[@]})) of $checked fragment lines checked, all honoured"
}

# build LOG OUT: fills the directory OUT
build() {
    local log=$1 out=$2 kernel
    prepare_tree
    configure
    say "building the $arch kernel (7 to 15 minutes on 2 cores; then it is in the cache)"
    if ! "$compile" 2>&1 | tee "$log" | progress; then
        grep -B2 -A10 -m1 -E 'error:|Error [0-9]' "$log" >&2 || tail -n 30 "$log" >&2
        die "the kernel build failed; all of its output is in $log"
    fi
    if [[ $arch == arm64 ]]; then
        kernel=$out/Image
        cp "$work/src/arch/arm64/boot/Image" "$kernel"
    else
        kernel=$out/vmlinux
        cp "$work/src/vmlinux.stripped" "$kernel"
    fi
    cp "$work/src/.config" "$out/config"
    rm -f "$log"
    say "kernel $(make -s -C "$work/src" kernelrelease) is built, $(($(stat -c %s "$kernel") >> 10)) KiB"
}

compile() {
    make -C "$work/src" -j"$(nproc)" vmlinux
    strip --strip-all -o "$work/src/vmlinux.stripped" "$work/src/vmlinux"
}

compile_arm64() { make -C "$work/src" -j"$(nproc)" Image; }

# One line that is rewritten on a terminal; elsewhere one for each tenth.
progress() {
    local tty=0
    [[ -t 2 ]] && tty=1
    awk -v tty="$tty" -v total="$EXPECTED_STEPS" '
        /^  [A-Z]/ {
            n++
            percent = int(n * 100 / total); if (percent > 99) percent = 99
            if (tty) printf "\r    %4d files, about %d %% ", n, percent > "/dev/stderr"
            else if (percent >= next_line) { printf "    about %d %%\n", percent > "/dev/stderr"; next_line += 10 }
        }
        END { if (tty) print "" > "/dev/stderr" }'
}

main mainmain exit

#!/usr/bin/env bash
# containerd.sh: prints, a line each, `NAME VERSION DIRECTORY` of the containerds that the tests run against, side by side: 1.6, 1.7 and
# 2.x, with the runc of this system's release, the CNI plugins and a mkfs.erofs that containerd's erofs snapshotter can use. Nothing of
# them is installed: Debian's packages are unpacked into the cache, so that a containerd which the machine's owner runs is left alone.
# Promises: what cannot be had (no network, a mirror without that release) is said, and the others are printed all the same.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
source "$(dirname "${BASH_SOURCE[0]}")/apt-mirror.sh"

# Where each comes from. sid moves: whatever 2.x it has by the day of the download is the newest that is tried.
RELEASES=(1.6:bookworm 1.7:trixie 2:sid)
# runc and the plugins come from the oldest, which has the lowest demands on the system's libc; containerd is linked statically enough.
TOOLS=(runc containernetworking-plugins)
# mkfs.erofs makes images of tar files from 1.8 on. It wants a newer libc than this system's, so it comes with its own, and with the
# libraries that it is linked to.
EROFS=(erofs-utils libc6 libdeflate0 liblz4-1 liblzma5 libpcre2-8-0 libselinux1 libuuid1 libxxhash0 libzstd1 zlib1g)

# A directory by the hash of this file: another way of getting it makes it anew.
place() { echo "containerd/$1-$(short_hash <"${BASH_SOURCE[0]}")"; }

fetch() {
    local release=$1
    say "fetching ${*:2:$#-2} of Debian $release into the cache"
    debs "$release" "$(dpkg --print-architecture)" "${@:2}"
}

version_of() { "$1/usr/bin/containerd" --version 2>/dev/null | sed -nE 's/.* v?([0-9]+\.[0-9.]+)[^ ]* .*/\1/p'; }

# fetch_erofs INTO: mkfs.erofs, started by the linker that it came with
fetch_erofs() {
    local into=$1 linker
    fetch trixie "${EROFS[@]}" "$into"
    linker=$(cd "$into" && echo usr/lib*/ld-linux-*.so.*)
    mkdir -p "$into/bin"
    # shellcheck disable=SC2016 # the wrapper's own variables
    printf '#!/bin/sh\nhere=${0%%/bin/*}\nexec "$here/%s" --library-path "$here/usr/lib/%s-linux-gnu" "$here/usr/bin/mkfs.erofs" "$@"\n' \
        "$linker" "$MACHINE" >"$into/bin/mkfs.erofs"
    chmod 755 "$into/bin/mkfs.erofs"
    [[ $("$into/bin/mkfs.erofs" --help 2>&1) == *--tar* ]]
}

if [[ ${1:-} == --fetch ]]; then
    shift
    if [[ $2 == erofs ]]; then in_cache "$1" fetch_erofs; else in_cache "$1" fetch "${@:2}"; fi
    exit
fi

if ! command -v apt-get >/dev/null; then
    say "SKIPPED: containerd's tests (there is no apt here to get the versions from)"
    exit
fi
if "${BASH_SOURCE[0]}" --fetch "$(place tools)" bookworm "${TOOLS[@]}"; then
    echo "tools - $CACHE/$(place tools)"
else
    say "SKIPPED: runc and the CNI plugins could not be had (the reason is above)"
fi
if "${BASH_SOURCE[0]}" --fetch "$(place erofs)" erofs; then
    echo "erofs - $CACHE/$(place erofs)"
else
    say "SKIPPED: the erofs snapshotter (no mkfs.erofs of Debian trixie; the reason is above)"
fi
for pair in "${RELEASES[@]}"; do
    name=${pair%:*} release=${pair#*:}
    path=$(place "$name")
    if "${BASH_SOURCE[0]}" --fetch "$path" "$release" containerd && version=$(version_of "$CACHE/$path") && [[ -n $version ]]; then
        echo "$name $version $CACHE/$path"
    else
        say "SKIPPED: containerd $name of Debian $release cannot be had or does not run here (the reason is above)"
    fi
done

#!/usr/bin/env bash
# crun.sh: prints the path of a static crun, the benchmark's yardstick; builds it from Debian trixie's source when it is not in the cache.
# The source comes through an apt configuration of our own (list, lists, keyring), so that the machine's sources stay as they are.
# Promises: where that source cannot be had (no network, another version by now), it says so, prints nothing, and succeeds.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
source "$(dirname "${BASH_SOURCE[0]}")/apt-mirror.sh"

VERSION=1.21
RELEASE=trixie
FLAGS=(--disable-systemd --disable-dl --disable-criu --enable-embedded-yajl --disable-shared)

download() {
    local into=$1 state mirror keyring options
    state=$CACHE/apt-$RELEASE
    mirror=$(own_mirror "$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)")
    keyring=$(own_keyring)
    mkdir -p "$state/lists/partial" "$state/archives/partial"
    echo "deb-src ${keyring:+[signed-by=$keyring] }${mirror:-http://deb.debian.org/debian/} $RELEASE main" >"$state/sources.list"
    options=(-o "Dir::Etc::sourcelist=$state/sources.list" -o Dir::Etc::sourceparts=- -o "Dir::State::lists=$state/lists")
    options+=(-o "Dir::Cache=$state" -o "Dir::Cache::archives=$state/archives" -o APT::Sandbox::User=root -o Acquire::Retries=2)
    # The tarball alone is needed; that a mirror lacks the packaging beside it is no matter. apt checks what it fetches.
    {
        apt-get -qq "${options[@]}" update && cd "$into" && apt-get -qq "${options[@]}" source --download-only crun
    } >"$into/apt.log" 2>&1 || true
    [[ -n $(tarball "$into") ]]
}

tarball() { find "$1" -name "crun_$VERSION*.orig.tar.*" ! -name '*.asc' -print -quit; }

build() {
    local into=$1 work source
    temp_dir work crun
    say "building a static crun $VERSION, the benchmark's yardstick (1 minute; then it is in the cache)"
    download "$work" || {
        tail -n 3 "$work/apt.log" >&2
        return 1
    }
    source=$(tarball "$work")
    mkdir "$work/source"
    tar -xf "$source" -C "$work/source" --strip-components 1
    (
        cd "$work/source"
        [[ -e git-version.h ]] || echo "#define GIT_VERSION \"$VERSION\"" >git-version.h
        [[ -e configure ]] || ./autogen.sh
        ./configure "${FLAGS[@]}"
        make -j "$(nproc)" LDFLAGS=-all-static
    ) >"$work/log" 2>&1 || {
        { grep -m 5 -E "error|Error" "$work/log"; tail -n 5 "$work/log"; } >&2
        die "crun $VERSION does not build"
    }
    strip -o "$into/crun" "$work/source/crun"
    sha256sum <"$source" | cut -d ' ' -f 1 >"$into/source.sha256"
}

path=tools/crun-$VERSION-$({ system_hash && cat "${BASH_SOURCE[0]}"; } | short_hash)
if [[ ${1:-} == --build ]]; then
    in_cache "$path" build
elif apt_need "building crun" gcc libc6-dev make pkg-config python3 libcap-dev libseccomp-dev dpkg-dev autoconf automake libtool &&
    "${BASH_SOURCE[0]}" --build; then
    echo "$CACHE/$path/crun"
else
    say "SKIPPED: no crun to measure against (its source is that of crun $VERSION in Debian $RELEASE; the reason is above)"
fi

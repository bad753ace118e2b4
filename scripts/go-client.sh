#!/usr/bin/env bash
# go-client.sh: prints where qemu-tests/go/shim-client is, built with Debian's Go and the sources of containerd's API that Debian has; both
# are unpacked into the cache and nothing is installed.
# Exit status 77: it cannot be had here, the reason is said. sid moves: its Go may be called otherwise by now.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
source "$(dirname "${BASH_SOURCE[0]}")/apt-mirror.sh"

GO=1.27
PACKAGES=("golang-$GO-go" "golang-$GO-src")
# What the client's API and its transport are made of.
for name in containerd-containerd-api containerd-log containerd-ttrpc containerd-typeurl gogo-protobuf golang-protobuf-1-5 \
    opencontainers-go-digest opencontainers-image-spec sirupsen-logrus; do
    PACKAGES+=("golang-github-$name-dev")
done
PACKAGES+=(golang-golang-x-{net,sys,text}-dev golang-google-{genproto,grpc,protobuf}-dev)
SOURCE=$ROOT/qemu-tests/go/shim-client

build() {
    local into=$1 sources=$CACHE/tmp/go-client.$$
    # shellcheck disable=SC2064 # its name as it is now
    trap "rm -rf '$sources'" EXIT
    mkdir -p "$sources"
    say "building a client of containerd's own API with Debian's Go (2 minutes)"
    debs sid "$(dpkg --print-architecture)" "${PACKAGES[@]}" "$sources"
    env -u GOFLAGS GOROOT="$sources/usr/lib/go-$GO" GO111MODULE=off GOPATH="$sources/usr/share/gocode" GOCACHE="$sources/cache" \
        GOTOOLCHAIN=local CGO_ENABLED=0 "$sources/usr/lib/go-$GO/bin/go" build -o "$into/shim-client" "$SOURCE/main.go" >&2
}

place=tools/go-client-$(cat "${BASH_SOURCE[0]}" "$SOURCE/main.go" | short_hash)
if [[ ${1:-} == --build ]]; then
    in_cache "$place" build
    exit
fi
if ! command -v apt-get >/dev/null || ! "${BASH_SOURCE[0]}" --build; then
    say "SKIPPED: the test with containerd's own client (Debian's Go $GO or the client's sources cannot be had; the reason is above)"
    exit 77
fi
echo "$CACHE/$place/shim-client"

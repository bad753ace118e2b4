#!/usr/bin/env bash
# qemu.sh [ARCH]: makes sure that there is a QEMU that runs our guests of that architecture (x86_64 or arm64; this machine's).
# Debian 12's own 7.2 mis-emulates cmpxchg16b now and then, which crashes guests at random; backports has 10.0. It is fetched with an
# apt configuration of our own (source list, lists), so that the machine's sources stay as they are.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
source "$(dirname "${BASH_SOURCE[0]}")/apt-mirror.sh"

OLDEST=8.2
case ${1:-$GUEST_ARCH} in
arm64) PROGRAM=qemu-system-aarch64 PACKAGES=(qemu-system-arm) ;;
*) PROGRAM=qemu-system-x86_64 PACKAGES=(qemu-system-x86 seabios) ;;
esac

at_least() { [[ $(printf '%s\n%s\n' "$OLDEST" "$1" | sort -V | head -n 1) == "$OLDEST" ]]; }

installed_version() { "$PROGRAM" --version 2>/dev/null | sed -nE '1s/.*version ([0-9.]+).*/\1/p'; }

apt_version() { LC_ALL=C apt-cache policy "${PACKAGES[0]}" 2>/dev/null | sed -nE 's/^ *Candidate: (.*:)?([0-9.]+).*/\2/p'; }

install_from_backports() {
    local codename=$1 mirror keyring state=$CACHE/apt-backports options
    mirror=$(own_mirror "$codename")
    [[ -n $mirror ]] || die "no mirror for $codename in apt's sources; please install QEMU $OLDEST or later yourself"
    keyring=$(own_keyring)
    mkdir -p "$state/lists/partial"
    printf "deb ${keyring:+[signed-by=$keyring] }$mirror %s main\n" "$codename" "$codename-updates" "$codename-backports" >"$state/sources.list"
    # Only QEMU itself comes from backports. With `-t` its libraries would too, and what is built against them later (libelf-dev, for
    # the kernel) could not be installed any more.
    printf 'Package: qemu-* seabios\nPin: release n=%s-backports\nPin-Priority: 990\n' "$codename" >"$state/preferences"
    options=(-o "Dir::Etc::preferences=$state/preferences" -o Dir::Etc::preferencesparts=-)
    options+=(-o "Dir::Etc::sourcelist=$state/sources.list" -o Dir::Etc::sourceparts=- -o "Dir::State::lists=$state/lists")
    # apt drops root for its downloads and then cannot read below a private home.
    options+=(-o APT::Sandbox::User=root)
    apt_lock
    say "installing ${PACKAGES[*]} from $codename-backports (30 s; apt's own sources stay as they are)"
    apt_get "${options[@]}" update
    apt_get "${options[@]}" install --no-install-recommends "${PACKAGES[@]}"
    apt_unlock
}

main() {
    local have candidate codename=
    have=$(installed_version) || true
    if [[ -n $have ]] && at_least "$have"; then return; fi
    [[ -z $have ]] || say "QEMU $have is too old for our guests (it emulates an instruction wrongly); $OLDEST is the first that will do"
    command -v apt-get >/dev/null || die "please install QEMU $OLDEST or later ($PROGRAM)"
    [[ -n $(apt_version) ]] || {
        say "refreshing apt's package lists"
        apt_get update
    }
    candidate=$(apt_version)
    if [[ -n $candidate ]] && at_least "$candidate"; then
        apt_need "running guests" "${PACKAGES[@]}"
    elif codename=$(. /etc/os-release && [[ $ID == debian ]] && echo "$VERSION_CODENAME"); then
        install_from_backports "$codename"
    else
        die "apt has QEMU ${candidate:-not at all}; please install $OLDEST or later ($PROGRAM)"
    fi
    have=$(installed_version)
    at_least "$have" || die "QEMU is $have after the installation; $OLDEST is the first that will do"
    say "$PROGRAM $have is there"
}

main && exit

# lib.sh: what the scripts share; sourced, never run.
# Owns: how we speak (stderr only, so that stdout stays usable), where the cache is, and how a missing package is installed.
# Never: asks a question, touches /etc/apt, installs what is there already.
# shellcheck shell=bash

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
CACHE=${VMINITD_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/vminitd}
MACHINE=$(uname -m)

say() { printf '\033[1m==>\033[0m %s\n' "$*" >&2; }
die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

# short_hash: twelve digits of what it reads, to name a cached thing by
short_hash() { sha256sum | cut -c1-12; }

# as_root CMD...: runs it as root, or says what a person with that right has to run
as_root() {
    if [[ $(id -u) -eq 0 ]]; then
        "$@"
    elif sudo -n true 2>/dev/null; then
        sudo -n "$@"
    elif [[ -t 0 ]] && command -v sudo >/dev/null; then
        sudo "$@"
    else
        die "this needs root, and there is no sudo without a password; please run: $*"
    fi
}

# apt_missing PKG...: those that are not installed
apt_missing() {
    local pkg
    for pkg in "$@"; do
        [[ $(dpkg-query -W -f '${db:Status-Status}' "$pkg" 2>/dev/null) == installed ]] || echo "$pkg"
    done
}

# Two recipes may run at once and dpkg's own lock does not wait: apt is told to, and we take turns.
apt_lock() {
    mkdir -p "$CACHE"
    exec {APT_LOCK}>"$CACHE/apt.lock"
    flock "$APT_LOCK"
}
apt_unlock() { exec {APT_LOCK}>&-; }

apt_get() {
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -y -o DPkg::Lock::Timeout=600 -o Dpkg::Use-Pty=0 "$@" >&2
}

# apt_need REASON PKG...: installs the packages that are missing, saying which and what for
apt_need() {
    local reason=$1 missing
    shift
    command -v apt-get >/dev/null || {
        say "no apt here: taking for granted that $* (or what your system calls them) are installed, for $reason"
        return
    }
    mapfile -t missing < <(apt_missing "$@")
    ((${#missing[@]})) || return 0
    apt_lock
    mapfile -t missing < <(apt_missing "$@")
    if ((${#missing[@]})); then
        say "installing ${missing[*]} (for $reason)"
        # A fresh image has no package lists at all; lists that are too old show as a download that fails.
        apt_get install --no-install-recommends "${missing[@]}" || {
            say "refreshing apt's package lists, then once more"
            apt_get update
            apt_get install --no-install-recommends "${missing[@]}" || die "apt could not install ${missing[*]}"
        }
    fi
    apt_unlock
}

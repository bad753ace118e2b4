# lib.sh: what the scripts share; sourced, never run.
# Owns: how we speak (stderr only, so that stdout stays usable), where the cache is, and how a missing package is installed.
# Never: asks a question, touches /etc/apt, installs what is there already.
# shellcheck shell=bash

# shellcheck disable=SC2034 # for those who source this
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
CACHE=${VMINITD_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/vminitd}
# shellcheck disable=SC2034
MACHINE=$(uname -m)
# shellcheck disable=SC2034
GUEST_ARCH=${MACHINE/#aarch64/arm64} # what guests of this machine's kind are called: in dist/share/vminitd, for --arch

# On a terminal cargo draws a bar; in a log its 300 lines help nobody.
[[ -t 2 ]] || export CARGO_TERM_QUIET=${CARGO_TERM_QUIET:-true}

# Bold on a terminal; in a log with the time, so that it shows where the minutes went.
say() {
    if [[ -t 2 ]]; then printf '\033[1m==>\033[0m %s\n' "$*" >&2; else printf '==> %(%T)T %s\n' -1 "$*" >&2; fi
}
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

# dpkg is talkative; what it said is shown when it failed.
apt_get() {
    local log=$CACHE/apt.log
    mkdir -p "$CACHE"
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -y -o DPkg::Lock::Timeout=600 -o Dpkg::Use-Pty=0 "$@" >"$log" 2>&1 && return
    tail -n 20 "$log" >&2
    return 1
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
        apt_get install --no-install-recommends "${missing[@]}" 2>/dev/null || {
            say "refreshing apt's package lists, then once more"
            apt_get update
            apt_get install --no-install-recommends "${missing[@]}" || die "apt could not install ${missing[*]}"
        }
    fi
    apt_unlock
}

# temp_dir VAR NAME: a new directory on the cache's filesystem, gone when the script ends
temp_dir() {
    local -n dir=$1
    mkdir -p "$CACHE/tmp"
    find "$CACHE/tmp" -mindepth 1 -maxdepth 1 -mtime +1 -exec rm -rf {} + # of runs that were killed
    dir=$(mktemp -d "$CACHE/tmp/$2.XXXXXX")
    chmod 755 "$dir"
    TEMP_DIRS+=("$dir")
    trap 'rm -rf "${TEMP_DIRS[@]}"' EXIT
}

# in_cache PATH CMD...: unless PATH (below the cache) exists, runs CMD with a new directory as last argument, which then becomes PATH.
# So PATH is whole or absent, and of two runs at once one works and the other waits.
in_cache() {
    local path=$CACHE/$1 new_dir lock
    shift
    [[ ! -e $path ]] || return 0
    mkdir -p "${path%/*}"
    exec {lock}>"$path.lock"
    flock -n "$lock" || {
        say "another run is making ${path##*/}; waiting for it"
        flock "$lock"
    }
    if [[ ! -e $path ]]; then
        temp_dir new_dir "${path##*/}"
        "$@" "$new_dir"
        mv -T "$new_dir" "$path"
    fi
    rm -f "$path.lock"
    exec {lock}>&-
}

# system_hash: names what a binary is linked against
system_hash() { { uname -m && grep -E '^(ID|VERSION_ID)=' /etc/os-release; } | short_hash; }

# cargo_tool NAME VERSION TIME: a program from crates.io, built once; prints where it is
cargo_tool() {
    local path
    path=tools/$1-$2-$(system_hash)
    in_cache "$path" cargo_install "$1" "$2" "$3"
    echo "$CACHE/$path/bin/$1"
}
cargo_install() {
    say "building $1 $2 ($3; then it is in the cache)"
    # RUSTFLAGS and target directories are the calling build's matter.
    env -u RUSTFLAGS -u CARGO_TARGET_DIR -u CARGO_BUILD_TARGET cargo install --quiet --locked --version "$2" --root "$4" "$1" >&2
}

# apt-mirror.sh: where this machine gets its packages, for those who read another release through an apt configuration of their own;
# sourced, never run.
# shellcheck shell=bash

# The machine's own mirror, and the key it trusts that mirror by.
own_mirror() {
    # shellcheck disable=SC2016 # apt's own variables
    apt-get indextargets --format '$(REPO_URI) $(RELEASE)' 'Created-By: Packages' |
        awk -v release="$1" '$2 == release { print $1; exit }'
}
own_keyring() {
    local key
    key=$(grep -hrsE "^Signed-By: .*debian-archive" /etc/apt/sources.list.d | sed 's/^Signed-By: //;q')
    for key in "$key" /usr/share/keyrings/debian-archive-keyring.gpg; do
        [[ -n $key && -e $key ]] && echo "$key" && return
    done
}

# private_apt RELEASE ARCH: apt's own lists, cache and sources for one release and architecture, so that neither the machine's sources nor
# dpkg's list of architectures change. Prints the options, a line each.
private_apt() {
    local release=$1 arch=$2 state=$CACHE/apt-$1-$2 keyring mirror
    mirror=$(own_mirror "$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)")
    keyring=$(own_keyring)
    mkdir -p "$state/lists/partial" "$state/archives/partial"
    echo "deb [arch=$arch${keyring:+ signed-by=$keyring}] ${mirror:-http://deb.debian.org/debian/} $release main" >"$state/debs.list"
    printf '%s\n' -o "APT::Architecture=$arch" -o "APT::Architectures=$arch" \
        -o "Dir::Etc::sourcelist=$state/debs.list" -o Dir::Etc::sourceparts=- -o Dir::Etc::preferencesparts=- \
        -o "Dir::State::lists=$state/lists" -o "Dir::Cache=$state" -o "Dir::Cache::archives=$state/archives" \
        -o APT::Sandbox::User=root -o Acquire::Retries=2 -o "Acquire::Languages=none"
}

# debs RELEASE ARCH PACKAGE... INTO: unpacks the packages' files into a directory, without their documentation and without what they
# depend on. `files` in it says what came. Two at once take turns, as apt's own locks wait for nobody.
debs() {
    local release=$1 arch=$2 into=${*: -1} work options deb lock
    set -- "${@:3:$#-3}"
    mapfile -t options < <(private_apt "$release" "$arch")
    work=$into/debs
    mkdir -p "$work"
    exec {lock}>"$CACHE/apt-$release-$arch.lock"
    flock "$lock"
    {
        apt-get -qq "${options[@]}" update && (cd "$work" && apt-get -qq "${options[@]}" download "${@/%//$release}")
    } >"$into/apt.log" 2>&1 || {
        tail -n 3 "$into/apt.log" >&2
        return 1
    }
    exec {lock}>&-
    for deb in "$work"/*.deb; do
        dpkg-deb -x "$deb" "$into" || return 1
        basename "$deb" >>"$into/files"
    done
    rm -rf "$work" "$into/apt.log" "${into:?}"/usr/share/{doc,man,locale,lintian}
}

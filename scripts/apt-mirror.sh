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

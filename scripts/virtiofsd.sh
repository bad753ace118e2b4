#!/usr/bin/env bash
# virtiofsd.sh: prints the path of a virtiofsd, the daemon behind shared directories; builds it from crates.io when it is not in the cache.
# Debian 12 has no package of it (the C one went with QEMU 8), and a binary of a later release wants a later glibc.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

VERSION=1.14.0

apt_need "building virtiofsd" gcc libc6-dev libcap-ng-dev libseccomp-dev
cargo_tool virtiofsd "$VERSION" "3 to 5 minutes on 2 cores"

#!/usr/bin/env bash
# lint.sh: everything that can be said about the code without running it. Goes on after a finding, so that one run shows all.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$ROOT"

CARGO_DENY=0.18.9

failed=()
check() {
    local name=$1
    shift
    say "$name"
    "$@" || failed+=("$name")
}

# A debug build: it takes a third of the time and checks as well. Without features it cannot fetch the advisories' database, which
# would make lint depend on another site's mood.
deny() {
    local path
    path=tools/cargo-deny-$CARGO_DENY-$(system_hash)
    in_cache "$path" install_deny
    "$CACHE/$path/bin/cargo-deny" --log-level error check --hide-inclusion-graph bans licenses sources
}
install_deny() {
    say "building cargo-deny (1 to 2 minutes; then it is in the cache)"
    env -u RUSTFLAGS -u CARGO_TARGET_DIR CARGO_PROFILE_DEV_DEBUG=0 \
        cargo install --quiet --locked --debug --no-default-features --version "$CARGO_DENY" --root "$1" cargo-deny
}

shell_scripts() { git ls-files -z dev .ci/run 'scripts/*.sh' 'kernel-config/*.sh' | xargs -0 shellcheck; }

check "format" cargo fmt --all --check
check "format of fuzz targets" rustfmt --check --edition 2024 fuzz/targets/*.rs
check "house rules" scripts/tidy.sh
check "shell scripts" shell_scripts
# A workspace of its own, so that a change of ours to dependencies leaves its lock file behind.
check "lock file of fuzz targets" cargo metadata --locked --format-version 1 --manifest-path fuzz/Cargo.toml >/dev/null
check "clippy" cargo clippy --locked --workspace --all-targets -- -D warnings
check "dependencies: licences, sources" deny

((${#failed[@]} == 0)) || die "lint found something in: $(printf '%s; ' "${failed[@]}")"

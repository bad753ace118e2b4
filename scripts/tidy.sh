#!/usr/bin/env bash
# tidy.sh: house rules that neither rustc nor clippy knows. A broken rule fails; a long file is only named, since flat tables may be long.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$ROOT"

LONG=500 # production lines after which a file should be looked at again

mapfile -t rust < <(git ls-files --cached --others --exclude-standard '*.rs' | while read -r file; do [[ ! -e $file ]] || echo "$file"; done)
status=0

for file in "${rust[@]}"; do
    head -n 1 "$file" | grep -q '^//! ' || {
        echo "$file: opens without a //! line that says what it is" >&2
        status=1
    }
    # Tests do not count, at the end of a file or in one of their own.
    [[ $file != */tests.rs && $file != */tests/* ]] || continue
    lines=$(awk '/^#\[cfg\(test\)\]/ { exit } { n++ } END { print n + 0 }' "$file")
    ((lines <= LONG)) || echo "note: $file has $lines lines before its tests; does it have two duties?" >&2
done
exit "$status"

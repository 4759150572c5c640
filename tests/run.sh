#!/usr/bin/env bash
# All tests, stage by stage, each with its seconds; `make test` calls it with everything set up.
set -uo pipefail
cd "$(dirname "$0")/.."
bin=.venv/bin
failed=()

stage() {
    local name=$1 start=$SECONDS
    shift
    echo "== $name"
    "$@" || failed+=("$name")
    echo "== $name: $((SECONDS - start)) s"
}

stage format "$bin/ruff" format --check -q .
stage lint "$bin/ruff" check -q .
stage types "$bin/mypy" src tests bench
for folder in meta unit property sim node cluster behaviours; do
    # A folder without tests yet is no failure (pytest's code 5).
    if compgen -G "tests/$folder/test_*.py" >/dev/null; then stage "$folder" "$bin/pytest" -q "tests/$folder"; fi
done
if [ ${#failed[@]} != 0 ]; then
    echo "failed: ${failed[*]}"
    exit 1
fi
echo "all stages passed"

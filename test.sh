#!/usr/bin/env bash
# Runs the tests in the project's own environment: bash test.sh [pytest's arguments]

if [ -z "${BASH_VERSION:-}" ]; then
    echo "error: this needs bash: bash test.sh" >&2
    exit 2
fi
set -euo pipefail
cd "$(dirname "$0")"
source setup.sh
if [ ! -f data/stories/meta.json ]; then
    python data/prepare.py stories
fi
if [ $# -gt 0 ]; then
    exec python -m pytest -q -rs "$@"
fi

# two halves at once, one on each of two cores
half=(tests/test_training.py tests/test_commands.py)
log=$(mktemp)
python -m pytest -q -rs "${half[@]}" >"$log" 2>&1 &
other=$!
trap 'kill $other 2>/dev/null || true; rm -f "$log"' EXIT
status=0
python -m pytest -q -rs tests "${half[@]/#/--ignore=}" || status=$?
echo "the other half, ${half[*]}:"
wait $other || status=$?
cat "$log"
exit $status

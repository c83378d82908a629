#!/usr/bin/env bash
# 4 steps beside 1,024, on one clock: with the networks of out/, or those of weights/ if it has no
# student.
#
#     bash demo.sh                     in the terminal
#     bash demo.sh --html race.html    as a page; all flags of sample.py

if [ -z "${BASH_VERSION:-}" ]; then
    echo "error: this needs bash: bash demo.sh" >&2
    exit 2
fi
set -euo pipefail
cd "$(dirname "$0")"
source setup.sh
if [ $# -eq 0 ]; then
    set -- --race
fi
exec python sample.py "$@"

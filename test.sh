#!/usr/bin/env bash
# Runs the tests in the project's own environment: bash test.sh [pytest's arguments]

if [ -z "${BASH_VERSION:-}" ]; then
    echo "error: this needs bash: bash test.sh" >&2
    exit 2
fi
set -euo pipefail
cd "$(dirname "$0")"
source setup.sh
exec python -m pytest -q -rs tests "$@"

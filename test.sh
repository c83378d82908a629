#!/usr/bin/env bash
# Runs the tests in the project's own environment: bash test.sh [pytest's arguments]

set -euo pipefail
cd "$(dirname "$0")"
source common/setup.sh
exec python -m pytest -q -rs tests "$@"

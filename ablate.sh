#!/usr/bin/env bash
# What matters? Trains and measures the variants of ablate.py, from the judge and the DFM of speedrun.sh: bash ablate.sh [flags]
# Run it again to go on where it stopped.

set -euo pipefail
cd "$(dirname "$0")"
source setup.sh
export GLIBC_TUNABLES=glibc.malloc.trim_threshold=8000000000:glibc.malloc.mmap_max=0  # as in speedrun.sh
exec python ablate.py "$@"

#!/usr/bin/env bash
# All that a CUDA GPU can show, in one command: the GPU tests, the benchmarks at two sizes, and a real training with its curve.
#
#     bash gpu.sh        tables in out/bench.json and out-paper/bench.json, the curve in out/curve.png

set -euo pipefail
cd "$(dirname "$0")"
source setup.sh
if ! python -c "import sys, torch; sys.exit(not torch.cuda.is_available())"; then
    echo "error: PyTorch sees no CUDA GPU here: bash speedrun.sh runs on a CPU" >&2
    exit 2
fi
python -m pytest -q tests/test_cuda.py
bash speedrun.sh
python bench.py
python bench.py --preset paper-small --out out-paper

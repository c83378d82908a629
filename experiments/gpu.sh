#!/usr/bin/env bash
# All that a CUDA GPU can show: the GPU tests, a training with its curve, benchmarks at two sizes.
#
#     bash experiments/gpu.sh     out-pydocs/curve.png, out/bench.json, out-paper/bench.json

set -euo pipefail
cd "$(dirname "$0")/.."
source common/setup.sh
if ! python -c "import sys, torch; sys.exit(not torch.cuda.is_available())"; then
    echo "error: PyTorch sees no CUDA GPU here: bash speedrun.sh runs on a CPU" >&2
    exit 2
fi
python -m pytest -q tests/test_cuda.py
bash speedrun.sh pydocs
python experiments/bench.py
python experiments/bench.py --preset paper-small --out out-paper

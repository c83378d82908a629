#!/usr/bin/env bash
# All that a CUDA GPU can show: the GPU tests, a training with its curve, and benchmarks at two
# sizes, whose tables are Markdown. Run it again to go on where it stopped.
#
#     bash experiments/gpu.sh           Python's documentation, 256 tokens at a time; in out-pydocs/
#     bash experiments/gpu.sh my.txt    your text, 1,024 of GPT-2's tokens at a time; in out-my/

if [ -z "${BASH_VERSION:-}" ]; then
    echo "error: this needs bash: bash experiments/gpu.sh" >&2
    exit 2
fi
set -euo pipefail
text=
if [ $# -gt 0 ]; then
    if [ $# -gt 1 ] || [ ! -f "$1" ]; then
        echo "error: usage: bash experiments/gpu.sh [TEXT FILE]" >&2
        exit 2
    fi
    text=$(realpath "$1")
fi
cd "$(dirname "$0")/.."
if [ ! -e /dev/nvidiactl ] && [ ! -e /dev/dxg ]; then  # of Linux, and of Linux in Windows
    echo "error: this machine has no NVIDIA GPU: bash speedrun.sh runs on a CPU" >&2
    exit 2
fi
source common/setup.sh
if ! python -c "import sys, torch; sys.exit(not torch.cuda.is_available())"; then
    echo "error: PyTorch sees no CUDA GPU here: bash speedrun.sh runs on a CPU" >&2
    exit 2
fi

python -m pytest -q tests/test_cuda.py
if [ -z "$text" ]; then
    bash speedrun.sh pydocs
else
    # 10 minutes on an H200, derived from 23 ms an iteration of the DFM
    name=$(basename "$text" .txt)
    out=out-$name
    if [ ! -f "data/$name/meta.json" ]; then
        python data/prepare.py "$name" --text "$text" --tokenizer gpt2
    fi
    train() {
        python train.py "$@" --data "$name" --out "$out" --preset gpu --batch-size 16 --resume
    }
    train judge --block-size 1024 --iterations 500
    train dfm --block-size 1024 --iterations 6500
    train fsdfm --iterations 1000
    for model in dfm fsdfm; do
        python sample.py --model "$model" --out "$out"
    done
    python eval.py --data "$name" --out "$out" --num-samples 40
    python plot.py --out "$out"
fi
python experiments/bench.py
python experiments/bench.py --preset paper-small --out out-paper

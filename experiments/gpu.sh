#!/usr/bin/env bash
# All that a CUDA GPU can show: the GPU tests, a training with its curve, and benchmarks at two
# sizes, whose tables are Markdown. Run it again to go on where it stopped.
#
#     bash experiments/gpu.sh           Python's documentation, 256 tokens at a time; in out-gpu/
#     bash experiments/gpu.sh my.txt    your text, 1,024 of GPT-2's tokens at a time; in out-my/
#     bash experiments/gpu.sh books     books of 1,024 tokens (data/books.py), 25 million weights

if [ -z "${BASH_VERSION:-}" ]; then
    echo "error: this needs bash: bash experiments/gpu.sh" >&2
    exit 2
fi
set -euo pipefail
text=
if [ "${1:-}" = books ]; then
    text=books
elif [ $# -gt 0 ]; then
    if [ $# -gt 1 ] || [ ! -f "$1" ]; then
        echo "error: usage: bash experiments/gpu.sh [books | TEXT FILE]" >&2
        exit 2
    fi
    text=$(realpath "$1")
fi
cd "$(dirname "$0")/.."
source setup.sh
if ! python -c "import sys, torch; sys.exit(not torch.cuda.is_available())"; then
    echo "error: PyTorch sees no CUDA GPU here: bash speedrun.sh runs on a CPU" >&2
    exit 2
fi

python -m pytest -q tests/test_cuda.py
if [ "$text" = books ]; then
    out=out-books-gpu
    if [ ! -f data/books/meta.json ]; then
        python data/prepare.py books
    fi
    size=(--n_layer=8 --n_head=8 --dim=512 --cond_dim=128 --accumulation=1 --resume)
    short=(--block_size=256 --batch_size=64 --iterations=3000)
    who=(config/books.py config/books_names.py "${size[@]}" --seed=2)
    set -- config/books.py "${size[@]}" --batch_size=32 --out=$out
    python train.py dfm config/books.py "${size[@]}" "${short[@]}" --out=$out-a
    python train.py dfm "${who[@]}" "${short[@]}" --init_from=$out-a/dfm.pt --out=$out-b
    python train.py dfm "${who[@]}" --batch_size=32 --iterations=500 --init_from=$out-b/dfm.pt \
        --out=$out-c
    python train.py dfm "${who[@]}" config/books_places.py --batch_size=32 --iterations=300 \
        --init_from=$out-c/dfm.pt --out=$out-d
    python train.py dfm "$@" --init_from=$out-d/dfm.pt --iterations=8000
    python train.py fsdfm "$@" --iterations=4000
    python experiments/books.py --out $out --steps 1 2 4 8 16 32 64 1024
    exit
fi
if [ -z "$text" ]; then
    name=pydocs
    out=out-gpu
    size=()
    if [ ! -f data/pydocs/meta.json ]; then
        python data/prepare.py pydocs
    fi
else
    name=$(basename "$text" .txt)
    out=out-$name
    size=(--block_size=1024 --batch_size=16)
    if [ ! -f "data/$name/meta.json" ]; then
        python data/prepare.py "$name" --text "$text" --tokenizer gpt2
    fi
fi
for stage in judge dfm fsdfm; do
    python train.py "$stage" config/gpu.py --data="$name" --out="$out" "${size[@]}" --resume
    if [ "$stage" != judge ]; then  # what it writes now
        python sample.py --model "$stage" --out "$out"
    fi
done
python eval.py --data "$name" --out "$out"
python plot.py --out "$out"
python experiments/bench.py config/gpu.py --data="$name" "${size[@]}"
python experiments/bench.py config/paper_small.py --data="$name"

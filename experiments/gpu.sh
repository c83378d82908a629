#!/usr/bin/env bash
# What a GPU is for: bash experiments/gpu.sh rate|books|text [--device cuda:0]. Each part goes on
# where it was stopped, and leaves its figures in a folder of its own.
#
#     rate     GPU tests; time of a step of the paper's small network, and of 8 and 1,024 steps
#     books    1,024 tokens in which facts are counted, with 25 million weights (data/books.py)
#     text     novels of your own, NOVELS=FILE, in 1,024 byte pairs: perplexity and entropy

set -euo pipefail
cd "$(dirname "$0")/.."
part=${1:-}
shift || true
case $part in
    rate)
        python -m pytest -q -rs tests/test_cuda.py
        python experiments/bench.py config/paper_small.py --data=books --batch_size=64 "$@"
        ;;
    books)
        if [ ! -f data/books/meta.json ]; then python data/prepare.py books; fi
        size="--n_layer=8 --n_head=8 --dim=512 --cond_dim=128 --learning_rate=2e-3"
        out=out-books-gpu
        # shellcheck disable=SC2086
        {
            python train.py dfm config/books.py $size --block_size=256 --batch_size=64 \
                --accumulation=1 --iterations=3000 --out=$out-256 --resume "$@"
            python train.py dfm config/books.py $size --init_from=$out-256/dfm.pt --batch_size=32 \
                --accumulation=1 --iterations=8000 --out=$out --resume "$@"
            python train.py fsdfm config/books.py $size --batch_size=32 --accumulation=1 \
                --iterations=4000 --learning_rate=5e-4 --out=$out --resume "$@"
        }
        python experiments/books.py --out $out --steps 1 2 4 8 16 32 64 1024
        ;;
    text)
        if [ ! -f data/novels/meta.json ]; then
            python data/prepare.py novels --text "$NOVELS" --vocab-size 4096
        fi
        for stage in judge dfm fsdfm; do
            python train.py $stage config/gpu.py --data=novels --block_size=1024 --batch_size=32 \
                --out=out-novels --resume "$@"
        done
        python eval.py --out out-novels
        python eval.py --out out-novels --models dfm --sampler extras.samplers.euler
        ;;
    *)
        echo "error: usage: bash experiments/gpu.sh rate|books|text [settings of train.py]" >&2
        exit 2
        ;;
esac

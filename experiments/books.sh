#!/usr/bin/env bash
# Books of 1,024 tokens, from nothing to the picture: DFM, FS-DFM and a DFM trained as long as both
# (longer.pt), about two hours on one CPU core with AMX; then how many facts they get wrong. Run it
# again to go on where it stopped.
#
#     bash experiments/books.sh             in out-books/
#     bash experiments/books.sh --seed 2    another seed, in out-books-seed2/

if [ -z "${BASH_VERSION:-}" ]; then
    echo "error: this needs bash: bash experiments/books.sh" >&2
    exit 2
fi
set -euo pipefail
seed=1
if [ $# -gt 0 ]; then
    seed=${2:-}
    if [ "$1" != --seed ] || [ $# != 2 ] || ! [[ $seed =~ ^[0-9]{1,6}$ ]]; then
        echo "error: usage: bash experiments/books.sh [--seed NUMBER]" >&2
        exit 2
    fi
fi
cd "$(dirname "$0")/.."
out=out-books
if [ "$seed" != 1 ]; then out=$out-seed$seed; fi
source setup.sh
export GLIBC_TUNABLES=glibc.malloc.trim_threshold=8000000000:glibc.malloc.mmap_max=0  # speedrun.sh

if [ ! -f data/books/meta.json ]; then
    python data/prepare.py books
fi
books=config/books.py
names="$books config/books_names.py"
places="$names config/books_places.py"
short="--block_size=256 --batch_size=8 --accumulation=1 --learning_rate=2e-3"
dfm() {  # dfm FOLDER SETTINGS
    python train.py dfm "${@:2}" --out="$1" --resume
}
dfm "$out/a" $books $short --iterations=2400 --seed="$seed"
dfm "$out/b" $names $short --iterations=2600 --seed="1$seed" --init_from="$out/a/dfm.pt"
dfm "$out/c" $books --seed="$seed" --init_from="$out/b/dfm.pt"
dfm "$out/d" $names --iterations=400 --seed="1$seed" --init_from="$out/c/dfm.pt"
dfm "$out/e" $places --iterations=250 --seed="1$seed" --init_from="$out/d/dfm.pt"
dfm "$out" $books --iterations=1100 --seed="2$seed" --init_from="$out/e/dfm.pt"
python train.py fsdfm $books --seed="$seed" --out="$out" --resume
dfm "$out/f" $books --iterations=1100 --seed="3$seed" --init_from="$out/dfm.pt"
cp "$out/f/dfm.pt" "$out/longer.pt"
python experiments/books.py --out "$out"

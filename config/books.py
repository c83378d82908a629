"""Books, 1,024 tokens in which every fact can be counted: 7, 8, 30, 9, 24 and 25 minutes on one
CPU core with AMX.

    short="--block_size=256 --batch_size=8 --accumulation=1 --learning_rate=2e-3"
    who="config/books.py config/books_names.py --seed=2"
    python train.py dfm config/books.py $short --iterations=2400 --out=out-b1
    python train.py dfm $who $short --iterations=2600 --init_from=out-b1/dfm.pt --out=out-b2
    python train.py dfm config/books.py --init_from=out-b2/dfm.pt --out=out-b3
    python train.py dfm $who --iterations=400 --init_from=out-b3/dfm.pt --out=out-b4
    python train.py dfm config/books.py --iterations=1100 --seed=2 --init_from=out-b4/dfm.pt
    python train.py fsdfm config/books.py

A network learns to copy a name only where little of the text is noise, so times near 1 are drawn
more often. longer.pt of experiments/books.py is one more run of 1,100 iterations.
"""

from flow import generalized_kl, sample_path, spread_times

data, out, block_size = "books", "out-books", 1024
batch_size, accumulation = 4, 2
iterations = {"judge": 500, "dfm": 1500, "fsdfm": 600}[stage]
learning_rate = {"judge": 5e-3, "dfm": 1.5e-3, "fsdfm": 1e-3}[stage]
cooldown = 0.3
sampler = "extras.samplers.renoise"  # words that were drawn too early are taken back


def dfm_loss(model, x_1, largest_weight):
    """flow.dfm_loss at times of density 0.4 / (1 - t) ** 0.6."""
    t = 1 - (1 - spread_times(len(x_1), x_1.device)) ** 2.5  # (B,)
    x_t = sample_path(x_1, t, model.config.vocab_size)
    return generalized_kl(model(x_t, t), x_1, x_t, t, largest_weight).mean()

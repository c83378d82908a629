"""Books, 1,024 tokens in which every fact can be counted: `bash experiments/books.sh`.

A series of courses: of this loss, and of those in which mostly names (config/books_names.py) or
places (config/books_places.py) are noise. A network learns to copy a name only where little of the
text is noise, so times near 1 are drawn more often.
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

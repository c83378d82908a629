"""The paper's small network (0.17 billion parameters) and its recipe, on one GPU, or on several by
torchrun: 8 of them share the 8 forward passes of an iteration, 6 those of the student."""

from functools import partial

import extras.fast  # draws from a large vocabulary
from extras.paper import distillation_loss, learning_rate_share, make_optimizers, student_from

Config = partial(Config, time_scale=1.0)
architecture = "extras.published.Transformer"
data, out = "fineweb-edu", "out-paper"
block_size, n_layer, n_head, dim, cond_dim, dropout = 1024, 12, 12, 768, 128, 0.1
position_scale = 0.0
batch_size = 16
accumulation = 6 if stage == "fsdfm" else 8  # 96 and 128 texts an iteration
iterations = {"judge": 100_000, "dfm": 1_000_000, "fsdfm": 500_000}[stage]
learning_rate = 1e-5 if stage == "fsdfm" else 3e-4
warmup, weight_decay, ema_decay = 10_000, 0.03, 0.9995
largest_weight = 1e9  # not clipped
sampler = "extras.samplers.uniform_grid"
validate_every = 5000

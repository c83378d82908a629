"""Real text on one GPU: 29 million parameters."""

data, out = "pydocs", "out-gpu"
block_size, n_layer, n_head, dim, cond_dim = 256, 8, 8, 512, 128
position_scale = 0.0  # a block begins anywhere in a text
batch_size = 64
iterations = {"judge": 2000, "dfm": 20_000, "fsdfm": 3000}[stage]
learning_rate = 5e-4 if stage == "fsdfm" else 2e-3
dropout = 0.1 if stage == "judge" else 0.0
warmup, ema_decay, validate_every, largest_weight = 200, 0.99, 1000, 2.0
sampler = "extras.fast.generate"  # draws from a large vocabulary

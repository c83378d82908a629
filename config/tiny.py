"""A minute or less: for tests, and to see that everything runs. It learns next to nothing."""

block_size, n_layer, n_head, dim, cond_dim = 32, 2, 2, 64, 32
iterations = 30 if stage == "fsdfm" else 60
learning_rate = 6e-4 if stage == "fsdfm" else 6e-3
warmup, validate_every, largest_weight = 5, 30, 2.0

"""The larger network of the paper (1.3 billion parameters): `train.py dfm config/paper_small.py
config/paper_1_3b.py`, since its recipe is that of the small one. By torchrun 8 GPUs share the 32
forward passes of an iteration, 24 of the student."""

if out != "out-paper":
    stop("config/paper_1_3b.py comes after config/paper_small.py: give both, in this order")
out = "out-paper-1.3b"
n_layer, n_head, dim, cond_dim = 21, 32, 2048, 256
batch_size = 4
accumulation = 24 if stage == "fsdfm" else 32  # 96 and 128 texts an iteration

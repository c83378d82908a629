"""Real text on 2 CPU cores: Python's documentation, or your own with --data=NAME --out=FOLDER."""

data, out = "pydocs", "out-pydocs"
n_layer, n_head = 3, 2
position_scale = 0.0  # a block begins anywhere in a text
iterations = {"judge": 300, "dfm": 1500, "fsdfm": 1200}[stage]
learning_rate = 1.2e-3 if stage == "fsdfm" else 5e-3
dropout = 0.1 if stage == "judge" else 0.0
largest_weight = 2.0
validate_every = 200
sampler = "extras.fast.generate"  # draws from a large vocabulary

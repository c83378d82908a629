"""Distribution matching (extras/matching.py) of real text. Not run since the student is trained
in 4 and 8 steps alone: the figures of docs/lab-notebook.md are of commit bb7639d."""

data, out = "pydocs", "out-pydocs"
iterations, learning_rate = 800, 2e-4
frequency_weight, frequency_by_place = 2.0, False
anchor_weight, text_share = 0.2, 0.4
ema_decay = 0.99

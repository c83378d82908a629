"""How the networks of weights/ were made: longer, and trained with given tokens, so that a prompt
and infilling work."""

from extras.infill import dfm_loss, distillation_loss  # in the place of those of the core

out = "out-long"
iterations = {"judge": 1000, "dfm": 7000, "fsdfm": 2000}[stage]
learning_rate = {"judge": 5e-3, "dfm": 4e-3, "fsdfm": 1.5e-3}[stage]
dropout = 0.1 if stage == "judge" else 0.0
validate_every = 1000

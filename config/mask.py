"""Stories with the mask source, in texts of 128 tokens."""

from extras.mask import Config, dfm_loss, distillation_loss  # in the place of those of the core

out = "out-mask"
sampler = "extras.mask.generate"
iterations = {"judge": 300, "dfm": 5000, "fsdfm": 1500}[stage]
learning_rate = {"judge": 5e-3, "dfm": 2.5e-3, "fsdfm": 1.2e-3}[stage]
dropout = 0.1 if stage == "judge" else 0.0

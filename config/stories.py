"""Stories, in which mistakes can be counted: 10 to 15 minutes on 2 CPU cores. The default."""

block_size = 112  # the longest story has 109 tokens
iterations = {"judge": 300, "dfm": 4000, "fsdfm": 2000}[stage]
learning_rate = {"judge": 5e-3, "dfm": 4e-3, "fsdfm": 1.5e-3}[stage]
cooldown = 0.3  # a learning rate that stays high learns who has what, the last rule
dropout = 0.1 if stage == "judge" else 0.0

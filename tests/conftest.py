import sys
from pathlib import Path

import pytest
import torch

sys.path[:0] = [str(folder) for folder in (Path(__file__).parent.parent, Path(__file__).parent)]


@pytest.fixture(autouse=True)
def seeded():
    """Every test starts from the same random state, whatever ran before it."""
    torch.manual_seed(0)

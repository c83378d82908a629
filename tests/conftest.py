import subprocess
import sys
from pathlib import Path

import pytest
import torch

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
sys.path[:0] = [str(ROOT), str(TESTS)]

torch.set_num_threads(1)  # tensors are small here, and threads that wait for one another are slow


def pytest_configure():
    """Many tests need the stories."""
    if not (ROOT / "data/stories/meta.json").exists():
        subprocess.run([sys.executable, "data/prepare.py", "stories"], cwd=ROOT, check=True)


@pytest.fixture(autouse=True)
def seeded():
    """Every test starts from the same random state, whatever ran before it."""
    torch.manual_seed(0)

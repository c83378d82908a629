"""python -m pytest exercises tests the starters; with --solutions, the solutions."""

import importlib.util
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))


def pytest_addoption(parser):
    parser.addoption("--solutions", action="store_true", help="test exercises/solutions instead")


@pytest.fixture
def load(request):
    """load(name) is the module of an exercise."""
    folder = HERE / "solutions" if request.config.getoption("--solutions") else HERE

    def load_exercise(name):
        spec = importlib.util.spec_from_file_location(f"exercise_{name}", folder / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load_exercise

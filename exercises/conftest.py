"""python -m pytest exercises: one line for each exercise; with --solutions, of the solutions."""

import importlib
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))


def pytest_addoption(parser):
    parser.addoption("--solutions", action="store_true", help="test solutions.py, not diffusion.py")


def pytest_configure(config):
    config.option.verbose = -1
    config.option.reportchars = "N"  # no summary of failures
    if config.option.tbstyle == "auto":  # a traceback only if one asks: --tb=short
        config.option.tbstyle = "no"


@pytest.fixture
def mine(request):
    """The module with the answers."""
    solutions = request.config.getoption("--solutions", default=False)
    return importlib.import_module("exercises." + ("solutions" if solutions else "diffusion"))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item):
    result = yield
    result.get_result().answered_by = item.funcargs.get("mine")


def pytest_report_teststatus(report):
    return report.outcome if report.when == "call" else "", "", ""  # nothing but our line


def pytest_runtest_logreport(report):
    if report.when == "call" and hasattr(report, "answered_by"):
        print(f"{report.nodeid.split('test_')[-1]:18} {verdict(report)}")


def verdict(report):
    if report.passed:
        return "right"
    crash = report.longrepr.reprcrash
    kind, _, message = crash.message.partition("\n")[0].partition(": ")
    if kind == "NotImplementedError":
        return "not written yet"
    if kind == "AssertionError":
        return f"not yet: {message}"
    return f"{kind}: {message} ({Path(crash.path).name}, line {crash.lineno})"

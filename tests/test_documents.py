"""The rules that keep the core small, and the documents: what they link to, name and promise."""

import ast
import doctest
import inspect
import math
import re
import shutil
import subprocess
import sys
from dataclasses import fields

import pytest
import torch

import distill
import flow
import model
from test_training import ENV, ROOT, run

CORE = ("model", "flow", "distill")
DOCUMENTS = [ROOT / "README.md", ROOT / "weights/README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_core_stands_alone(tmp_path):
    """model.py, flow.py and distill.py, copied alone into an empty folder, train a step."""
    for name in CORE:
        shutil.copy(ROOT / f"{name}.py", tmp_path)
    script = """
import copy, torch
from model import Config, Transformer, student_from
from flow import dfm_loss, generate
from distill import distillation_loss, update_ema
dfm = Transformer(Config(vocab_size=11, block_size=16, n_layer=1, n_head=2, dim=16, cond_dim=8))
x_1 = torch.randint(11, (8, 16))
dfm_loss(dfm, x_1).backward()
student = student_from(dfm)
start, teacher = copy.deepcopy(student), copy.deepcopy(student).requires_grad_(False)
distillation_loss(student, teacher, x_1).backward()
torch.optim.SGD(student.parameters(), 1.0).step()
update_ema(teacher, student, 0.5)
for before, after, ema in zip(start.parameters(), student.parameters(), teacher.parameters()):
    assert not ema.requires_grad
    torch.testing.assert_close(ema, (before + after) / 2)
assert not torch.equal(start.embedding.weight, student.embedding.weight)
print(generate(teacher, x_1, steps=4).shape)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, text=True,
                          capture_output=True)
    assert done.stdout == "torch.Size([8, 16])\n", done.stderr


def test_nothing_in_the_core_knows_what_attaches_to_it():
    """But for one lazy import: sample.py starts the race."""
    outside = r"^ *(?:from|import) (?:extras|show|experiments|exercises)\b.*"
    files = [*ROOT.glob("*.py"), *(ROOT / "data").glob("*.py"), ROOT / "config/command.py"]
    found = [line for path in files for line in re.findall(outside, path.read_text(), re.M)]
    assert found == ["        from show.command import main as race"]


def test_no_field_and_no_argument_chooses_between_two_methods():
    """Fields of a network's config are numbers, but for the two that say which of the three
    networks it is. Arguments of core functions are tensors, numbers or functions."""
    words = {field.name for field in fields(model.Config) if field.type not in (int, float)}
    assert words == {"step_aware", "causal"}
    for module in (flow, distill, model):
        for name, function in inspect.getmembers(module, inspect.isfunction):
            if function.__module__ == module.__name__:
                for parameter in inspect.signature(function).parameters.values():
                    assert not isinstance(parameter.default, (bool, str)), (name, parameter)


def test_lines_and_functions_are_short():
    for path in ROOT.rglob("*.py"):
        if ".venv" in path.parts:
            continue
        for number, line in enumerate(path.read_text().split("\n"), start=1):
            assert len(line) <= 100, f"{path}:{number}"
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 60, f"{path}:{node.lineno} {node.name}"


def test_the_lecture_is_right():
    """Every number behind >>> in docs/lecture.md."""
    failed, tried = doctest.testfile(str(ROOT / "docs/lecture.md"), module_relative=False)
    assert tried > 20 and not failed


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text()):
        if "://" not in target:
            assert (path.parent / target).exists(), target


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_commands_name_files_and_flags_that_exist(path):
    """In `python FILE.py --flag` of a document the file and every flag exist."""
    command = r"python (-m extras\.\w+|[\w/]+\.py)([^`\n|#&;]*)"
    for script, rest in re.findall(command, path.read_text()):
        name = script.replace("-m ", "").replace("extras.", "extras/")
        source = ROOT / (name if name.endswith(".py") else f"{name}.py")
        assert source.exists(), script
        text = source.read_text()
        if source.name == "sample.py":
            text += (ROOT / "show/command.py").read_text()
        for flag in re.findall(r"--([\w-]+)", rest):
            known = f'"--{flag}"' in text or re.search(rf"^{flag}(, \w+)* = ", text, re.M)
            assert known, f"{script} --{flag}"
        for config in re.findall(r"config/\w+\.py", rest):
            assert (ROOT / config).exists(), config


def test_the_python_of_the_readme_runs(tmp_path, monkeypatch):
    """The example of writing, another step, another network and another schedule."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    example, step, network, schedule = blocks
    monkeypatch.setitem(ENV, "PYTHONPATH", str(tmp_path))
    texts = run("-c", example).stdout.splitlines()
    assert len(texts) == 3 and all(text.startswith("Mia had a") for text in texts)
    (tmp_path / "mine.py").write_text(step)
    run("sample.py", "--sampler", "mine.top10")
    (tmp_path / "mine.py").write_text(network)
    for stage in ("dfm", "fsdfm"):
        run("train.py", stage, "config/tiny.py", "--architecture=mine.ConvNet", "--iterations=2",
            f"--out={tmp_path}")
        run("sample.py", "--model", stage, f"--out={tmp_path}")
    exec(schedule, names := {"math": math, "torch": torch})
    t = torch.tensor(0.3, requires_grad=True)
    names["kappa"](t).backward()
    assert torch.isclose(names["rate"](t), t.grad / (1 - names["kappa"](t)))
    monkeypatch.setattr(flow, "kappa", names["kappa"])
    x_t = flow.sample_path(torch.zeros(1, 10_000).long(), torch.tensor([0.5]), 10)
    assert abs((x_t == 0).float().mean() - 0.55) < 4 * 0.005  # 1/2 is text, and 1/20 by chance
    times = torch.tensor(flow.time_grid(1024))
    assert (flow.cumulative_scalar(times[:-1], times.diff()) >= 0).all()  # where 1 - kappa < 1e-8

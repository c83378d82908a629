"""Checks of machines that are not here: Apple GPUs, GPUs without bfloat16, Windows. What is special
about them is forced on this machine's CPU."""

import copy
import functools
import math
import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import flow
from command import DIE_AT_THE_FIRST_CHECKPOINT, PYDOCS, ROOT, TINY, copy_project, run
from common import device as devices
from common import fast, files
from common.command import UserError
from common.optimizer import make_optimizers, set_learning_rate
from common.run import Run
from data.dataset import Dataset
from model import ModelConfig, Transformer
from train import loss_of, make_config, update_weights

# ------------------------------------------------------------------------------------------------
# Apple GPUs


def test_an_apple_gpu_is_chosen(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert devices.pick_device().type == "mps"
    assert devices.pick_device("mps").type == "mps"
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert devices.pick_device().type == "cpu"
    for name, words in (("mps", "has no mps"), ("mps:1", "has no mps:1"), ("gpu", "no device")):
        with pytest.raises(UserError, match=words):
            devices.pick_device(name)


def test_a_batch_is_on_its_device():
    """On any, not on CUDA alone."""
    text = SimpleNamespace(train=[np.arange(64)], row=None, to_tensor=torch.from_numpy)
    assert Dataset.batch(text, "train", 2, 8, torch.device("meta")).device.type == "meta"


def test_a_number_format_that_computes(monkeypatch):
    """Not one without gradients, nor one whose GELU is NaN above 10 or whose products are wrong."""
    computes, cpu = devices.computes.__wrapped__, torch.device("cpu")
    assert computes(torch.float32, cpu) and computes(torch.bfloat16, cpu)
    assert not computes(torch.bool, cpu)
    layer, gelu = devices.layer, F.gelu

    def only_there(action):
        """The first call of layer, on the device, is wrong; the second, on the CPU, is not."""
        calls = iter((action, layer))
        monkeypatch.setattr(devices, "layer", lambda x: next(calls)(x))

    only_there(lambda x: layer(x) + torch.eye(16, 8))
    assert not computes(torch.bfloat16, cpu)
    monkeypatch.setattr(devices, "layer", layer)
    monkeypatch.setattr(F, "gelu", lambda x, **kind: gelu(x, **kind).masked_fill(x > 10, math.nan))
    assert not computes(torch.bfloat16, cpu)


def test_attention_on_an_apple_gpu_is_the_formula(monkeypatch):
    """In training and in sampling, where a CPU takes PyTorch's function for texts this long."""
    monkeypatch.setattr(fast, "attention_by_formula", lambda *arguments: "the formula")
    q, k, v = torch.rand(3, 1, 1, 2000, 4)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            assert fast.attention(q.as_subclass(OnAppleGPU), k, v) == "the formula"
    with torch.no_grad():
        assert torch.is_tensor(fast.attention(q, k, v))


def test_products_on_an_apple_gpu_have_two_dimensions(monkeypatch):
    """In every layer: no bias in the product, and no more than 2**14 rows of a weight."""
    shapes = []

    def linear(x, weight, bias=None):
        shapes.append((x.ndim, len(weight)))
        assert bias is None
        return x.as_subclass(torch.Tensor) @ weight.mT

    torch.manual_seed(1)
    config = ModelConfig(2**14 + 3, 8, n_layer=1, n_head=1, dim=8, cond_dim=8, step_aware=True)
    model = Transformer(config)
    x_t, t, h = torch.randint(100, (2, 8)), torch.rand(2), torch.rand(2)
    logits = model(x_t, t, h)
    monkeypatch.setattr(F, "linear", linear)
    for module in model.modules():
        if isinstance(module, fast.Linear):
            module.register_forward_pre_hook(lambda _, x: x[0].as_subclass(OnAppleGPU))
    torch.testing.assert_close(model(x_t, t, h).as_subclass(torch.Tensor), logits)
    assert len(shapes) == 1 + sum(isinstance(m, torch.nn.Linear) for m in model.modules())
    assert all(dimensions == 2 and rows <= 2**14 for dimensions, rows in shapes)


class OnAppleGPU(torch.Tensor):
    """A tensor on the CPU that says it is on an Apple GPU."""

    @property
    def device(self):
        return SimpleNamespace(type="mps")


@pytest.fixture
def float32_draws(monkeypatch):
    monkeypatch.setattr(flow, "finest_dtype", lambda device: torch.float32)


def test_float32_draws_keep_their_tails(float32_draws):
    """50,000 tokens of 1e-5, 1,000 of 1e-6, and one of 1: each group as often as it should be."""
    tails = torch.full((50_000,), 1e-5), torch.full((1000,), 1e-6)
    weights = torch.cat([*tails, torch.ones(1)])
    p = weights.double() / weights.double().sum()
    n, counts = 200_000, torch.zeros(3)
    groups = torch.tensor([0] * 50_000 + [1] * 1000 + [2])
    for _ in range(100):
        drawn = flow.categorical(weights.expand(n // 100, -1))
        counts += torch.bincount(groups[drawn], minlength=3)
    for group in range(3):
        expected = p[groups == group].sum().item()
        error = math.sqrt(expected * (1 - expected) / n)
        assert abs(counts[group].item() / n - expected) < 4.5 * error, group


def test_float32_draws_never_have_a_weight_of_zero(float32_draws, monkeypatch):
    """Zeros before, between and behind, for uniform numbers from 0 to the largest below 1."""
    largest, ends = 1 - 2.0**-24, (0, 62, 63, 64, 127, 128, 130, 190)
    weights = torch.linspace(0.1, 3, 200).repeat(len(ends) + 2, 1)
    for row, last in enumerate(ends):
        weights[row, last + 1 :] = 0
    weights[-2, :150] = 0
    weights[-1, torch.arange(200) != 198] = 0
    for u in (0.0, 1e-7, 0.3, largest):
        monkeypatch.setattr(torch, "rand", lambda n, *shape, **options: torch.full((n, 1), u))
        drawn = flow.categorical(weights)
        assert (weights.gather(1, drawn[:, None]) > 0).all(), (u, drawn)


def parallel_cumsum(x, dim):
    """Sums as a GPU adds them, in log2(V) rounds (Hillis and Steele 1986). Each is rounded in an
    order of its own, so that they need not grow from one to the next, nor stay at a zero."""
    shift = 1
    while shift < x.shape[dim]:
        x = torch.cat([x[..., :shift], x[..., shift:] + x[..., :-shift]], dim)
        shift *= 2
    return x


def test_a_parallel_sum_grows_at_a_weight_of_zero_and_is_never_drawn_there(monkeypatch):
    """The float32 form, with a uniform number just below each sum that grows where it should not:
    the plain form of categorical's docstring would draw that token."""
    torch.manual_seed(1)
    weights = torch.rand(2000, 64) * (torch.rand(2000, 64) < 0.5)
    cumulative = parallel_cumsum(weights, -1)
    grows = (weights[:, 1:] == 0) & (cumulative[:, 1:] > cumulative[:, :-1])
    row, before = grows.nonzero(as_tuple=True)
    assert len(row) > 1000
    u = cumulative[row, before] / cumulative[row, -1]
    plain = torch.searchsorted(cumulative[row], u[:, None] * cumulative[row, -1:], right=True)
    assert (weights[row].gather(1, plain.clamp(max=63)) == 0).sum() > 100
    monkeypatch.setattr(flow, "finest_dtype", lambda device: torch.float32)
    monkeypatch.setattr(torch.Tensor, "cumsum", parallel_cumsum)
    monkeypatch.setattr(torch, "rand", lambda *shape, **options: u[:, None])
    for block in (64, 1):
        drawn = flow.categorical(weights[row], block)
        assert (weights[row].gather(1, drawn[:, None]) > 0).all()


def test_nothing_is_compiled_where_triton_is_missing(monkeypatch):
    """As on Windows, with an NVIDIA GPU; nor for a GPU that is too old for Triton."""
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    capability = {"value": (8, 0)}
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability["value"])
    monkeypatch.setattr(devices.importlib.util, "find_spec", lambda name: None)
    assert not devices.can_compile(cuda)
    monkeypatch.setattr(devices.importlib.util, "find_spec", lambda name: name)
    assert devices.can_compile(cuda) and not devices.can_compile(cpu)
    capability["value"] = (6, 1)
    assert not devices.can_compile(cuda)


# ------------------------------------------------------------------------------------------------
# GPUs without bfloat16

FLOAT16 = """
import torch
import common.device
common.device.number_format = lambda device: torch.float16
import train
train.main()
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = copy_project(tmp_path_factory.mktemp("devices"))
    run(folder, "data/prepare.py", *PYDOCS[1:])
    return folder


def test_float16_trains_and_resumes(project):
    """With a gradient scaler, whose state is in the checkpoint: killed at iteration 20 and resumed,
    a run ends with the weights of an undisturbed one."""
    flags = ["dfm", *TINY, "--iterations", 40, "--validate-every", 20]
    run(project, "-c", FLOAT16, *flags, "--out", "whole")
    run(project, "-c", DIE_AT_THE_FIRST_CHECKPOINT + FLOAT16, *flags, "--out", "killed", status=9)
    run(project, "-c", FLOAT16, *flags, "--out", "killed", "--resume")
    whole, killed = (
        torch.load(project / out / "dfm.pt", weights_only=True) for out in ("whole", "killed")
    )
    assert whole["scaler"] == killed["scaler"] and whole["scaler"]["scale"] > 0
    for name, value in whole["model"].items():
        assert torch.equal(killed["model"][name], value)
    rows = (project / "whole/dfm.csv").read_text().split()[1:]
    losses = [float(row.split(",")[1]) for row in rows]
    assert losses[-1] < losses[0] - 0.3
    for stage in ("fsdfm", "dmd"):
        run(project, "-c", FLOAT16, stage, *TINY, "--iterations", 10, "--out", "whole")


@pytest.mark.parametrize("bad", [math.inf, math.nan])
@pytest.mark.parametrize("name", ["embedding.weight", "blocks.0.mlp.0.weight"])
def test_an_overflow_changes_no_weight(bad, name):
    """In a gradient of AdamW or of Muon: the weights of the other stay as they are, too."""
    torch.manual_seed(1)
    model = Transformer(ModelConfig(20, 8, n_layer=1, n_head=1, dim=8, cond_dim=8))
    settings = make_config("dfm", "tiny", block_size=8, batch_size=2)
    scaler = torch.amp.GradScaler("cpu")
    run = Run("dfm", settings, None, model, None, make_optimizers(model, settings), 1, None,
              scaler=scaler)
    set_learning_rate(run.optimizers, 10, settings)
    text = SimpleNamespace(batch=lambda *_: torch.randint(20, (2, 8)))
    loss_function = functools.partial(loss_of, "dfm", model, None)
    before = copy.deepcopy(model.state_dict())
    hook = model.get_parameter(name).register_hook(lambda gradient: torch.full_like(gradient, bad))
    update_weights(run, model, loss_function, text, torch.device("cpu"), 0)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert scaler.get_scale() == 2.0**15  # half of what it began with
    hook.remove()
    update_weights(run, model, loss_function, text, torch.device("cpu"), 0)
    assert not torch.equal(model.embedding.weight, before["embedding.weight"])


# ------------------------------------------------------------------------------------------------
# Windows

WITHOUT_FCNTL = 'raise ImportError("no fcntl on Windows")\n'
MSVCRT = """
import os
LK_NBLCK = 2
def locking(number, mode, size):
    try:
        os.lockf(number, os.F_TLOCK, size)
    except OSError as error:
        raise PermissionError(13, "Permission denied") from error
"""


@pytest.fixture(scope="module")
def windows(project, tmp_path_factory):
    """Code before a script: fcntl, termios, tty and resource cannot be imported, msvcrt can. A file
    that is open, or mapped into memory, is neither replaced nor deleted."""
    folder = tmp_path_factory.mktemp("windows")
    for name in ("fcntl", "termios", "tty", "resource"):
        (folder / f"{name}.py").write_text(WITHOUT_FCNTL)
    (folder / "msvcrt.py").write_text(MSVCRT)
    return f"""
import os, runpy, subprocess, sys
for name in ("fcntl", "termios", "tty", "resource"):
    sys.modules.pop(name, None)
sys.path.insert(0, {str(folder)!r})
script = sys.argv.pop(1)
sys.argv[0] = script
sys.path.insert(1, os.path.dirname(os.path.abspath(script)))
if hasattr(os, "sysconf"):
    del os.sysconf
def in_use(path):
    path = os.path.realpath(path)
    files = [f"/proc/self/fd/{{number}}" for number in os.listdir("/proc/self/fd")]
    mapped = open("/proc/self/maps").read()
    return path + "\\n" in mapped or path in [os.path.realpath(file) for file in files]
def refuse_in_use(action):
    def careful(*paths, **options):
        if any(map(in_use, paths)):
            raise PermissionError(13, f"in use, {{action.__name__}}", str(paths[-1]))
        return action(*paths, **options)
    return careful
if os.path.exists("/proc/self/maps"):
    os.replace, os.rename = refuse_in_use(os.replace), refuse_in_use(os.rename)
    os.unlink = refuse_in_use(os.unlink)
runpy.run_path(script, run_name="__main__")
"""


def test_every_script_starts_without_fcntl(project, windows):
    for script in [*project.glob("*.py"), *project.glob("*/*.py")]:
        if "run_command(main)" in script.read_text() and script.name != "command.py":
            result = run(project, "-c", windows, script.relative_to(project).as_posix(), "--help")
            assert "--help" in result.stdout, script


def test_the_tiny_path_without_fcntl(project, windows):
    for stage in ("judge", "dfm", "fsdfm", "dmd"):
        flags = ["train.py", stage, *TINY, "--iterations", 12, "--validate-every", 4]
        run(project, "-c", DIE_AT_THE_FIRST_CHECKPOINT + windows, *flags, status=9)
        run(project, "-c", windows, *flags, "--resume")
    run(project, "-c", windows, "sample.py", "--steps", 2)
    run(project, "-c", windows, "sample.py", "--race", "dfm:2", "fsdfm:2")
    run(project, "-c", windows, "eval.py", *PYDOCS, "--steps", 1, 2, "--num-samples", 2)
    run(project, "-c", windows, "plot.py")


def test_a_file_that_is_held_for_a_moment_is_replaced(tmp_path, monkeypatch):
    """Refused for the first times, as where a virus scanner reads it. If it is refused for long,
    the old file stays, and the error says so."""
    path, refused = tmp_path / "file", []

    def replace(source, target):
        if len(refused) < times:
            refused.append(target)
            raise PermissionError(13, "Permission denied")
        os_replace(source, target)

    os_replace = os.replace
    monkeypatch.setattr(os, "replace", replace)
    monkeypatch.setattr(files.time, "sleep", lambda seconds: None)
    for times, text in ((0, "old"), (7, "new")):
        files.write_text(path, text)
        assert path.read_text() == text and len(refused) == times
    times = 1000
    with pytest.raises(UserError, match="cannot write .* Permission denied"):
        files.write_text(path, "newest")
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="needs Linux's /proc")
def test_a_text_in_use_stays(project, windows):
    """Prepared again while a training reads it, as Windows refuses it: it can be used as before."""
    flags = ["data/prepare.py", "text", "--text", "README.md", "--overwrite"]
    shutil.copy(ROOT / "README.md", project)
    run(project, *flags)
    before = [(project / f"data/text/{name}").read_bytes() for name in ("train.bin", "meta.json")]
    held = "held = open('data/text/train.bin')\nimport time\ntime.sleep = lambda seconds: None\n"
    flags += ["--vocab-size", 300]
    line = run(project, "-c", held + windows, *flags, status=2).stderr
    assert "in use" in line and "Traceback" not in line
    after = [(project / f"data/text/{name}").read_bytes() for name in ("train.bin", "meta.json")]
    assert before == after
    run(project, "-c", windows, *flags)
    assert (project / "data/text/train.bin").read_bytes() != before[0]


def test_the_other_lock_refuses(project, windows):
    """A second process that wants the lock of the first is told so."""
    (project / "hold.py").write_text(
        "import sys; sys.path.insert(0, '.')\n"
        "import subprocess\n"
        "from pathlib import Path\n"
        "from common.files import lock\n"
        "held = lock(Path('held.lock'))\n"
        "print(bool(held))\n"
        "if len(sys.argv) < 2:\n"
        f"    code = {windows!r}\n"
        "    again = [sys.executable, '-c', code, 'hold.py', 'again']\n"
        "    print(subprocess.run(again, capture_output=True, text=True).stderr)\n"
    )
    result = run(project, "-c", windows, "hold.py")
    assert "another process is at work here" in result.stdout

"""How fast is each part, and what is the code for speed worth?

    python experiments/bench.py                     at the size of config/stories.py
    python experiments/bench.py config/pydocs.py --block_size=256    any settings of train.py

train.py runs here for one iteration of the DFM and one of FS-DFM, in a temporary folder. It leaves
the networks, the optimizers and the loss, compiled or not, that it trains with, and these are
measured. The two sides of a comparison run in turn in one process, so that their ratio means
something on any machine. The seconds are this machine's, each the median of repeated runs after a
warm-up. Prints a Markdown table; results are in docs/speed.md.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # model.py is there

import config.command  # before torch

import contextlib
import platform
import runpy
import signal
import statistics
import tempfile
import time
from functools import partial
from types import SimpleNamespace
from unittest import mock

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

import model as model_file
from distill import update_ema
from sample import fill, load_model

AT_MOST = 15, 5.0  # rounds of a comparison, and seconds; but at least 3 rounds

# ------------------------------------------------------------------------------------------------
# measuring


def seconds_of(function, device):
    """Seconds of one function(), by the device's own clock on CUDA."""
    if device.type == "cuda":
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began.record()
        function()
        ended.record()
        torch.cuda.synchronize()
        return began.elapsed_time(ended) / 1000
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def in_turn(functions, device):
    """Median seconds of each function, run as A B A B ..., since a machine's speed drifts."""
    times = [[] for _ in functions]
    for function in functions:  # warm-up
        function()
    began = time.perf_counter()
    while len(times[0]) < 3 or (
        len(times[0]) < AT_MOST[0] and time.perf_counter() - began < AT_MOST[1]
    ):
        for function, own in zip(functions, times):
            own.append(seconds_of(function, device))
    return [statistics.median(own) for own in times]


def compare(part, device, **functions):
    """A line of the table, for two functions. Their median seconds."""
    first, second = in_turn(functions.values(), device)
    names = ", ".join(name.replace("_", " ") for name in functions)
    line = f"| {part}: {names} | {first:.4f} s | {second:.4f} s | {first / second:.2f} |"
    print(line, flush=True)
    return first, second


# ------------------------------------------------------------------------------------------------
# training


def train_once(stage, arguments, out):
    """All names of train.py after one iteration of the stage, with the settings given."""
    sys.argv = ["train.py", stage, *arguments, "--iterations=1", f"--out={out}"]
    with contextlib.redirect_stdout(sys.stderr):
        names = runpy.run_path(str(ROOT / "train.py"))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # train.py has one of its own
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    return SimpleNamespace(**names)


def step(run, loss_of, amp):
    """One iteration, as in the loop of train.py."""
    with amp:
        loss = loss_of(run.model, run.teacher, run.batch("train", run.batch_size))
    run.scaler.scale(loss).backward()
    for optimizer in run.optimizers:
        run.scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(run.model.parameters(), run.clip)
    for optimizer in run.optimizers:
        run.scaler.step(optimizer)
        optimizer.zero_grad()
    run.scaler.update()
    if run.teacher is not None:
        update_ema(run.teacher, run.model, 0.98)


def with_plain_attention(function):
    """function() with scaled_dot_product_attention in every block."""
    def attend(q, k, v, causal):
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal)

    with mock.patch.object(model_file, "attend", attend):
        function()


def compare_training(dfm, fsdfm):
    """Steps of the two stages, and of the DFM without what makes it fast."""
    device, amp = dfm.device, dfm.amp
    steps = [partial(step, run, run.training_loss, amp) for run in (dfm, fsdfm)]
    seconds, _ = compare("training step", device, DFM=steps[0], FS_DFM=steps[1])
    part = "DFM's training step"
    if device.type == "cpu" and amp._enabled:  # in float32 there is no formula
        sdpa = partial(with_plain_attention, steps[0])
        compare(part, device, scaled_dot_product_attention=sdpa, formula=steps[0])
    eager = partial(step, dfm, dfm.loss_of, amp)
    if amp._enabled:
        float32 = torch.autocast(device.type, enabled=False)
        compare(part, device, float32=partial(step, dfm, dfm.loss_of, float32), autocast=eager)
    if dfm.training_loss is not dfm.loss_of:
        compare(part, device, eager=eager, compiled=steps[0])

    # operations, of a network that is not compiled: torch.compile gives up under the counter
    with FlopCounterMode(display=False) as counter:
        eager()
    size = 8192 if device.type == "cuda" else 2048
    a, b = torch.randn(2, size, size, device=device)
    with amp:
        rate = 2 * size**3 / in_turn([partial(torch.matmul, a, b)], device)[0]
    share = counter.get_total_flops() / rate / seconds
    tokens = dfm.batch_size * dfm.block_size
    return (f"DFM's training step: {tokens / seconds:,.0f} tokens a second, {share:.0%} of the "
            f"rate of a large matrix product, {rate / 1e12:.2f} TFLOP/s.")


def main():
    arguments = sys.argv[1:]
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return
    with tempfile.TemporaryDirectory() as out:
        runs = [train_once(stage, arguments, out) for stage in ("dfm", "fsdfm")]
        device = runs[0].device
        model, _ = load_model(f"{out}/fsdfm.pt", device)
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else (
        f"{torch.get_num_threads()} threads of {platform.machine()}")
    print(f"{machine}, torch {torch.__version__}, {' '.join(arguments) or 'config/stories.py'}\n")
    print("| part: first, second | first | second | ratio |\n| --- | ---: | ---: | ---: |")
    note = compare_training(*runs)
    template = torch.full((1, model.config.block_size), -1, device=device)  # all to be written
    compare(f"a text of {model.config.block_size:,} tokens", device, **{
        f"{steps:,} steps": partial(fill, model, template, steps) for steps in (1024, 8)})
    print(f"\n{note}")


if __name__ == "__main__":
    main()

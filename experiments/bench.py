"""How fast is each part, and how far from what the machine could do?

    python experiments/bench.py                         every part, at the size of train.py
    python experiments/bench.py --preset paper-small    the paper's small network
    python experiments/bench.py --only sampler growth   some parts alone

Each comparison runs a baseline and ours in one process, in turn, so that the ratio means something
on any machine; the seconds are this machine's. "of the limit" is the roofline: operations divided
by the matrix rate, or bytes divided by the copy rate, which are both measured first. Every number
is the median of repeated runs after a warm-up. Data are random, since zeros can be faster. Extra
memory is the peak of a process minus what it held before, in a process of its own. The table is
Markdown, and is also written to OUT/bench.json. Results: docs/speed.md.
"""

import json
import math
import multiprocessing
import os
import re
import statistics
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

# `python experiments/bench.py` puts experiments/ on the path, and model.py is one folder above
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import common.early  # first: Ctrl-C is quiet from here on

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from common.command import Parser, UserError, run_command
from common.device import autocast, can_compile, pick_device
from common.files import OUT, write_text
from common.judge import generate_autoregressive
from common.optimizer import make_optimizers
from eval import machine_name
from flow import Sampler, categorical, cumulative_scalar, finest_dtype, generate, jump
from flow import sample_source
from model import ModelConfig, Transformer
from train import NETWORK, PRESETS, loss_of, make_config

GPT2 = 50257  # the vocabulary of the paper's networks
LONG = 1024  # tokens of the paper's texts
ROW = "| {:62} | {:>9} | {:>7} | {:>12} |"


@dataclass
class Bench:
    """Where and what is measured."""

    device: torch.device
    preset: str
    out: Path
    matrix_rate: float  # floating-point operations a second
    copy_rate: float  # bytes a second


@dataclass
class Line:
    """A line of the table."""

    what: str
    value: float | None = None  # seconds or bytes
    ratio: float | None = None  # the baseline's value over this one: above 1 is better
    of_limit: float | None = None  # the share of what the machine could do
    unit: str = "s"  # or "bytes"

    def __str__(self):
        """A row of a Markdown table."""
        value = ratio = of_limit = ""
        if self.value is not None:
            value = f"{self.value:.4f} s" if self.unit == "s" else f"{self.value / 1e6:.0f} MB"
        if self.ratio is not None:
            ratio = f"{self.ratio:.2f}x"
        if self.of_limit is not None:
            of_limit = f"{self.of_limit:.0%}"
        return ROW.format(self.what, value, ratio, of_limit)


# ------------------------------------------------------------------------------------------------
# measuring


def seconds_once(function, device):
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
    if device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter() - began


def seconds(function, device, repeats=5, warm_up=True):
    """Median seconds of function(). Fewer repeats where they take more than 20 s together."""
    if warm_up:
        function()
    times = []
    while len(times) < repeats and sum(times) < 20:
        times.append(seconds_once(function, device))
    return statistics.median(times)


def seconds_in_turn(functions, device, repeats=15):
    """Median seconds of each function, run as A B C A B C ..., so that their ratios hold while the
    machine's speed drifts."""
    times = [[] for _ in functions]
    for number in range(repeats + 2):
        for function, own in zip(functions, times):
            value = seconds_once(function, device)
            if number >= 2:  # after two warm-up rounds
                own.append(value)
    return [statistics.median(own) for own in times]


def peak_memory(device):
    """The most bytes that this process has held so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        raise UserError("Windows does not say how much memory a process has held: use --only")
    if sys.platform == "darwin":
        import resource  # not on Windows

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # on Linux ru_maxrss begins with that of the parent process
    status = Path("/proc/self/status").read_text("utf-8")
    return 1024 * int(re.search(r"VmHWM:\s+(\d+)", status)[1])


def measure_memory(make, arguments):
    """The extra memory of make(*arguments)(), in bytes. arguments[0] is the device."""
    function = make(*arguments)
    before = peak_memory(arguments[0])
    function()
    return peak_memory(arguments[0]) - before


def extra_memory(make, *arguments):
    """measure_memory in a process of its own, whose peak so far is what `make` holds."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure_memory, make, arguments).result()


def machine_limits(device):
    """(operations a second of a large matrix product in the number format of the networks, bytes a
    second that a large copy reads and writes)."""
    size = 8192 if device.type == "cuda" else 2048
    a, b = torch.randn(2, size, size, device=device)
    with autocast(device):
        matrix_rate = 2 * size**3 / seconds(partial(torch.matmul, a, b), device)
    source, target = torch.randn(2, 2**26, device=device)
    return matrix_rate, 2 * source.nbytes / seconds(partial(target.copy_, source), device)


def make_network(preset, device, vocab_size, **changes):
    """A network of the preset's shape with random weights, none of them zero."""
    config = make_config("dfm", preset)
    shape = {name: getattr(config, name) for name in (*NETWORK, "dropout")}
    torch.manual_seed(1)
    network = Transformer(ModelConfig(vocab_size=vocab_size, **(shape | changes))).to(device)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    return network


def compare(title, make, baseline, ours, bench):
    """Two lines of seconds, two of extra memory: make(device, name)() for the names of a baseline
    and of ours, which work on 1,024 distributions over GPT-2's tokens."""
    functions = [make(bench.device, name) for name in (baseline, ours)]
    first, second = seconds_in_turn(functions, bench.device, 5)
    limit = LONG * GPT2 * 4 / bench.copy_rate  # every float32 is read once
    yield Line(f"{title}: {baseline}", first, 1, limit / first)
    yield Line(f"the same, {ours}", second, first / second, limit / second)
    del functions
    first, second = (extra_memory(make, bench.device, name) for name in (baseline, ours))
    yield Line(f"its extra memory: {baseline}", first, 1, unit="bytes")
    yield Line(f"the same, {ours}", second, first / second, unit="bytes")


# ------------------------------------------------------------------------------------------------
# part "sampler": a step without the network


def textbook_jump(x_t, logits, t, h):
    """The same step as flow.jump, written as in a textbook: with the whole generator (B, L, V)."""
    p = logits.softmax(-1)  # (B, L, V)
    one_hot = F.one_hot(x_t, p.shape[-1])  # (B, L, V)
    generator = cumulative_scalar(t, h)[:, None, None] * (p - one_hot)
    generator = torch.where(one_hot == 1, 0, generator)
    p_jump = 1 - torch.exp(-h[:, None] * generator.sum(-1))  # (B, L)
    jumps = torch.rand(x_t.shape, device=x_t.device) < p_jump
    x_next = x_t.clone()
    x_next[jumps] = torch.multinomial(generator[jumps], 1).squeeze(-1)
    return x_next


def textbook_categorical(weights):
    """flow.categorical in the two lines of its docstring: (..., V) -> (...)."""
    exact = finest_dtype(weights.device)
    u = torch.rand(*weights.shape[:-1], 1, dtype=exact, device=weights.device)
    cumulative = weights.to(exact).cumsum(-1)
    return torch.searchsorted(cumulative, u * cumulative[..., -1:], right=True).squeeze(-1)


def make_jump(device, name):
    """A step from t = 1/2 to 5/8, for one text of 1,024 of GPT-2's tokens."""
    torch.manual_seed(1)
    x_t = torch.randint(GPT2, (1, LONG), device=device)
    logits = torch.randn(1, LONG, GPT2, device=device)
    t, h = torch.tensor([0.5], device=device), torch.tensor([0.125], device=device)
    if name == "textbook":
        return partial(textbook_jump, x_t, logits, t, h)
    return partial(jump, x_t, logits, t, h, ModelConfig(vocab_size=GPT2, block_size=LONG))


def make_draw(device, name):
    """One draw from each of 1,024 distributions over GPT-2's tokens."""
    torch.manual_seed(1)
    weights = torch.rand(LONG, GPT2, device=device)
    return partial(textbook_categorical if name == "two lines" else categorical, weights)


@torch.no_grad()
def call(network, x_t, t):
    with autocast(x_t.device):
        return network(x_t, t)


def sampler(bench):
    size = "V 50,257, L 1,024"
    yield from compare(f"sampler step, {size}", make_jump, "textbook", "flow.jump", bench)
    yield from compare(f"draws, {size}", make_draw, "two lines", "flow.categorical", bench)
    network = make_network("paper-small", bench.device, GPT2).eval()
    x_t = torch.randint(GPT2, (1, LONG), device=bench.device)
    t = torch.tensor([0.5], device=bench.device)
    functions = [partial(call, network, x_t, t), make_jump(bench.device, "flow.jump")]
    network_alone, jump_alone = seconds_in_turn(functions, bench.device, 5)
    yield Line("the paper's small network, one call", network_alone, 1)
    yield Line("flow.jump beside it", jump_alone, network_alone / jump_alone)


# ------------------------------------------------------------------------------------------------
# part "generation": whole texts


def write(network, batch, steps, length=LONG, settings=Sampler()):
    """`batch` texts from noise: (batch, length)."""
    device = next(network.parameters()).device
    x_0 = sample_source((batch, length), network.config, device)
    with autocast(device):
        return generate(network, x_0, steps, settings)


def write_autoregressive(judge, batch, given=1):
    """`batch` texts of 1,024 tokens, token by token with a cache; the first tokens are given."""
    device = next(judge.parameters()).device
    x = torch.ones(batch, given, dtype=torch.int64, device=device)
    with autocast(device):
        return generate_autoregressive(judge, x, LONG)


def largest_batch(network, judge, device):
    """On CUDA the largest power of 2 that fits; on a CPU, where more does not help, 16."""
    batch = 16
    while device.type == "cuda":
        try:
            write(network, 2 * batch, 1)
            write_autoregressive(judge, 2 * batch, LONG - 1)
            batch *= 2
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()
            break
    return batch


def generation(bench):
    """1,024 tokens in 1,024 steps against 8, and token by token against 8 steps: one text alone,
    and many at a time."""
    device = bench.device
    network = make_network(bench.preset, device, 1024, step_aware=True).eval()
    judge = make_network(bench.preset, device, 1024, causal=True).eval()
    few = seconds(partial(write, network, 1, 8), device, 9)
    many = seconds(partial(write, network, 1, 1024), device, 3, warm_up=False)
    yield Line("1,024 tokens in 1,024 steps", many, 1)
    yield Line("the same in 8 steps", few, many / few)
    if can_compile(device):
        compiled = partial(write, network, 1, 8, settings=Sampler(compile=True))
        compiled = seconds(compiled, device, 9)
        yield Line("the same, compiled", compiled, few / compiled)
    for batch in (1, largest_batch(network, judge, device)):
        token_by_token = seconds(partial(write_autoregressive, judge, batch), device, 3)
        few = seconds(partial(write, network, batch, 8), device, 3)
        yield Line(f"{batch} x 1,024 tokens, token by token with a cache", token_by_token, 1)
        yield Line("the same in 8 steps", few, token_by_token / few)


# ------------------------------------------------------------------------------------------------
# part "training": one iteration of each stage

STUDENTS = {
    "FS-DFM step, default": {},
    "FS-DFM step, paper's step weights": {"data_steps": 1024, "step_weights": "paper"},
    "FS-DFM step, uniform step weights, data loss at 1/1024 alone": {
        "data_steps": 1024, "step_weights": "uniform",
    },
}


def train_once(loss_function, optimizers, x_1, config):
    with autocast(x_1.device):
        loss = loss_function(x_1, config)
    loss.backward()
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()


def make_step(stage, bench, x_1, vocab_size, changes, compiled):
    """A function that trains a network of the stage for one iteration."""
    config = make_config(stage, bench.preset, **changes)
    shape = (bench.preset, bench.device, vocab_size)
    network = make_network(*shape, step_aware=stage == "fsdfm").train()
    teacher = make_network(*shape, step_aware=True).requires_grad_(False).eval()
    loss_function = loss_of
    if compiled and stage == "dfm":  # as in train.py
        loss_function = torch.compile(loss_of)
    elif compiled:
        network.compile()
        teacher.compile()
    loss_function = partial(loss_function, stage, network, teacher)
    return partial(train_once, loss_function, make_optimizers(network, config), x_1, config)


def training(bench):
    """Optimizers included. Short texts have a vocabulary of 1,024, long ones GPT-2's; the batch is
    the preset's, or on a CPU 4 long texts."""
    config = make_config("dfm", bench.preset)
    on_cuda, long = bench.device.type == "cuda", config.block_size > 256
    vocab_size = GPT2 if long else 1024
    batch_size = 4 if long and not on_cuda else config.batch_size
    x_1 = torch.randint(vocab_size, (batch_size, config.block_size), device=bench.device)
    # operations, of a network that is not compiled: torch.compile gives up under the counter
    with FlopCounterMode(display=False) as counter:
        make_step("dfm", bench, x_1, vocab_size, {}, compiled=False)()
    compiled = can_compile(bench.device)
    steps = [make_step("dfm", bench, x_1, vocab_size, {}, compiled)]
    for changes in STUDENTS.values():
        steps.append(make_step("fsdfm", bench, x_1, vocab_size, changes, compiled))
    dfm, *students = seconds_in_turn(steps, bench.device, 25)
    size = f"{batch_size} x {config.block_size} tokens, V {vocab_size:,}"
    limit = counter.get_total_flops() / bench.matrix_rate
    yield Line(f"DFM training step, {size}", dfm, 1, limit / dfm)
    for name, student in zip(STUDENTS, students):
        yield Line(name, student, dfm / student)


# ------------------------------------------------------------------------------------------------
# parts "growth" and "start"


def growth_exponent(sizes, times):
    """The slope of log(times) over log(sizes), by least squares: times grow as sizes ** slope."""
    x, y = ([math.log(value) for value in values] for values in (sizes, times))
    return statistics.linear_regression(x, y).slope


def growth(bench):
    """How seconds grow with the length of a text and with the number of steps."""
    network = make_network(bench.preset, bench.device, 1024, step_aware=True).eval()
    lengths, steps = [2**i for i in range(8, 14)], [2**i for i in range(11)]
    times = []
    for length in lengths:
        times.append(seconds(partial(write, network, 1, 2, length), bench.device, 3))
        yield Line(f"2 steps, {length:,} tokens", times[-1], times[0] / times[-1])
    whole, upper = growth_exponent(lengths, times), growth_exponent(lengths[3:], times[3:])
    yield Line(f"exponent of the length: {whole:.2f}; of its upper half: {upper:.2f}")
    length = network.config.block_size
    times = [seconds(partial(write, network, 1, n, length), bench.device, 3) for n in steps]
    yield Line(f"exponent of the steps, 1 to 1,024: {growth_exponent(steps, times):.2f}")


def start(bench):
    """Seconds of the whole command, from the shell to the first text."""
    path = bench.out / "fsdfm.pt"
    if not path.exists():
        yield Line(f"start of sample.py: not measured, there is no {path}")
        return
    baseline = None
    for flag in ("--no-compile", "--compile"):
        flags = ["--out", str(bench.out), "--device", str(bench.device), flag]
        began = time.perf_counter()
        result = subprocess.run(
            [sys.executable, ROOT / "sample.py", *flags], capture_output=True, text=True
        )
        value = time.perf_counter() - began
        if result.returncode:
            line = result.stderr.strip().splitlines()[-1].removeprefix("error: ")
            raise UserError(f"sample.py failed: {line}")
        baseline = baseline or value
        yield Line(f"python sample.py {flag}, from the shell to the text", value, baseline / value)


PARTS = {  # and the most lines that each has, for the progress bar
    "sampler": (sampler, 10), "generation": (generation, 7), "training": (training, 4),
    "growth": (growth, 8), "start": (start, 2),
}

# ------------------------------------------------------------------------------------------------
# the command


def parse_arguments():
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--only", choices=PARTS, nargs="+", default=list(PARTS), metavar="PART",
        help=f"of: {', '.join(PARTS)} (default: all)")
    add("--preset", choices=PRESETS, help="of train.py (default: gpu with CUDA, else cpu-text)")
    add("--out", type=Path, default=OUT,
        help="folder of bench.json, which is written, and of fsdfm.pt (default: out)")
    add("--device", help="cpu, cuda, cuda:N or mps (default: a GPU if there is one)")
    return parser.parse_args()


def measure_parts(names, bench, bar):
    """Prints the table. Its rows, for bench.json."""
    rate, copied = bench.matrix_rate / 1e12, bench.copy_rate / 1e9
    bar.write(f"{machine_name(bench.device)}, torch {torch.__version__}, preset {bench.preset}: "
              f"{rate:.2f} TFLOP/s in matrix products, {copied:.1f} GB/s copied\n")
    bar.write(ROW.format("part", "measured", "ratio", "of the limit"))
    bar.write("| --- | ---: | ---: | ---: |")
    rows = []
    for name in names:
        bar.set_description(name)
        for line in PARTS[name][0](bench):
            bar.write(str(line))
            bar.update()
            rows.append({"part": name} | asdict(line))
    return rows


def main():
    arguments = parse_arguments()
    device = pick_device(arguments.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    preset = arguments.preset or ("gpu" if device.type == "cuda" else "cpu-text")
    torch.set_float32_matmul_precision("high")
    os.environ.pop("GLIBC_TUNABLES", None)  # processes that measure memory must return it
    total = 1 + sum(PARTS[part][1] for part in arguments.only)
    with tqdm(total=total, desc="limits of the machine", unit="line", leave=False) as bar:
        bench = Bench(device, preset, arguments.out, *machine_limits(device))
        bar.update()
        rows = measure_parts(arguments.only, bench, bar)
    report = {"machine": machine_name(device), "torch": torch.__version__, "preset": preset}
    report |= {"matrix_rate": bench.matrix_rate, "copy_rate": bench.copy_rate, "rows": rows}
    write_text(arguments.out / "bench.json", json.dumps(report, indent=1))


if __name__ == "__main__":
    run_command(main)

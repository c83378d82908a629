"""How fast is each part, and how far from what the machine could do?

    python bench.py                          every part, with the network of the preset that train.py would choose
    python bench.py --preset paper-small     that of the paper's small network
    python bench.py --only sampler loss      some parts alone

Each line compares two ways of doing the same in one run, so that the ratio means something on any machine; the seconds are this
machine's. "of the limit" is the roofline: the operations over the matrix rate, or the bytes over the copy rate, which are both
measured first. Medians of repeated runs after a warm-up; random numbers everywhere, since zeros can be faster. Memory is the
highest of the whole process less what it held before, each in a process of its own. The table goes to OUT/bench.json, too.
"""

import argparse
import json
import math
import multiprocessing
import os
import re
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

import flow
from checkpoint import Parser, pick_device, run_command, write_safely
from flow import cumulative_scalar, generalized_kl, generate, in_parts, jump, make_step, sample_path, sample_source, sample_times, step_times
from judge import generate_autoregressive
from model import ModelConfig, Transformer, autocast
from optimizer import make_optimizers
from train import PRESETS, SETTINGS, make_loss, preset_value

GPT2 = 50257  # the vocabulary of the paper's networks

# ---------------------------------------------------------------------------------------------------------------
# measuring


def seconds(function, device, repeats=5, warm_up=True):
    """Median seconds of function() on `device`, by its own clock on CUDA. Of fewer repeats where they take more than 20 s together."""
    if warm_up:
        function()
    times = []
    while len(times) < repeats and sum(times) < 20:
        if device.type == "cuda":
            began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            began.record()
            function()
            ended.record()
            torch.cuda.synchronize()
            times.append(began.elapsed_time(ended) / 1000)
        else:
            began = time.perf_counter()
            function()
            times.append(time.perf_counter() - began)
    return statistics.median(times)


def seconds_in_turn(functions, device, repeats=15):
    """The same for several functions, A B C A B C ..., so that their ratios hold while the machine's speed drifts."""
    times = [[] for _ in functions]
    for number in range(repeats + 2):
        for function, own in zip(functions, times):
            if number >= 2:
                own.append(seconds(function, device, repeats=1, warm_up=False))
            else:
                function()
    return [statistics.median(own) for own in times]


def highest_memory(device):
    """The most bytes that this process has held so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "darwin":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # getrusage's number on Linux begins with that of the process it was started from
    return 1024 * int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def measure_memory(make, arguments, answer):
    """Runs in a process of its own: make(*arguments) -> function, whose extra memory in bytes is put into the queue `answer`."""
    device, function = arguments[0], make(*arguments)
    before = highest_memory(device)
    function()
    answer.put(highest_memory(device) - before)


def extra_memory(make, *arguments):
    """Bytes that make(*arguments)() needs beyond what make has allocated before."""
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    process = context.Process(target=measure_memory, args=(make, arguments, answer))
    process.start()
    size = answer.get()
    process.join()
    return size


def machine_limits(device):
    """Floating-point operations a second of a large matrix product, in the type that the networks use, and bytes a second, read and
    written, of a large copy."""
    size = 8192 if device.type == "cuda" else 2048
    a, b = torch.randn(2, size, size, device=device)
    with autocast(device):
        matrix_rate = 2 * size**3 / seconds(lambda: a @ b, device)
    source, target = torch.randn(2, 2**26, device=device)
    return matrix_rate, 2 * source.nbytes / seconds(lambda: target.copy_(source), device)


def make_network(preset, device, vocab_size, **changes):
    """A network of the preset with random weights, none of them zero."""
    shape = {name: preset_value(name, preset, "dfm") for name in ("block_size", "n_layer", "n_head", "dim", "cond_dim")}
    torch.manual_seed(1)
    network = Transformer(ModelConfig(vocab_size=vocab_size, **(shape | changes))).to(device)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    return network


# ---------------------------------------------------------------------------------------------------------------
# the sampler's step without the network


def textbook_jump(x_t, logits, t, h):
    """The same step as flow.jump, written as in a textbook: with the whole generator, (B, L, V)."""
    probs = logits.softmax(-1)
    here = F.one_hot(x_t, probs.shape[-1])
    generator = cumulative_scalar(t, h)[:, None, None] * (probs - here)
    generator = torch.where(here == 1, 0, generator)
    jumps = torch.rand(x_t.shape, device=x_t.device) < 1 - torch.exp(-h[:, None] * generator.sum(-1))
    x_next = x_t.clone()
    x_next[jumps] = torch.multinomial(generator[jumps], 1).squeeze(-1)
    return x_next


def make_jump(device, textbook):
    """One text of 1,024 of GPT-2's tokens, from t = 1/2 to 5/8."""
    torch.manual_seed(1)
    config = ModelConfig(vocab_size=GPT2, block_size=1024)
    x_t, logits = torch.randint(GPT2, (1, 1024), device=device), torch.randn(1, 1024, GPT2, device=device)
    t, h = torch.tensor([0.5], device=device), torch.tensor([0.125], device=device)
    return (lambda: textbook_jump(x_t, logits, t, h)) if textbook else (lambda: jump(x_t, logits, t, h, config))


def sampler(preset, device, limits):
    limit = 1024 * GPT2 * 4 / limits[1]  # every logit read once
    theirs, ours = seconds_in_turn([make_jump(device, textbook) for textbook in (True, False)], device, 5)
    yield "sampler step, V 50,257, L 1,024: textbook", theirs, 1, limit / theirs
    yield "the same, flow.jump", ours, theirs / ours, limit / ours
    theirs, ours = (extra_memory(make_jump, device, textbook) for textbook in (True, False))
    yield "its extra memory: textbook", theirs, 1, None
    yield "the same, flow.jump", ours, theirs / ours, None
    network = make_network("paper-small", device, GPT2).eval()
    x_t, t = torch.randint(GPT2, (1, 1024), device=device), torch.tensor([0.5], device=device)

    @torch.no_grad()
    def call():
        with autocast(device):
            network(x_t, t)

    jump_alone, whole = seconds_in_turn([make_jump(device, False), call], device, 5)
    yield "the paper's small network, one call", whole, 1, None
    yield "flow.jump beside it", jump_alone, whole / jump_alone, None


# ---------------------------------------------------------------------------------------------------------------
# whole texts


def generation(preset, device, limits):
    """1,024 tokens in 1,024 steps and in 8; the causal network with its cache against 8 steps, alone and in a large batch."""
    network = make_network(preset, device, 1024, step_aware=True).eval()
    judge = make_network(preset, device, 1024, causal=True).eval()

    def write(batch, steps, length=1024, step=make_step(network)):
        x_0 = sample_source((batch, length), network.config, device)
        with autocast(device):
            return generate(step, x_0, step_times(steps))

    def autoregressive(batch, given=1):
        with autocast(device):
            return generate_autoregressive(judge, torch.ones(batch, given, dtype=torch.int64, device=device), 1024)

    few = seconds(lambda: write(1, 8), device, 9)
    many = seconds(lambda: write(1, 1024), device, 3, warm_up=False)
    yield "1,024 tokens in 1,024 steps", many, 1, None
    yield "the same in 8 steps", few, many / few, None
    if device.type == "cuda":
        for mode in ("default", "reduce-overhead"):
            compiled_step = torch.compile(make_step(network), mode=mode)

            def step(*state):
                return compiled_step(*state).clone()  # a CUDA graph writes its next answer where this one is

            compiled = seconds(lambda: write(1, 8, step=step), device, 9)
            yield f"the same, compiled, mode {mode}", compiled, few / compiled, None
    for batch in (1, largest_batch(lambda batch: (write(batch, 1), autoregressive(batch, 1023)), device)):
        one_by_one = seconds(lambda: autoregressive(batch), device, 3)
        few = seconds(lambda: write(batch, 8), device, 3)
        yield f"{batch} x 1,024 tokens one by one, with a cache", one_by_one, 1, None
        yield "the same in 8 steps", few, one_by_one / few, None


def largest_batch(run, device):
    """On CUDA the largest power of 2 that fits; on a CPU, where more does not help, 16."""
    batch = 16
    while device.type == "cuda":
        try:
            run(2 * batch)
            batch *= 2
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()
            return batch
    return batch


# ---------------------------------------------------------------------------------------------------------------
# training


def training(preset, device, limits):
    """One iteration of each stage, optimizers included. The vocabulary is 1,024 for short texts, else GPT-2's; the batch the preset's, or on a
    CPU 4 of the long texts."""
    settings = {name: preset_value(name, preset, "fsdfm") for name in SETTINGS}
    length = settings["block_size"]
    vocab_size, batch_size = (1024, settings["batch_size"]) if length <= 256 else (GPT2, settings["batch_size"] if device.type == "cuda" else 4)
    x_1 = torch.randint(vocab_size, (batch_size, length), device=device)

    def stepper(stage, changes, compiled=device.type == "cuda"):
        network = make_network(preset, device, vocab_size, step_aware=stage == "fsdfm").train()
        teacher = make_network(preset, device, vocab_size, step_aware=True).requires_grad_(False).eval()
        if compiled:
            network.compile()
            teacher.compile()
        optimizers, loss_of = make_optimizers(network, settings), make_loss(stage, settings | changes, teacher)

        def step():
            with autocast(device):
                loss_of(network, x_1).backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()

        return step

    students = {
        "FS-DFM step, default": {},
        "FS-DFM step, paper's weights on h": {"text_steps": 1024, "step_weights": "paper"},
        "FS-DFM step, flat weights on h, text for the finest alone": {"text_steps": 1024, "step_weights": "flat"},
    }
    with FlopCounterMode(display=False) as counter:  # of a network that is not compiled: torch.compile gives up on what runs under the counter
        stepper("dfm", {}, compiled=False)()
    steps = [stepper("dfm", {}), *(stepper("fsdfm", changes) for changes in students.values())]
    dfm, *others = seconds_in_turn(steps, device, 25)
    yield f"DFM training step, {len(x_1)} x {length} tokens, V {vocab_size:,}", dfm, 1, counter.get_total_flops() / limits[0] / dfm
    for name, fsdfm in zip(students, others):
        yield name, fsdfm, dfm / fsdfm, None


def make_loss_step(device, whole):
    """Forward and backward of the loss alone, 4 sequences of 512 of GPT-2's tokens, d 768: all logits at once, or a sequence's."""
    torch.manual_seed(1)
    network = Transformer(ModelConfig(vocab_size=GPT2, block_size=512, n_layer=1, n_head=12, dim=768)).to(device)
    torch.nn.init.normal_(network.output_layer.linear.weight, std=0.02)
    hidden, x_1 = torch.randn(4, 512, 768, device=device, requires_grad=True), torch.randint(GPT2, (4, 512), device=device)
    t = sample_times(4, device)
    x_t = sample_path(x_1, t, network.config)
    network.output_layer.linear.weight.grad = torch.zeros_like(network.output_layer.linear.weight)

    def step():
        usual, flow.LOGITS_AT_A_TIME = flow.LOGITS_AT_A_TIME, 2**62 if whole else 1
        with autocast(device):
            loss = in_parts(lambda logits, x_1, x_t, t: generalized_kl(logits, x_1, x_t, t, network.config), network, hidden, x_1, x_t, t)
        loss.mean().backward()
        flow.LOGITS_AT_A_TIME = usual

    return step


def loss(preset, device, limits):
    whole, parts = seconds_in_turn([make_loss_step(device, whole) for whole in (True, False)], device, 5)
    yield "loss over V 50,257, 4 x 512 tokens: all logits at once", whole, 1, None
    yield "the same, a sequence at a time", parts, whole / parts, None
    whole, parts = (extra_memory(make_loss_step, device, whole) for whole in (True, False))
    yield "its extra memory: all logits at once", whole, 1, None
    yield "the same, a sequence at a time", parts, whole / parts, None


# ---------------------------------------------------------------------------------------------------------------
# growth, and the start


def exponent(sizes, times):
    """The slope of log(times) over log(sizes), by least squares."""
    x, y = ([math.log(v) for v in values] for values in (sizes, times))
    return statistics.linear_regression(x, y).slope


def growth(preset, device, limits):
    network = make_network(preset, device, 1024, step_aware=True).eval()

    def write(length, steps):
        with autocast(device):
            return generate(make_step(network), sample_source((1, length), network.config, device), step_times(steps))

    lengths, steps = [2**i for i in range(8, 14)], [2**i for i in range(11)]
    times = [seconds(lambda: write(length, 2), device, 3) for length in lengths]
    for length, value in zip(lengths, times):
        yield f"2 steps, {length:,} tokens", value, times[0] / value, None
    yield f"exponent of the length: {exponent(lengths, times):.2f}; of its upper half: {exponent(lengths[3:], times[3:]):.2f}", None, None, None
    times = [seconds(lambda: write(network.config.block_size, n), device, 3) for n in steps]
    yield f"exponent of the steps, 1 to 1,024: {exponent(steps, times):.2f}", None, None, None


def start(preset, device, limits, out=Path("out")):
    """Seconds of the whole command, from the shell to the first text."""
    if not (out / "fsdfm.pt").exists():
        yield f"start of sample.py: not measured, there is no {out / 'fsdfm.pt'}", None, None, None
        return
    times = {}
    for flag in ("--no-compile", "--compile"):
        began = time.perf_counter()
        subprocess.run([sys.executable, "sample.py", "--out", str(out), "--device", str(device), flag], check=True, capture_output=True)
        times[flag] = time.perf_counter() - began
        yield f"python sample.py {flag}, from the shell to the text", times[flag], times["--no-compile"] / times[flag], None


# ---------------------------------------------------------------------------------------------------------------
# the table

PARTS = {"sampler": sampler, "generation": generation, "training": training, "loss": loss, "growth": growth, "start": start}


def main():
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PARTS, nargs="+", default=list(PARTS), metavar="PART", help="of: " + ", ".join(PARTS) + " (default: all)")
    parser.add_argument("--preset", choices=PRESETS, help="of train.py (default: gpu with CUDA, else cpu)")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder that bench.json goes to, and fsdfm.pt comes from (default: out)")
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: cuda if there is one)")
    arguments = parser.parse_args()
    device = pick_device(arguments.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    preset = arguments.preset or ("gpu" if device.type == "cuda" else "cpu")
    torch.set_float32_matmul_precision("high")
    os.environ.pop("GLIBC_TUNABLES", None)  # the processes that measure memory must give it back
    limits = machine_limits(device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    print(f"{name}, torch {torch.__version__}, preset {preset}: {limits[0] / 1e12:.2f} TFLOP/s in matrix products, {limits[1] / 1e9:.1f} GB/s copied")
    print(f"{'':62}{'measured':>12}{'ratio':>9}{'of the limit':>14}")
    rows = []
    for part in arguments.only:
        for text, value, ratio, of_limit in PARTS[part](preset, device, limits):
            shown = "" if value is None else f"{value / 1e6:.0f} MB" if value > 1e5 else f"{value:.4f} s"
            print(f"{text:62}{shown:>12}{'' if ratio is None else f'{ratio:.2f}x':>9}{'' if of_limit is None else f'{of_limit:.0%}':>14}", flush=True)
            rows.append({"part": part, "what": text, "value": value, "ratio": ratio, "of_limit": of_limit})
    report = {"machine": name, "torch": torch.__version__, "preset": preset, "matrix_rate": limits[0], "copy_rate": limits[1], "rows": rows}
    write_safely(arguments.out / "bench.json", lambda path: path.write_text(json.dumps(report, indent=1)))


if __name__ == "__main__":
    run_command(main)

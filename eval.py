"""Measuring: how good is the text, how varied, how fast, at every number of steps?

    python eval.py                        both models at 1, 2, 4, ..., 1,024 steps -> out/eval.json, and a table
    python eval.py --steps 2 8 64 --temperatures 0.7 0.8 0.9 1      adds the rows of the frontier (plot.py)
    python eval.py --likelihood           the bound on the likelihood of held-out text, beside the judge's
    python eval.py --infill               half of held-out text is taken out and written again
    python eval.py --longer               texts two and four times as long as those of the training
    python eval.py --dfm FILE --fsdfm FILE --data mine    published networks; the judge must know GPT-2's tokens

The measures are those of measures.py and heldout.py. --likelihood and --infill take --data NAME: how do the networks do on a text of
another kind? (Prepare it with the same tokens: data/prepare.py --tokens-of pydocs.) Read next: plot.py.
"""

import argparse
import hashlib
import json
import platform
import textwrap
import time
from itertools import zip_longest
from pathlib import Path

import torch
from tqdm import tqdm

from checkpoint import Parser, UserError, file_hash, lock, number, pick_device, run_command, seed_number, write_safely
from data.dataset import Dataset
from flow import JUMP_PROBABILITIES, generate, make_step, sample_source, step_times
from heldout import infill_report, likelihood_report
from judge import generate_autoregressive, load_judge
from measures import long_token_nll, measure, perplexity_by_quarter
from model import Transformer, autocast
from released import load_model
from sample import printable

STEPS = [2**i for i in range(11)]
SLOW = 512  # from here on a CPU measures fewer samples
FEW = 8  # the steps of FS-DFM that are shown beside the most steps of DFM


# ---------------------------------------------------------------------------------------------------------------
# texts, and the time they take


def timed(make):
    """make() -> tokens, and the wall-clock seconds until they are there."""
    began = time.perf_counter()
    x_1 = make()
    x_1.cpu()  # waits for the device
    return x_1, time.perf_counter() - began


def timed_samples(model, shape, steps, seed, batch_size, temperature=1.0, callback=None):
    """Texts of `shape` (N, L), at most batch_size at a time, and their seconds. The callback is flow.generate's."""
    torch.manual_seed(seed)
    device = next(model.parameters()).device
    step, times = make_step(model, temperature), step_times(steps, model.config.easing)
    with autocast(device):
        parts = sample_source(shape, model.config, device).split(batch_size)
        return timed(lambda: torch.cat([generate(step, part, times, callback=callback) for part in parts]))


def compare_speed(fsdfm, judge, x_1, row, seed, batch_size):
    """How long each model takes to write as many texts as there are in x_1 (N, L): seconds and tokens per second. `row` is
    the DFM's at the most steps. The others are timed three times, the median counts; our judge begins with x_1's first tokens."""
    N, L = x_1.shape

    def judge_writes():
        with autocast(x_1.device):
            return timed(lambda: torch.cat([generate_autoregressive(judge, part, L) for part in x_1[:, :1].split(batch_size)]))[1]

    seconds = {("judge", L - 1): sorted(judge_writes() for _ in range(3))[1]} if isinstance(judge, Transformer) else {}
    seconds |= {
        ("dfm", row["steps"]): row["seconds_per_sample"] * N,
        ("fsdfm", FEW): sorted(timed_samples(fsdfm, (N, L), FEW, seed, batch_size)[1] for _ in range(3))[1],
    }
    return [{"model": m, "network_calls": calls, "texts": N, "seconds": s, "tokens_per_second": N * (calls if m == "judge" else L) / s} for (m, calls), s in seconds.items()]


# ---------------------------------------------------------------------------------------------------------------
# tables


def plus_minus(row, name, digits):
    """Mean ± standard error, as text. A single sample has none."""
    error = f" ± {row[name + '_error']:.{digits}f}" if row["samples"] > 1 else ""
    return f"{row[name]:.{digits}f}{error}"


def table(report):
    """The rows as text, a line each."""
    lines = [f"{'':8}{'steps':>6}{'temp.':>7}{'perplexity':>20}{'corpus':>9}{'entropy, bits':>16}{'distinct 4':>12}{'s/sample':>10}{'samples':>9}"]
    for row in [report["real"], *report["rows"]]:
        perplexity, entropy = plus_minus(row, "perplexity", 1), plus_minus(row, "entropy", 2)
        seconds = f"{row['seconds_per_sample']:.3f}" if "seconds_per_sample" in row else ""
        lines.append(f"{row['model']:8}{row.get('steps', ''):>6}{row.get('temperature', ''):>7}{perplexity:>20}{row['corpus_perplexity']:>9.1f}"
                     f"{entropy:>16}{row['distinct_4grams']:>12.3f}{seconds:>10}{row['samples']:>9}")  # fmt: skip
    return "\n".join(lines)


def speed_table(rows):
    """Seconds and tokens per second, and how many times the slowest's."""
    slowest = max(row["seconds"] for row in rows)
    lines = [f"{rows[0]['texts']} texts at a time:"]
    for row in rows:
        lines.append(f"{row['model']:8}{row['network_calls']:>6} network calls{row['seconds']:>10.2f} s"
                     f"{row['tokens_per_second']:>12,.0f} tokens/s{slowest / row['seconds']:>8.1f}x")  # fmt: skip
    return "\n".join(lines)


def side_by_side(pair, width=58):
    """Two texts in two columns, each under its heading."""
    columns = []
    for sample in pair:
        heading = f"{sample['model']}, {sample['steps']} steps: {sample['seconds']:.2f} s, perplexity {sample['perplexity']:.0f}"
        lines = [part for line in sample["text"].split("\n") for part in textwrap.wrap(line, width) or [""]]
        columns.append([heading, "-" * len(heading), *lines])
    return "\n".join(f"{left:{width}} | {right}".rstrip() for left, right in zip_longest(*columns, fillvalue=""))


# ---------------------------------------------------------------------------------------------------------------
# longer texts


def longer_report(networks, judge, blocks, steps, num_samples, seed, batch_size):
    """Perplexity by quarter of texts as long as the training's, twice and four times that."""
    length, flat = blocks.shape[1], blocks.flatten()
    rows = []
    for times in (1, 2, 4):
        real = flat[: len(flat) // (times * length) * times * length].view(-1, times * length)
        texts = {("real", None): real}
        for name, network in networks.items():
            for n in steps:
                texts[name, n], _ = timed_samples(network, (num_samples, times * length), n, seed, max(1, batch_size // times))
        for (name, n), x in texts.items():
            quarters = perplexity_by_quarter(x, judge)
            rows.append({"model": name, "steps": n, "length": times * length, "samples": len(x), "quarters": quarters})
            shown = "   ".join(f"{q['perplexity']:.1f} ± {q['perplexity_error']:.1f}" for q in quarters)
            print(f"{times * length:>6} tokens, {name:6}{n or '':>5}  perplexity by quarter: {shown}")
    return rows


# ---------------------------------------------------------------------------------------------------------------
# the report


def load_report(path, key):
    """The report with this key, to be continued; {} if there is none. One with another key in its place is put aside, under a name that its key makes."""

    def aside(key):
        return path.with_name(f"{path.stem}-{hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:8]}{path.suffix}")

    try:
        report = json.loads(path.read_text()) if path.exists() else {}
        if report and report["key"] != key:
            kept = path.replace(aside(report["key"]))
            different = ", ".join(name for name in key if report["key"].get(name) != key[name])
            print(f"{path} has another {different}: it is now {kept}")
            report = {}
        if not report and aside(key).exists():
            aside(key).replace(path)
            report = json.loads(path.read_text())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged: delete it and run this again") from error
    return report


def parse_arguments():
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", choices=("dfm", "fsdfm"), nargs="+", default=["dfm", "fsdfm"], help="which to measure (default: dfm fsdfm)")
    part = parser.add_mutually_exclusive_group()
    part.add_argument("--likelihood", action="store_true", help="only the likelihood of held-out text -> OUT/likelihood-DATA.json (default: no)")
    part.add_argument("--infill", action="store_true", help="only infilling, in 8 and 64 steps or --steps -> OUT/infill-DATA.json (default: no)")
    part.add_argument("--longer", action="store_true", help="only longer texts, in 8 and 64 steps or --steps -> OUT/longer-DATA.json (default: no)")
    parser.add_argument("--data", default="pydocs", help="name given to data/prepare.py, for the real text (default: pydocs)")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder of the checkpoints and of eval.json (default: out)")
    parser.add_argument("--dfm", type=Path, help="a file to use instead, ours or a published .pth (default: OUT/dfm.pt)")
    parser.add_argument("--fsdfm", type=Path, help="a file to use instead, ours or a published .pth (default: OUT/fsdfm.pt)")
    parser.add_argument("--judge", help="a file to use instead, or a causal model of the Hugging Face hub such as gpt2-large, for GPT-2's tokens (default: OUT/judge.pt)")
    parser.add_argument("--update", choices=JUMP_PROBABILITIES, help="the sampler's step: cumulative or euler (default: the one trained for)")
    parser.add_argument("--easing", type=number(float, 1, 10), help="how steps shrink towards the end, 1 for uniform ones (default: that of the checkpoint)")
    parser.add_argument("--n-head", type=number(int, 1, 1000), help="heads of a published .pth that does not store them (default: by its width)")
    parser.add_argument("--length", type=number(int, 5, 2**20), help="tokens of a text (default: those of a training sequence)")
    parser.add_argument("--steps", type=number(int, 1, 65536), nargs="+", metavar="N", help="numbers of steps (default: 1 2 4 ... 1024)")
    parser.add_argument("--temperatures", type=number(float, 0.001, 1000), nargs="+", metavar="T", help="temperatures of the draws (default: 1)")
    parser.add_argument("--num-samples", type=number(int, 1, 10**6), help="texts for each model and number of steps (default: 64)")
    parser.add_argument("--slow-samples", type=number(int, 1, 10**6), help=f"texts at {SLOW} steps and more (default: 8 on a CPU, else as many)")
    parser.add_argument("--batch-size", type=number(int, 1, 65536), help="texts made at a time (default: 64)")
    parser.add_argument("--seed", type=seed_number, default=1, help="of every random number (default: 1)")
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: cuda if there is one)")
    arguments = parser.parse_args()
    unused = ["temperatures", "slow_samples"] if arguments.likelihood or arguments.infill or arguments.longer else []
    unused += ["steps", "num_samples", "batch_size", "update", "easing"] if arguments.likelihood else []
    for name in unused:
        if getattr(arguments, name):
            raise UserError(f"--{name.replace('_', '-')} has no meaning here: leave it out")
    arguments.num_samples, arguments.batch_size = arguments.num_samples or 64, arguments.batch_size or 64
    return arguments


def load_all(arguments, device):
    """The judge, the networks of --models by name, {name: hash of its file} of them all, the dataset and the tokenizer."""
    judge_path = arguments.judge or arguments.out / "judge.pt"
    judge, tokenizer, judge_hash = load_judge(judge_path, device)
    paths = {name: getattr(arguments, name) or arguments.out / f"{name}.pt" for name in sorted(set(arguments.models))}
    networks = {}
    for name in paths:
        networks[name], tokens = load_model(paths[name], device, {"dfm": "teacher_model", "fsdfm": "student_ema_model"}[name], arguments.n_head)
        networks[name].config.update = arguments.update or networks[name].config.update
        networks[name].config.easing = arguments.easing or networks[name].config.easing
        if networks[name].config.causal:
            raise UserError(f"{paths[name]} is a judge: --{name} takes a diffusion model")
        if tokens.description != tokenizer.description:
            raise UserError(f"{judge_path} judges other tokens than those of {paths[name]}: train it on the same --data")
    dataset = Dataset(arguments.data)
    if dataset.tokenizer.description != tokenizer.description:
        raise UserError(f"{judge_path} judges other tokens than those of data/{dataset.name}: name the --data it was trained on")
    return judge, networks, {"judge": judge_hash} | {name: file_hash(network.file) for name, network in networks.items()}, dataset, tokenizer


def spread(blocks, count):
    """`count` of the blocks, evenly spread over the text."""
    return blocks[torch.linspace(0, len(blocks) - 1, min(count, len(blocks))).long()]


def main():
    arguments = parse_arguments()
    device = pick_device(arguments.device)
    judge, networks, hashes, dataset, tokenizer = load_all(arguments, device)
    length = arguments.length or next(iter(networks.values())).config.block_size
    batch_size = arguments.batch_size
    dataset.must_fill(4 * length if arguments.longer else length)
    blocks = dataset.validation_blocks(length).to(device)
    held = lock(arguments.out / "eval.lock")
    part = next((part for part in ("likelihood", "infill", "longer") if getattr(arguments, part)), None)
    if part:
        if part == "likelihood":
            rows = likelihood_report(networks, judge, blocks, arguments.seed)
        elif part == "infill":
            rows = infill_report(networks, judge, spread(blocks, arguments.num_samples), arguments.steps or [FEW, 64], arguments.seed, batch_size)
        else:
            rows = longer_report(networks, judge, blocks, arguments.steps or [FEW, 64], arguments.num_samples, arguments.seed, batch_size)
        text = json.dumps({"networks": hashes, "data": dataset.meta["text_sha256"], "rows": rows}, indent=1)
        return write_safely(arguments.out / f"{part}-{dataset.name}.json", lambda path: path.write_text(text))

    # a report of the same judge, seed and so on is continued, row by row; the rows of a network that has changed are measured anew
    report_path = arguments.out / "eval.json"
    key = {"judge": hashes["judge"], "text": dataset.meta["text_sha256"]}
    key |= {name: getattr(arguments, name) for name in ("seed", "batch_size", "update", "easing")} | {"length": length}
    report = load_report(report_path, key)
    if not report:
        machine = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()}, {torch.get_num_threads()} threads"
        report = {"key": key, "machine": machine, "torch": torch.__version__, "length": length, "rows": []}

    def save():
        write_safely(report_path, lambda path: path.write_text(json.dumps(report, indent=1)))

    report["real"] = {"model": "real"} | measure(blocks, judge)
    fresh = [row for row in report["rows"] if row["network"] == hashes.get(row["model"], row["network"])]
    rows = {(row["model"], row["steps"], row["temperature"]): row for row in fresh}
    slow_samples = arguments.slow_samples or (min(8, arguments.num_samples) if device.type == "cpu" else arguments.num_samples)
    jobs = [(model, steps, temperature, slow_samples if steps >= SLOW else arguments.num_samples)
            for model in networks for steps in arguments.steps or STEPS for temperature in arguments.temperatures or [1.0]]  # fmt: skip
    bar = tqdm(total=sum(steps * samples for _, steps, _, samples in jobs), desc="eval", unit="step", unit_scale=True)

    def progress(step, x_t):
        bar.update(len(x_t))

    for network in networks.values():  # warm-up: a first pass takes longer
        timed_samples(network, (min(batch_size, arguments.num_samples), length), 1, arguments.seed, batch_size)
    for *job, samples in jobs:
        model, steps, temperature = job
        if rows.get(tuple(job), {}).get("samples", 0) < samples:
            shape = (samples, length)
            x_1, seconds = timed_samples(networks[model], shape, steps, arguments.seed, batch_size, temperature, progress)
            row = {"model": model, "network": hashes[model], "steps": steps, "temperature": temperature, "seconds_per_sample": seconds / samples}
            rows[tuple(job)] = row | measure(x_1, judge)
            report["rows"] = [rows[job] for job in sorted(rows)]
            save()
            bar.set_postfix_str(f"{model}, {steps} steps: perplexity {rows[tuple(job)]['perplexity']:.1f}")
        else:
            bar.update(steps * samples)
    bar.close()

    many = max((steps for model, steps, _ in rows if model == "dfm"), default=None)
    if len(networks) < 2 or not many:
        return print(f"\n{table(report)}")

    # one sample of each model, the first of its seed, alone in its batch; and the speed of writing
    if report.get("pair_key") != (pair_key := [hashes["dfm"], many, hashes["fsdfm"], FEW]):
        report["pair"], report["pair_key"] = [], pair_key
        for model, steps in (("dfm", many), ("fsdfm", FEW)):
            x_1, seconds = timed_samples(networks[model], (1, length), steps, arguments.seed, 1)
            text = printable(tokenizer.decode(x_1[0].tolist()))
            perplexity = long_token_nll(judge, x_1).mean().exp().item()
            report["pair"].append({"model": model, "steps": steps, "seconds": seconds, "perplexity": perplexity, "text": text})
        row = next(row for row in rows.values() if (row["model"], row["steps"]) == ("dfm", many))
        x_1 = blocks[torch.arange(row["samples"]) % len(blocks)]  # (N, L)
        report["speed"] = compare_speed(networks["fsdfm"], judge, x_1, row, arguments.seed, batch_size)
        save()
    print(f"\n{table(report)}\n\n{speed_table(report['speed'])}\n\n{side_by_side(report['pair'])}")


if __name__ == "__main__":
    run_command(main)

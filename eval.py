"""Measuring: how good is the text, how varied, how fast, at every number of steps?

    python eval.py                        both models at 1, 2, 4, ..., 1,024 steps -> out/eval.json, and a table
    python eval.py --steps 1 8 64
    python eval.py --dfm FILE --fsdfm FILE --data mine    published networks; the judge must know GPT-2's tokens

Perplexity  exp of the judge's mean negative log likelihood (nats) of the next token, taken per sample and then averaged
            over samples, the paper's convention; `corpus` is exp of the mean over all tokens of all samples.
Entropy     Shannon entropy, in bits, of a sample's own histogram of tokens. Perplexity alone can be had for nothing:
            a lower temperature, or one word repeated, lowers both. Always read the two together.
Distinct    share of a sample's 4-grams that are different: falls when the text repeats itself.

Each with its standard error over samples, s / sqrt(n). The same numbers for held-out real text say what is natural.
Source: FS-DFM (arXiv 2509.20624), whose judge is GPT-2 Large; ours is train.py's. Read next: plot.py.
"""

import argparse
import hashlib
import json
import math
import platform
import textwrap
import time
from itertools import zip_longest
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm import tqdm

from checkpoint import Parser, UserError, pick_device, run_command, seed_number, write_safely
from data.dataset import Dataset
from flow import generate, sample_source
from model import autocast
from sample import load_model, printable

STEPS = [2**i for i in range(11)]
SLOW = 512  # from here on a CPU measures fewer samples


# ---------------------------------------------------------------------------------------------------------------
# the measures


@torch.no_grad()
def token_nll(judge, x, batch_size=64):
    """-log p(x[i] | x[:i]) under the causal judge, in nats: (N, L) tokens -> (N, L - 1) float32."""
    with autocast(x.device):
        parts = [F.cross_entropy(judge(part)[:, :-1].float().transpose(1, 2), part[:, 1:], reduction="none") for part in x.split(batch_size)]
    return torch.cat(parts)


def token_entropy(x, vocab_size):
    """(N,) bits: the entropy of each sample's token histogram. Between 0 and log2(L)."""
    counts = torch.zeros(len(x), vocab_size, device=x.device).scatter_add_(1, x, torch.ones(x.shape, device=x.device))
    return torch.special.entr(counts / x.shape[1]).sum(-1) / math.log(2)


def distinct_ngrams(x, n=4):
    """(N,) share of each sample's n-grams that are different from one another, in (0, 1]."""
    grams = x.unfold(1, n, 1)  # (N, L - n + 1, n)
    return torch.tensor([len(set(map(tuple, row))) / len(row) for row in grams.tolist()])


def measure(x, judge):
    """All measures of samples x (N, L), each with its standard error (0 for a single sample)."""
    nll = token_nll(judge, x)
    values = {
        "perplexity": nll.mean(-1).exp(),
        "entropy": token_entropy(x, judge.config.vocab_size),
        "distinct_4grams": distinct_ngrams(x),
    }
    row = {"samples": len(x), "corpus_perplexity": nll.mean().exp().item()}
    for name, value in values.items():
        row[name] = value.mean().item()
        row[name + "_error"] = (value.std() / len(x) ** 0.5).item() if len(x) > 1 else 0.0
    return row


def timed_samples(model, shape, steps, seed, batch_size, callback=None):
    """Texts of `shape` (N, L), at most batch_size at a time, and the wall-clock seconds they took. The callback is
    that of flow.generate."""
    torch.manual_seed(seed)
    device = next(model.parameters()).device
    began = time.perf_counter()
    with autocast(device):
        parts = [generate(model, part, steps, callback=callback) for part in sample_source(shape, model.config, device).split(batch_size)]
    x_1 = torch.cat(parts).cpu()  # waits for the device
    return x_1.to(device), time.perf_counter() - began


# ---------------------------------------------------------------------------------------------------------------
# the report


def table(report):
    """The rows as text, a line each."""
    lines = [f"{'':8}{'steps':>6}{'perplexity':>20}{'corpus':>9}{'entropy, bits':>16}{'distinct 4':>12}{'s/sample':>10}{'samples':>9}"]
    for row in [report["real"], *report["rows"]]:
        perplexity = f"{row['perplexity']:.1f} ± {row['perplexity_error']:.1f}"
        entropy = f"{row['entropy']:.2f} ± {row['entropy_error']:.2f}"
        seconds = f"{row['seconds_per_sample']:.3f}" if "seconds_per_sample" in row else ""
        lines.append(f"{row['model']:8}{row.get('steps', ''):>6}{perplexity:>20}{row['corpus_perplexity']:>9.1f}{entropy:>16}"
                     f"{row['distinct_4grams']:>12.3f}{seconds:>10}{row['samples']:>9}")  # fmt: skip
    return "\n".join(lines)


def side_by_side(pair, width=58):
    """Two texts in two columns, each under its heading."""
    columns = []
    for sample in pair:
        heading = f"{sample['model']}, {sample['steps']} steps: {sample['seconds']:.2f} s, perplexity {sample['perplexity']:.0f}"
        lines = [part for line in sample["text"].split("\n") for part in textwrap.wrap(line, width) or [""]]
        columns.append([heading, "-" * len(heading), *lines])
    return "\n".join(f"{left:{width}} | {right}".rstrip() for left, right in zip_longest(*columns, fillvalue=""))


def fingerprint(paths):
    """A hash for each file: a report is continued only if the networks are still the same."""
    hashes = []
    for path in paths:
        with path.open("rb") as file:
            hashes.append(hashlib.file_digest(file, "sha256").hexdigest())
    return hashes


def main():
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="pydocs", help="name given to data/prepare.py, for the real text (default: pydocs)")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder of the checkpoints and of eval.json (default: out)")
    parser.add_argument("--dfm", type=Path, help="a file to use instead, ours or a published .pth (default: OUT/dfm.pt)")
    parser.add_argument("--fsdfm", type=Path, help="a file to use instead, ours or a published .pth (default: OUT/fsdfm.pt)")
    parser.add_argument("--n-head", type=int, help="heads of a published .pth that does not store them (default: by its width)")
    parser.add_argument("--length", type=int, help="tokens of a text (default: those of a training sequence)")
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS, metavar="N", help="numbers of steps (default: 1 2 4 ... 1024)")
    parser.add_argument("--num-samples", type=int, default=64, help="texts for each model and number of steps (default: 64)")
    parser.add_argument("--slow-samples", type=int, help=f"texts at {SLOW} steps and more (default: 16 on a CPU, else as many)")
    parser.add_argument("--batch-size", type=int, default=64, help="texts made at a time (default: 64)")
    parser.add_argument("--seed", type=seed_number, default=1, help="of every random number (default: 1)")
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: cuda if there is one)")
    arguments = parser.parse_args()
    for name in ("num_samples", "slow_samples", "batch_size", "length"):
        if getattr(arguments, name) is not None and getattr(arguments, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(arguments, name)}")
    if min(arguments.steps) < 1:
        raise UserError(f"--steps must be at least 1, not {min(arguments.steps)}")

    device = pick_device(arguments.device)
    slow_samples = arguments.slow_samples or (min(16, arguments.num_samples) if device.type == "cpu" else arguments.num_samples)
    judge, tokenizer = load_model(arguments.out / "judge.pt", device)
    if not judge.config.causal:
        raise UserError(f"{arguments.out / 'judge.pt'} is no judge: make it with `python train.py judge`")
    paths = {"dfm": arguments.dfm or arguments.out / "dfm.pt", "fsdfm": arguments.fsdfm or arguments.out / "fsdfm.pt"}
    networks = {}
    for name, of_released in (("dfm", "teacher_model"), ("fsdfm", "student_ema_model")):
        networks[name], tokens = load_model(paths[name], device, of_released, arguments.n_head)
        if tokens.description != tokenizer.description:
            raise UserError(f"{arguments.out / 'judge.pt'} judges other tokens than those of {paths[name]}: train it on the same --data")
    dataset = Dataset(arguments.data)
    if dataset.tokenizer.description != tokenizer.description:
        raise UserError(f"{arguments.out / 'judge.pt'} judges other tokens than those of data/{dataset.name}: name the --data it was trained on")
    length = arguments.length or networks["dfm"].config.block_size
    if length < 4:
        raise UserError(f"a text of {length} tokens has no 4-grams: use --length 4 or more")
    dataset.must_fill(length)

    # a report of the same networks and seed is continued, row by row
    report_path = arguments.out / "eval.json"
    files = [arguments.out / "judge.pt", *paths.values()]
    key = {"networks": fingerprint(files), "seed": arguments.seed, "length": length, "batch_size": arguments.batch_size}
    key["text"] = dataset.meta["text_sha256"]
    try:
        report = json.loads(report_path.read_text()) if report_path.exists() else {}
        continued = report.get("key") == key
    except (ValueError, AttributeError) as error:
        raise UserError(f"{report_path} is damaged: delete it and run this again") from error
    if not continued:
        if report:
            print(f"{report_path} is of other networks, seed or length: starting a new one")
        machine = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()}, {torch.get_num_threads()} threads"
        report = {"key": key, "machine": machine, "torch": torch.__version__, "length": length, "rows": []}

    def save():
        write_safely(report_path, lambda path: path.write_text(json.dumps(report, indent=1)))

    blocks = torch.from_numpy(dataset.val[: len(dataset.val) // length * length].astype("int64")).view(-1, length).to(device)
    report["real"] = {"model": "real"} | measure(blocks, judge)
    rows = {(row["model"], row["steps"]): row for row in report["rows"]}
    jobs = [(model, steps, slow_samples if steps >= SLOW else arguments.num_samples) for model in networks for steps in arguments.steps]
    bar = tqdm(total=sum(steps * samples for _, steps, samples in jobs), desc="eval", unit="step", unit_scale=True)

    def progress(step, x_t):
        bar.update(len(x_t))

    for network in networks.values():  # warm-up: a first pass takes longer
        timed_samples(network, (min(arguments.batch_size, arguments.num_samples), length), 1, arguments.seed, arguments.batch_size)
    for model, steps, samples in jobs:
        if rows.get((model, steps), {}).get("samples") != samples:
            x_1, seconds = timed_samples(networks[model], (samples, length), steps, arguments.seed, arguments.batch_size, progress)
            rows[model, steps] = {"model": model, "steps": steps, "seconds_per_sample": seconds / samples} | measure(x_1, judge)
            report["rows"] = [rows[job] for job in sorted(rows)]
            save()
            bar.set_postfix_str(f"{model}, {steps} steps: perplexity {rows[model, steps]['perplexity']:.1f}")
        else:
            bar.update(steps * samples)
    bar.close()

    # one sample of each model, the first of its seed, alone in its batch
    wanted = [("dfm", max(steps for _, steps in rows)), ("fsdfm", 8)]
    if [(sample["model"], sample["steps"]) for sample in report.get("pair", [])] != wanted:
        report["pair"] = []
        for model, steps in wanted:
            x_1, seconds = timed_samples(networks[model], (1, length), steps, arguments.seed, 1)
            text = printable(tokenizer.decode(x_1[0].tolist()))
            perplexity = token_nll(judge, x_1).mean().exp().item()
            report["pair"].append({"model": model, "steps": steps, "seconds": seconds, "perplexity": perplexity, "text": text})
        save()
    print(f"\n{table(report)}\n\n{side_by_side(report['pair'])}")


if __name__ == "__main__":
    run_command(main)

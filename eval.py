"""How good is the text, and how varied, at every number of steps?

    python eval.py                          DFM in 1 to 1,024 steps, students in 1 to 64
    python eval.py --out out-pydocs         real text
    python eval.py --steps 4 8 --temperatures 0.7 0.8 0.9 1         for out/frontier.png (plot.py)
    python eval.py --models dfm --steps 8 --sampler extras.samplers.euler

Of stories (data/stories.py) it says what can be counted:

    right       share of the texts that are stories without a single mistake, and between which
                values it lies with 95% probability (Wilson's interval)
    variety     of the right ones: entropy of every slot (such as "cx", the first colour), of every
                pair of slots and of the form of every sentence, as shares of those of as many true
                stories; the lowest of these, and which

and of any text:

    perplexity  exp of the judge's mean negative log likelihood (nats) of the next token, for each
                text, then averaged over texts, as in the paper
    entropy     Shannon entropy of a text's own histogram of tokens, in bits, averaged over texts

Perplexity alone is worth nothing: a lower temperature lowers it, and so does one word repeated.
Read it with the entropy beside it, and both beside those of real text. The perplexity is that of
the tokens as drawn: of the same text, tokenised again, it is 7 to 8% higher (pydocs). The padding
of stories counts in neither. ± is one standard error over texts. Results: a table, and
OUT/eval.json. Source: FS-DFM (arXiv 2509.20624), whose judge is GPT-2 Large (extras/gpt2.py); ours
is that of `train.py judge`. Read next: plot.py.
"""

from config.command import autocast, named, parser_of, pick_device, stop  # before torch

import json
import math
import os
import time
from collections import Counter

import torch
from tqdm import tqdm

from data.stories import KINDS, can_check, parse, variety
from data.tokenizer import PAD
from data.tokens import held_out, load_tokens
from model import next_token_nll
from sample import (
    AT_A_TIME, fill, find_network, load_checkpoint, load_model, network_of, note_unfinished,
    printable,
)

LABELS = {"dfm": "DFM", "fsdfm": "FS-DFM", "dmd": "distribution matching"}  # the networks
STEPS = [1, 2, 4, 8, 16, 64, 1024]
EXPECTED = 0.93  # least share of right stories in 64 steps of a DFM that has learned them
SLOW = 128  # from so many steps on no more than 16 texts are drawn
FEW = 8  # steps of the texts that are printed

# ------------------------------------------------------------------------------------------------
# measures


def mean_and_error(name, values):
    """{name: mean, name_error: standard error over texts}, for (N,) values."""
    error = values.std().item() / len(values) ** 0.5 if len(values) > 1 else 0.0
    return {name: values.mean().item(), f"{name}_error": error}


def wilson(right, n):
    """The 95% interval of a share, of which `right` of n were seen (Wilson 1927): (low, high)."""
    z, share = 1.96, right / n
    spread = z * math.sqrt(right * (n - right) / n + z * z / 4) / n
    middle = share + z * z / (2 * n)
    return (middle - spread) / (1 + z * z / n), (middle + spread) / (1 + z * z / n)


@torch.no_grad()
def perplexities(x, judge, pad=-1):
    """(N,): exp of the judge's mean nats of the tokens of each text x (N, L), but those of pad."""
    known = x.clamp(max=judge.config.vocab_size - 1)  # ids above GPT-2's fill V to a multiple of 64
    with autocast(x.device):
        parts = [next_token_nll(judge, part) for part in known.split(AT_A_TIME)]
    nll = torch.cat(parts)  # (N, L - 1)
    counts = x[:, 1:] != pad
    return ((nll * counts).sum(-1) / counts.sum(-1).clamp(min=1)).exp().cpu()


def entropies(x, pad=-1):
    """(N,) bits: the entropy of the histogram of tokens of each text x (N, L), but those of pad."""
    bits = []
    for row in x.cpu():
        row = row[row != pad]
        p = row.unique(return_counts=True)[1] / len(row)
        bits.append(-(p * p.log2()).sum())
    return torch.stack(bits)


def measure_stories(texts):
    """Right stories and their variety, mistakes by kind, and how many each text has."""
    readings = [parse(text) for text in texts]
    mistakes = [len(reading.mistakes) for reading in readings]
    right = mistakes.count(0)
    low, high = wilson(right, len(texts))
    row = {"right": right / len(texts), "right_low": low, "right_high": high}
    kinds = Counter(mistake.kind for reading in readings for mistake in reading.mistakes)
    row["mistakes"] = {kind: kinds[kind] / len(texts) for kind in KINDS}
    row["variety"] = variety(readings)
    return row, mistakes


def measure(x, judge, tokenizer):
    """All measures of texts x (N, L), a dict; "typical" is the text of median mistakes, or
    perplexity."""
    texts = [tokenizer.decode(row) for row in x.tolist()]
    pad = tokenizer.ids[PAD] if tokenizer.kind == "word" else -1
    badness = perplexities(x, judge, pad)
    row = {"texts": len(x)} | mean_and_error("perplexity", badness)
    row |= mean_and_error("entropy", entropies(x, pad))
    if can_check(tokenizer):
        stories, mistakes = measure_stories(texts)
        row, badness = row | stories, torch.tensor(mistakes)
    row["typical"] = texts[badness.argsort(stable=True)[len(x) // 2]]
    return row


# ------------------------------------------------------------------------------------------------
# texts


def draw_texts(model, n, steps, sampler, temperature, seed, on_step):
    """n texts (n, L), and the seconds of each."""
    torch.manual_seed(seed)
    device = next(model.parameters()).device
    template = torch.full((n, model.config.block_size), -1, device=device)  # all to be written
    began = time.perf_counter()
    parts = [fill(model, part, steps, sampler, temperature, lambda x: on_step(len(x)))
             for part in template.split(AT_A_TIME)]
    x = torch.cat(parts)
    x.cpu()  # the clock waits for the device
    return x, (time.perf_counter() - began) / n


# ------------------------------------------------------------------------------------------------
# the table


def plus_minus(row, name, digits):
    return f"{row[name]:,.{digits}f} ± {row[name + '_error']:,.{digits}f}"


def lowest(shares):
    """The lowest of {name: share}, and which: "0.916 cx+cy"."""
    name = min(shares, key=shares.get, default="")
    return f"{shares[name]:.3f} {name}" if shares else ""


def table(report):
    """The rows as text, a line each, at most 100 columns."""
    stories = "right" in report["real"]
    lines = [f"{'':5}{'steps':>6}{'temp.':>6}" + f"{'right, 95%':>20}{'variety':>15}" * stories
             + f"{'perplexity':>17}{'entropy, bits':>14}{'s/text':>8}{'texts':>6}"]
    for row in [report["real"], *report["rows"]]:
        line = f"{row['model']:5}{row.get('steps', ''):>6}{row.get('temperature', ''):>6}"
        if stories:
            line += f"{row['right']:.3f} {row['right_low']:.2f}-{row['right_high']:.2f}".rjust(20)
            line += lowest(row["variety"]).rjust(15)
        digits = 1 if row["perplexity"] >= 10 else 3
        line += f"{plus_minus(row, 'perplexity', digits):>17}{plus_minus(row, 'entropy', 2):>14}"
        seconds = f"{row['seconds']:.3f}" if "seconds" in row else ""
        lines.append(f"{line}{seconds:>8}{row['texts']:>6}")
    return "\n".join(lines)


def print_typical(rows):
    """Typical texts of the DFM in the most steps, and of all networks in few."""
    most = max((row["steps"] for row in rows if row["model"] == "dfm"), default=0)
    for row in rows:
        if row["steps"] == FEW or (row["model"], row["steps"]) == ("dfm", most):
            text = printable(row["typical"])
            print(f"\n{row['model']}, {row['steps']:,} steps, a text of the median:\n{text}")
            for mistake in parse(row["typical"]).mistakes if "right" in row else []:
                print(f"  {mistake}")


def verdict(rows):
    """A line if the DFM has not learned its stories: then a student cannot either. Else ""."""
    many = [row for row in rows if row["model"] == "dfm" and row["steps"] >= 64 and "right" in row]
    best = max(many, key=lambda row: row["right"], default=None)
    if best is None or best["right_high"] >= EXPECTED:
        return ""
    kind = max(best["mistakes"], key=best["mistakes"].get)
    return (f"note: the DFM is right in {best['right']:.2f} of its stories in {best['steps']} "
            f"steps, where {EXPECTED} is expected, and most of its mistakes are of {kind}: it has "
            "not learned that yet. Train it longer: a larger --iterations")


# ------------------------------------------------------------------------------------------------
# the command


def parse_arguments():
    parser = parser_of(__doc__)
    add = parser.add_argument
    add("--models", nargs="+", help="such as dfm fsdfm dmd (default: those in OUT)")
    add("--steps", type=int, nargs="+", help="numbers of steps (default: 1 2 4 8 16 64 1024)")
    add("--num-samples", type=int, help="texts of a row (default: 256 stories, 64 of other text; "
        f"from {SLOW} steps on at most 16)")
    add("--temperatures", type=float, nargs="+", default=[1.0], help="(default: 1)")
    add("--sampler", help="a function in the place of flow.generate, MODULE.NAME")
    add("--judge", help="a function that loads another one, such as extras.gpt2.large")
    add("--data", help="a folder in data/ (default: what the judge was trained on)")
    add("--seed", type=int, default=1, help="of every random number (default: 1)")
    add("--out", default="out", help="folder of the checkpoints (default: out)")
    add("--device", help="cpu, cuda or cuda:N (default: a GPU if there is one)")
    arguments = parser.parse_args()
    numbers = [*(arguments.steps or [1]), arguments.num_samples or 1]
    if min(numbers) < 1 or min(arguments.temperatures) < 0:
        stop("--steps and --num-samples must be above 0, --temperatures at least 0")
    return arguments


def load_networks(arguments, device):
    """(judge, {name: network}, tokenizer, meta, tokens). stop() if they do not belong together."""
    own = [n for n in LABELS if os.path.exists(os.path.join(arguments.out, f"{n}.pt"))]
    names = arguments.models or own or list(LABELS)  # no mixture of one's own and those of weights/
    paths = {name: find_network(arguments.out, name) for name in names}
    judge, meta, tokens = load_judge(arguments, device)
    networks = {}
    for name, path in paths.items():
        networks[name], tokenizer = load_model(path, device)
        if tokenizer.description != meta["tokenizer"]:
            stop(f"{path} writes other tokens than those the judge scores: name its --out")
    lengths = {network.config.block_size for network in networks.values()}
    if len(lengths) > 1 or max(lengths) > judge.config.block_size:
        stop("judge and networks have texts of different lengths: name those of one --out")
    print("measuring", ", ".join(paths.values()))
    return judge, networks, tokenizer, meta, tokens


def load_judge(arguments, device):
    """(judge, meta, tokens), the text that it scores."""
    if arguments.judge:
        meta, tokens = load_tokens(arguments.data or "stories")
        load = named(arguments.judge, "extras.gpt2.large")
        return load(device, meta["tokenizer"]), meta, tokens
    path = find_network(arguments.out, "judge")
    checkpoint = load_checkpoint(path)
    meta, tokens = load_tokens(arguments.data or checkpoint["settings"].get("data", "stories"))
    if checkpoint["tokenizer"] != meta["tokenizer"]:
        stop(f"{path} scores other tokens than those of --data: name the text it was trained on")
    note_unfinished(path, checkpoint)
    return network_of(checkpoint).to(device), meta, tokens


def main():
    arguments = parse_arguments()
    device = pick_device(arguments.device)
    judge, networks, tokenizer, meta, tokens = load_networks(arguments, device)
    texts = arguments.num_samples or (256 if can_check(tokenizer) else 64)
    L = next(iter(networks.values())).config.block_size
    real = torch.from_numpy(held_out(meta, tokens, L)).to(device)
    report = {"length": L, "real": {"model": "real"} | measure(real, judge, tokenizer), "rows": []}
    jobs = [(name, n, T, texts if n < SLOW else min(texts, 16)) for name in networks
            for n in arguments.steps or (STEPS if name == "dfm" else STEPS[:-1])
            for T in arguments.temperatures]
    bar = tqdm(total=sum(n * count for _, n, _, count in jobs), desc="measuring", unit="step",
               unit_scale=True)
    sampler = arguments.sampler and named(arguments.sampler, "flow.generate")
    for name, n, T, count in jobs:
        x, seconds = draw_texts(networks[name], count, n, sampler, T, arguments.seed, bar.update)
        row = {"model": name, "steps": n, "temperature": T, "seconds": seconds}
        report["rows"].append(row | measure(x, judge, tokenizer))
    bar.close()
    path = os.path.join(arguments.out, "eval.json")
    os.makedirs(arguments.out, exist_ok=True)
    with open(f"{path}.new", "w") as file:
        json.dump(report, file, indent=1)
    os.replace(f"{path}.new", path)
    print(table(report))
    print_typical(report["rows"])
    if line := verdict(report["rows"]):
        print(f"\n{line}")


if __name__ == "__main__":
    main()

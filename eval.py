"""How good is the text, how varied, how fast, at every number of steps?

    python eval.py            the DFM at 1, 2, 4, ..., 1,024 steps, the students at 1 to 64
                              -> out/eval.json, a table
    python eval.py --steps 2 8 64 --temperatures 0.7 0.8 0.9 1     rows for the frontier (plot.py)
    python eval.py --dfm FILE --fsdfm FILE --data mine             published networks

Perplexity  exp of the judge's mean negative log likelihood (nats) of the next token, for each
            sample, then averaged over samples, the paper's convention; "corpus" is exp of the mean
            over all tokens of all samples.
Entropy     Shannon entropy, in bits, of a sample's own histogram of tokens, or of 4-grams.
Distinct    share of a sample's 4-grams that are different: falls when the text repeats itself.

Of stories (data/stories.py) it says first what can be counted:

Right       share of the texts that are stories without a single mistake, and mistakes a story.
Variety     of the right ones: the entropy of the names, things, colours, places and plots as a
            share of that of as many true stories. The table has the lowest of the five.
New         share of the right ones that are not in the training set.

Perplexity alone is worth nothing: a lower temperature, or one word repeated, lowers it. Always read
it with entropy beside it. Every number comes with its standard error over samples, s / sqrt(n), and
the same numbers for held-out real text say what is natural.

Source: FS-DFM (arXiv 2509.20624), whose judge is GPT-2 Large; ours is that of `train.py judge`.
Likelihood, infilling and longer texts: experiments/heldout.py. Read next: plot.py.
"""

import common.early  # first: Ctrl-C is quiet from here on

import json
import math
import platform
import shutil
import sys
import time
from collections import Counter
from itertools import zip_longest
from pathlib import Path

import torch
from tqdm import tqdm

from common.checkpoint import LABELS, STUDENTS, WEIGHTS, find_network, load_model, versions
from common.command import Parser, UserError, number, printable, run_command, seed_number
from common.device import autocast, pick_device, texts_at_a_time
from common.files import OUT, file_hash, lock, write_text
from common.judge import generate_autoregressive, load_judge, long_token_nll
from common.report import continue_report
from data.dataset import Dataset
from data.stories import KINDS, can_check, parse, variety, wrong_places
from flow import Sampler, generate, sample_source
from model import Transformer
from sample import add_leave_one_out, add_sampler_flags
from show.race import NARROWEST, mark_wrong, paint, wrap

STEPS = [2**i for i in range(11)]
SAMPLES = {"stories": 256, "text": 64}  # where --num-samples does not say otherwise
SLOW = {"stories": (128, 64), "text": (512, 8)}  # a CPU: from so many steps on, so few samples
FEW = 8  # the steps of FS-DFM that are shown beside the most steps of DFM
SURPRISE = math.log(1000)  # nats: a token that the judge thinks this unlikely is shaded

# ------------------------------------------------------------------------------------------------
# measures


def count_ngrams(x, n):
    """For each of the samples x (N, L), how often each n-gram occurs in it: N Counters."""
    grams = x.unfold(1, n, 1)  # (N, L - n + 1, n)
    return [Counter(map(tuple, row)) for row in grams.tolist()]


def ngram_entropy(x, n=1):
    """(N,) bits: the entropy of each sample's histogram of n-grams, from 0 to log2(L - n + 1)."""
    entropies = []
    for counts in count_ngrams(x, n):
        p = torch.tensor(list(counts.values())) / counts.total()
        entropies.append(torch.special.entr(p).sum() / math.log(2))
    return torch.stack(entropies)


def distinct_ngrams(x, n=4):
    """(N,) share of each sample's n-grams that differ from one another, in (0, 1]."""
    return torch.tensor([len(counts) / counts.total() for counts in count_ngrams(x, n)])


def with_errors(values):
    """{name: (N,) values} -> {name: mean, name_error: standard error, 0 for a single sample}."""
    row = {}
    for name, value in values.items():
        row[name] = value.mean().item()
        row[name + "_error"] = (value.std() / len(value) ** 0.5).item() if len(value) > 1 else 0.0
    return row


def measure(x, judge):
    """All measures of samples x (N, L), each with its standard error."""
    nll = long_token_nll(judge, x)
    values = {
        "perplexity": nll.mean(-1).exp(),
        "entropy": ngram_entropy(x),
        "entropy_4grams": ngram_entropy(x, 4),
        "distinct_4grams": distinct_ngrams(x),
    }
    row = {"samples": len(x), "corpus_perplexity": nll.mean().exp().item()}
    row["typical"] = typical(x, values["perplexity"])
    return row | with_errors(values)


def typical(x, badness):
    """The tokens of the text with the median badness (N,), of x (N, L)."""
    return x[badness.argsort(stable=True)[len(x) // 2]].tolist()


def measure_stories(x, dataset):
    """Right stories, their mistakes and their variety, for samples x (N, L); {} if the tokens of
    the dataset are not those of stories."""
    if not can_check(dataset.tokenizer):
        return {}
    readings = [parse(dataset.tokenizer.decode(row)) for row in x.tolist()]
    mistakes = torch.tensor([len(reading.mistakes) for reading in readings])
    row = with_errors({"right": (mistakes == 0).float(), "mistakes": mistakes.float()})
    row["typical"] = typical(x, mistakes)
    kinds = Counter(mistake.kind for reading in readings for mistake in reading.mistakes)
    row["mistakes_by_kind"] = {kind: kinds[kind] / len(x) for kind in KINDS}
    right = [i for i, reading in enumerate(readings) if not reading.mistakes]
    row["variety"] = variety([readings[i] for i in right])
    rows, known = x.cpu().numpy().astype("uint16"), dataset.known_rows(x.shape[1])
    new = [rows[i].tobytes() not in known for i in right]
    row["new"] = sum(new) / len(new) if new else None
    return row


# ------------------------------------------------------------------------------------------------
# texts, and the time they take


def timed(make):
    """make() -> tokens, and the wall-clock seconds until they are there."""
    began = time.perf_counter()
    x_1 = make()
    x_1.cpu()  # waits for the device
    return x_1, time.perf_counter() - began


def timed_samples(model, shape, steps, sampler, seed, batch_size, callback=None):
    """Texts of `shape` (N, L), at most batch_size at a time, and their seconds. The callback is
    that of flow.generate."""
    torch.manual_seed(seed)
    device = next(model.parameters()).device
    parts = sample_source(shape, model.config, device).split(batch_size)
    with autocast(device):
        return timed(
            lambda: torch.cat(
                [generate(model, x_0, steps, sampler, callback=callback) for x_0 in parts]
            )
        )


def compare_speed(model, judge, x_1, dfm_row, sampler, batch_size):
    """Seconds and tokens per second of each model for as many texts as x_1 (N, L) has.

    dfm_row is the DFM's row at the most steps. Our judge continues the first tokens of x_1.
    """
    N, L = x_1.shape

    writes = isinstance(judge, Transformer)
    total = 3 * N * ((L - 1 if writes else 0) + FEW)
    bar = tqdm(total=total, desc="timing", unit="step", leave=False)

    def on_step(step, x):
        bar.update(len(x))

    def judge_writes():
        parts = x_1[:, :1].split(batch_size)
        with autocast(x_1.device):
            return torch.cat([generate_autoregressive(judge, part, L, on_step) for part in parts])

    rows = []
    with bar:
        if writes:
            seconds = sorted(timed(judge_writes)[1] for _ in range(3))[1]
            rows.append({"model": "judge", "network_calls": L - 1, "seconds": seconds})
        seconds = dfm_row["seconds_per_sample"] * N
        rows.append({"model": "dfm", "network_calls": dfm_row["steps"], "seconds": seconds})
        shape = N, L
        times = [timed_samples(model, shape, FEW, sampler, 0, batch_size, on_step)[1]
                 for _ in range(3)]
        rows.append({"model": "fsdfm", "network_calls": FEW, "seconds": sorted(times)[1]})
    for row in rows:
        tokens = N * (L - 1 if row["model"] == "judge" else L)
        row |= {"texts": N, "tokens_per_second": tokens / row["seconds"]}
    return rows


# ------------------------------------------------------------------------------------------------
# tables


def plus_minus(row, name, digits):
    """Mean ± standard error, as text. A single sample has none."""
    error = f" ± {row[name + '_error']:.{digits}f}" if row["samples"] > 1 else ""
    return f"{row[name]:.{digits}f}{error}"


def story_columns(row):
    """Right stories, also for each second, mistakes, the lowest of the five varieties and new
    ones, as text."""
    lowest = f"{min(row['variety'].values()):.3f}" if row["variety"] else ""
    new = "" if row["new"] is None else f"{row['new']:.2f}"
    speed = ""
    if "seconds_per_sample" in row:
        speed = f"{row['right'] / row['seconds_per_sample']:.2f}"
    right = f"{plus_minus(row, 'right', 3):>16}{speed:>9}"
    return f"{right}{row['mistakes']:>10.2f}{lowest:>9}{new:>6}"


def table(report):
    """The rows as text, a line each."""
    stories = "right" in report["real"]
    heading = f"{'':8}{'steps':>6}{'temp.':>7}"
    names = f"{'right':>16}{'right/s':>9}{'mistakes':>10}{'variety':>9}{'new':>6}"
    heading += names if stories else ""
    heading += f"{'perplexity':>20}{'corpus':>9}{'entropy, bits':>16}"
    lines = [heading + f"{'distinct 4':>12}{'s/sample':>10}{'samples':>9}"]
    for row in [report["real"], *report["rows"]]:
        seconds = f"{row['seconds_per_sample']:.3f}" if "seconds_per_sample" in row else ""
        line = f"{row['model']:8}{row.get('steps', ''):>6}{row.get('temperature', ''):>7}"
        line += story_columns(row) if stories else ""
        digits = 1 if row["perplexity"] >= 10 else 3
        line += f" {plus_minus(row, 'perplexity', digits):>19}"
        line += f" {row['corpus_perplexity']:>8.{digits}f}"
        line += f"{plus_minus(row, 'entropy', 2):>16}{row['distinct_4grams']:>12.3f}"
        lines.append(line + f"{seconds:>10}{row['samples']:>9}")
    return "\n".join(lines)


def speed_table(rows):
    """Seconds and tokens per second, and how many times the slowest's."""
    slowest = max(row["seconds"] for row in rows)
    lines = [f"{rows[0]['texts']} texts at a time:"]
    for row in rows:
        line = f"{row['model']:8}{row['network_calls']:>6} network calls{row['seconds']:>10.2f} s"
        line += f"{row['tokens_per_second']:>12,.0f} tokens/s{slowest / row['seconds']:>8.1f}x"
        lines.append(line)
    return "\n".join(lines)


def example(row, judge, tokenizer, device):
    """(heading, [(str, status)]) of a row's typical text: the status of show/run.py is "wrong" for
    a story's mistakes, or for tokens that surprise the judge, else "settled"."""
    heading = f"{LABELS[row['model']]}, {row['steps']:,} steps"
    if can_check(tokenizer):
        mistakes = parse(tokenizer.decode(row["typical"])).mistakes
        wrong = wrong_places(mistakes)
        count = len(mistakes) or "no"
        heading += f": {count} mistake{'s' * (len(mistakes) != 1)}"
    else:
        x = torch.tensor([row["typical"]], device=device)
        nll = long_token_nll(judge, x)  # (1, L - 1)
        wrong = {i + 1 for i in (nll[0] > SURPRISE).nonzero().flatten().tolist()}
        heading += f": perplexity {nll.mean().exp():.3g}"
    pieces = [printable(piece) for piece in tokenizer.pieces(row["typical"])]
    statuses = ["wrong" if i in wrong else "settled" for i in range(len(pieces))]
    return heading, list(zip(pieces, statuses))


def side_by_side(examples, columns, colour):
    """The texts in columns, each under its heading; below one another if there is little room."""
    across = len(examples) if columns >= NARROWEST * len(examples) else 1
    width = min(60, columns // across - 3)
    blocks = []
    for heading, words in examples:
        marked = words if colour else mark_wrong(words)
        body = [paint(line, width, colour) for line in wrap(marked, width)]
        blocks.append([heading[:width].ljust(width), "-" * width, *body, " " * width])
    if across == 1:
        return "\n".join(line.rstrip() for block in blocks for line in block)
    rows = zip_longest(*blocks, fillvalue=" " * width)
    return "\n".join(" | ".join(row).rstrip() for row in rows)


# ------------------------------------------------------------------------------------------------
# the command


def add_network_flags(parser, steps="1 2 4 ... 1024"):
    """The flags that say which networks and which text; shared with experiments/heldout.py."""
    add = parser.add_argument
    models = ("dfm", *STUDENTS)
    add("--models", choices=models, nargs="+",
        help="which (default: dfm fsdfm; eval.py measures dmd, too, where it has been trained)")
    add("--data", default="stories", help="name given to data/prepare.py (default: stories)")
    add("--out", type=Path, default=OUT, help="folder of the checkpoints (default: out)")
    for name in models:
        add(f"--{name}", type=Path, help=f"a file to use instead of OUT/{name}.pt")
    add("--judge", help="a file, or a causal model of the Hugging Face hub such as gpt2-large, "
        "for GPT-2's tokens (default: OUT/judge.pt)")
    add("--n-head", type=number(int, 1, 1000), help="heads of a published .pth without them")
    add("--length", type=number(int, 5, 2**20), help="tokens (default: those of training)")
    add("--steps", type=number(int, 1, 65536), nargs="+", metavar="N",
        help=f"numbers of steps (default: {steps})")
    add("--num-samples", type=number(int, 1, 10**6),
        help="texts (default: 64; eval.py on stories: 256)")
    add("--batch-size", type=number(int, 1, 65536),
        help="texts at a time (default: 64, or as many as fit)")
    add("--seed", type=seed_number, default=1, help="of every random number (default: 1)")
    add("--device", help="cpu, cuda, cuda:N or mps (default: a GPU if there is one)")
    add_sampler_flags(parser)


def parse_arguments():
    parser = Parser(__doc__)
    add_network_flags(parser)
    add = parser.add_argument
    add("--temperatures", type=number(float, 0.001, 1000), nargs="+", metavar="T", default=[1.0],
        help="temperatures of the draws (default: 1)")
    add_leave_one_out(parser)
    add("--slow-samples", type=number(int, 1, 10**6),
        help="texts at very many steps (default: on a CPU 64 stories from 128 steps on, or 8 other "
             "texts from 512; else as many)")
    return parser.parse_args()


def network_path(arguments, name):
    """The file that its flag names, OUT/NAME.pt, or of stories the network that comes with the
    project, as long as none has been trained."""
    if getattr(arguments, name):
        return getattr(arguments, name)
    if arguments.data == "stories":
        return find_network(arguments.out, name)
    return arguments.out / f"{name}.pt"


def load_all(arguments, device):
    """(judge, {name: network}, {name: hash of its file}, dataset, tokenizer). UserError if they do
    not have the same tokens."""
    judge_path = network_path(arguments, "judge")
    judge, tokenizer, judge_hash = load_judge(judge_path, device)
    networks, hashes = {}, {"judge": judge_hash}
    for name in sorted(set(arguments.models or ["dfm", "fsdfm"])):
        path = network_path(arguments, name)
        published = "teacher_model" if name == "dfm" else "student_ema_model"
        network, tokens = load_model(path, device, published, arguments.n_head)
        if network.config.causal:
            raise UserError(f"{path} is a judge: --{name} takes a diffusion model")
        if tokens.description != tokenizer.description:
            raise UserError(
                f"{judge_path} judges other tokens than those of {path}: "
                "train it on the same --data"
            )
        if network.unfinished:
            print(f"note: {path} is not finished ({network.unfinished})", file=sys.stderr)
        networks[name], hashes[name] = network, file_hash(network.file)
    dataset = Dataset(arguments.data)
    for name, network in {"judge": judge, **networks}.items():
        dataset.must_be_unchanged(network.text, network_path(arguments, name))
    if dataset.tokenizer.description != tokenizer.description:
        raise UserError(
            f"{judge_path} judges other tokens than those of data/{dataset.name}: "
            "name the --data it was trained on"
        )
    if Path(judge_path).parent == WEIGHTS:
        print(f"the networks of {WEIGHTS}, which come with the project")
    return judge, networks, hashes, dataset, tokenizer


def machine_name(device):
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()}, {torch.get_num_threads()} threads"


def kind_of(tokenizer):
    """A key of SAMPLES and SLOW."""
    return "stories" if can_check(tokenizer) else "text"


def jobs_of(arguments, networks, kind, on_cpu):
    """[(model, steps, temperature, samples)]: the rows that are wanted. Unless --steps says so,
    students are measured at few steps alone, up to 64."""
    slow, slow_samples = SLOW[kind]
    slow_samples = min(slow_samples, arguments.num_samples) if on_cpu else arguments.num_samples
    slow_samples = arguments.slow_samples or slow_samples
    jobs = []
    for model in networks:
        for steps in arguments.steps or (STEPS if model == "dfm" else STEPS[:7]):
            samples = slow_samples if steps >= slow else arguments.num_samples
            jobs += [(model, steps, T, samples) for T in arguments.temperatures]
    return jobs


def measure_rows(arguments, networks, hashes, judge, dataset, report, batch_size, save):
    """Measures what the report lacks, row by row, and saves after each. {(model, steps, T): row}.

    Rows of a network that has changed are measured again.
    """
    rows = {}
    for row in report["rows"]:
        if row["network"] == hashes.get(row["model"], row["network"]):
            rows[row["model"], row["steps"], row["temperature"]] = row
    device, length = next(iter(networks.values())).embedding.weight.device, report["length"]
    jobs = jobs_of(arguments, networks, kind_of(dataset.tokenizer), device.type == "cpu")
    total = sum(steps * samples for _, steps, _, samples in jobs)
    with tqdm(total=total, desc="measuring", unit="step", unit_scale=True) as bar:
        for model, steps, temperature, samples in jobs:
            job = model, steps, temperature
            if rows.get(job, {}).get("samples", 0) >= samples:
                bar.update(steps * samples)
                continue
            sampler = make_sampler(arguments, temperature, arguments.leave_one_out)
            x_1, seconds = timed_samples(
                networks[model], (samples, length), steps, sampler, arguments.seed, batch_size,
                callback=lambda step, x_t: bar.update(len(x_t)),
            )
            row = {"model": model, "network": hashes[model], "steps": steps}
            row |= {"temperature": temperature, "seconds_per_sample": seconds / samples}
            used = sampler.for_network(networks[model].config)
            row |= {"update": used.update, "shared_noise": used.shared_noise}
            rows[job] = row | measure(x_1, judge) | measure_stories(x_1, dataset)
            report["rows"] = [rows[job] for job in sorted(rows)]
            save()
            name = "right" if "right" in rows[job] else "perplexity"
            bar.set_postfix_str(f"{model}, {steps}: {name} {rows[job][name]:.2f}")
    return rows


def make_sampler(arguments, temperature=1.0, leave_one_out=False):
    return Sampler(
        grid_power=arguments.grid_power,
        update=arguments.update,
        shared_noise=arguments.shared_noise,
        temperature=temperature,
        leave_one_out=leave_one_out,
        step_conditioning=arguments.step_conditioning,
    )


def print_examples(rows, most, judge, tokenizer, device):
    """A typical text of the DFM in the most steps and in few, and of FS-DFM in few: those with the
    median number of mistakes, or of other text the median perplexity."""
    wanted = dict.fromkeys([("dfm", most), ("dfm", FEW), ("fsdfm", FEW)])  # most may be FEW
    found = [row for job in wanted for row in rows.values()
             if (row["model"], row["steps"]) == job and row["temperature"] == 1
             and "typical" in row]
    if not found:
        return
    shaded = "mistakes" if can_check(tokenizer) else "tokens that surprise the judge (p < 1/1,000)"
    colour = sys.stdout.isatty()
    print(f"\nTypical texts, by the median of all; {shaded} are "
          f"{'shaded' if colour else 'between !exclamation marks!'}:\n")
    examples = [example(row, judge, tokenizer, device) for row in found]
    print(side_by_side(examples, shutil.get_terminal_size((120, 24)).columns, colour))


def main():
    arguments = parse_arguments()
    if arguments.models is None and (arguments.dmd or versions(arguments.out / "dmd.pt")):
        arguments.models = ["dfm", *STUDENTS]
    device = pick_device(arguments.device)
    judge, networks, hashes, dataset, tokenizer = load_all(arguments, device)
    config = next(iter(networks.values())).config
    length = arguments.length or config.block_size
    arguments.num_samples = arguments.num_samples or SAMPLES[kind_of(tokenizer)]
    batch_size = arguments.batch_size or texts_at_a_time(length, config.n_tokens)
    dataset.must_fill(length)
    blocks = dataset.validation_blocks(length).to(device)  # (N, L)
    held = lock(arguments.out / "eval.lock")  # kept open: closing it releases the lock

    # a report of the same judge, seed and so on is continued
    path = arguments.out / "eval.json"
    key = {"judge": hashes["judge"], "text": dataset.meta["text_sha256"], "length": length}
    names = ("seed", "batch_size", "update", "grid_power", "step_conditioning", "shared_noise",
             "leave_one_out")
    key |= {name: getattr(arguments, name) for name in names}
    report = continue_report(path, key)
    if not report:
        report = {"key": key, "machine": machine_name(device), "torch": torch.__version__}
        report |= {"length": length, "rows": []}

    def save():
        write_text(path, json.dumps(report, indent=1))

    report["real"] = {"model": "real"} | measure(blocks, judge) | measure_stories(blocks, dataset)
    for network in networks.values():  # warm-up: a first pass takes longer
        shape = (min(batch_size, arguments.num_samples), length)
        timed_samples(network, shape, 1, make_sampler(arguments), 0, batch_size)
    rows = measure_rows(
        arguments, networks, hashes, judge, dataset, report, batch_size, save
    )
    most = max((steps for model, steps, _ in rows if model == "dfm"), default=None)
    if not {"dfm", "fsdfm"} <= networks.keys() or not most:
        return print(f"\n{table(report)}")

    # the speed of writing
    speed_key = [hashes["dfm"], most, hashes["fsdfm"], FEW]
    if report.get("speed_key") != speed_key:
        report["speed_key"] = speed_key
        row = next(row for row in rows.values() if (row["model"], row["steps"]) == ("dfm", most))
        x_1 = blocks[torch.arange(row["samples"]) % len(blocks)]  # (N, L)
        sampler = make_sampler(arguments)
        report["speed"] = compare_speed(
            networks["fsdfm"], judge, x_1, row, sampler, batch_size
        )
        save()
    print(f"\n{table(report)}\n\n{speed_table(report['speed'])}")
    print_examples(rows, most, judge, tokenizer, device)


if __name__ == "__main__":
    run_command(main)

"""How well do the networks know held-out text? Four measurements beside the curve of eval.py.

    python experiments/heldout.py likelihood   nats per token           -> OUT/likelihood-DATA.json
    python experiments/heldout.py infill       half is generated again  -> OUT/infill-DATA.json
    python experiments/heldout.py longer       2 and 4 times as long    -> OUT/longer-DATA.json
    python experiments/heldout.py reverse      trained on what they write -> OUT/reverse-DATA.json

Likelihood  A bound: integral_0^1 E[generalised KL] dt is at least -log p(x_1), in nats (Shaul et
            al. 2025). It is tight for a perfect model of the mask source, but not of the uniform
            source, so compare it within one source. The judge's likelihood is exact.
Infilling   Half of the tokens of held-out text are given, the others are generated. Accuracy is
            the share of them that equals the real text. The perplexity is the judge's. Real text
            shows what is possible. Under the uniform source a network that was not trained with
            given tokens makes little use of them (flow.reveal). Of stories the first sentence, the
            last one or every second word is given, and right ones are counted: they keep what was
            given.
Longer      Perplexity of each quarter of texts that are longer than a training sequence. Of
            stories the right ones: in rows that are longer than those of the training, and with
            one or two sentences more than any story has that the network was trained on.
Reverse     Perplexity of held-out text under a small autoregressive network that has seen 2,000
            generated texts and nothing else. Text that is wrong teaches it wrong things, and text
            that repeats itself teaches little, so neither noise nor sharpening lowers it. The same
            with 2,000 real texts is the floor (Zhao et al. 2018, "reverse perplexity").

--data NAME measures on text of another kind: prepare it with data/prepare.py --tokens-of pydocs.

Source: FS-DFM (arXiv 2509.20624), whose tables have likelihood and infilling. Before: eval.py.
"""

import json
import math
import random
import sys
from pathlib import Path

# `python experiments/heldout.py` puts experiments/ on the path, and model.py is one folder above
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import common.early  # first: Ctrl-C is quiet from here on

import torch
import torch.nn.functional as F
from tqdm import tqdm

from common.command import Parser, UserError, run_command
from common.device import autocast, pick_device, texts_at_a_time
from common.files import lock, write_text
from common.judge import long_token_nll, next_token_nll, token_nll
from common.optimizer import make_optimizers, set_learning_rate
from data.stories import LONGER_PLOTS, PLOTS, can_check, check, make_story
from eval import FEW, SAMPLES, add_network_flags, load_all, make_sampler, measure_stories
from eval import timed_samples, with_errors
from flow import FINEST, MAX_TRAINING_TIME, Sampler, generalized_kl, generate, sample_path
from flow import sample_source, text_logits
from model import ModelConfig, Transformer
from train import make_config

SAMPLING = (
    "steps", "num_samples", "batch_size", "update", "shared_noise", "grid_power",
    "step_conditioning",
)

# ------------------------------------------------------------------------------------------------
# likelihood


def integrated_loss(model, x_1, points):
    """integral_0^T E[generalised KL at t] dt, T = MAX_TRAINING_TIME: nats per token, (N,).

    Each text has `points` times, evenly spread with a random offset of its own.
    """
    N = len(x_1)
    h = torch.full((N,), 1 / FINEST, device=x_1.device)
    offset = torch.rand(N, device=x_1.device)
    total = torch.zeros(N, device=x_1.device)
    for point in range(points):
        t = (point + offset) / points * MAX_TRAINING_TIME  # (N,)
        x_t = sample_path(x_1, t, model.config)  # (N, L)
        loss = generalized_kl(model(x_t, t, h), x_1, x_t, t, model.config)  # (N, L)
        total += loss.mean(-1) * MAX_TRAINING_TIME / points
    return total


def last_draw_nll(model, x_1):
    """E[-log p(x_1 | x_T)], T = MAX_TRAINING_TIME: the last draw's nats per token, (N,)."""
    config = model.config
    t = torch.full((len(x_1),), MAX_TRAINING_TIME, device=x_1.device)  # (N,)
    h = torch.full_like(t, 1 / FINEST)
    x_t = sample_path(x_1, t, config)  # (N, L)
    logits = text_logits(model(x_t, t, h), config)  # (N, L, V)
    nll = F.cross_entropy(logits.transpose(1, 2), x_1, reduction="none")  # (N, L)
    if config.source == "mask":
        nll = torch.where(x_t == config.mask_id, nll, 0)  # unmasked tokens stay
    return nll.mean(-1)


@torch.no_grad()
def likelihood_bound(model, x_1, points=16):
    """An upper bound on -log p(x_1), in nats per token, (N,) for texts x_1 (N, L).

        integral_0^T E[generalised KL at t] dt + E[-log p(x_1 | x_T)],    T = MAX_TRAINING_TIME

    FS-DFM is conditioned on h = 1/1024, its finest step, which is trained with the data loss.
    """
    bounds = []
    with autocast(x_1.device):
        parts = x_1.split(texts_at_a_time(x_1.shape[1], model.config.n_tokens))
        for part in tqdm(parts, "bounding the likelihood", leave=False):
            bounds.append(integrated_loss(model, part, points) + last_draw_nll(model, part))
    return torch.cat(bounds)


def judge_nll(judge, x_1):
    """-log p(x_1) under the judge, in nats per token, (N,) for texts x_1 (N, L).

    The judge does not predict the first token: it counts as one of V equally likely tokens.
    """
    first = math.log(judge.config.vocab_size)
    return (long_token_nll(judge, x_1).sum(-1) + first) / x_1.shape[1]


# ------------------------------------------------------------------------------------------------
# infilling


def infill(model, x_1, given, steps, sampler=Sampler(), batch_size=64):
    """Generates the tokens of real texts x_1 (N, L) that are not `given` (N, L) bool: (N, L)."""
    parts = []
    with autocast(x_1.device), step_bar("infilling", len(x_1), steps) as bar:
        for text, mask in zip(x_1.split(batch_size), given.split(batch_size)):
            noise = sample_source(text.shape, model.config, text.device)
            x_0 = torch.where(mask, text, noise)
            parts.append(
                generate(model, x_0, steps, sampler, mask, lambda _, x_t: bar.update(len(x_t)))
            )
    return torch.cat(parts)


def step_bar(name, texts, steps):
    """A progress bar that counts the steps of every text."""
    title = f"{name}, {steps} steps"
    return tqdm(total=texts * steps, desc=title, unit="step", leave=False, delay=1)


def measure_filled(filled, judge, x_1, given):
    """Measures of the tokens of `filled` (N, L) that are not given, with their standard errors.

    accuracy    the share that equals the real text x_1 (N, L)
    perplexity  exp of the judge's mean nats, each token given all tokens before it
    """
    gaps = ~given  # (N, L)
    accuracy = ((filled == x_1) & gaps).sum(-1) / gaps.sum(-1)  # (N,)
    scored = gaps[:, 1:]  # the judge does not predict the first token
    nll = (long_token_nll(judge, filled) * scored).sum(-1) / scored.sum(-1)  # (N,)
    return with_errors({"accuracy": accuracy, "perplexity": nll.exp()})


# ------------------------------------------------------------------------------------------------
# longer texts


def perplexity_by_quarter(x, judge):
    """Does the end of a text hold up? A row of perplexity for each quarter of x (N, L)."""
    quarters = long_token_nll(judge, x).chunk(4, dim=1)  # of L - 1 tokens; the last is shortest
    return [with_errors({"perplexity": nll.mean(-1).exp()}) for nll in quarters]


def padded_stories(count, length, plots, tokenizer, seed):
    """Stories of the plots, each with padding tokens to its end: (count, length) int64. UserError
    if one of them is longer."""
    rng = random.Random(seed)
    texts = [make_story(rng, plots) for _ in range(count)]
    longest = max(len(tokenizer.encode(text)) for text in texts)
    if longest > length:
        raise UserError(
            f"a story of {longest} tokens does not fit in {length}: leave out --length, and use "
            "networks that were trained with --block-size 128"
        )
    return torch.from_numpy(tokenizer.encode_rows(texts, length).astype("int64"))


# ------------------------------------------------------------------------------------------------
# reverse perplexity


def train_on(texts, vocab_size, seed, iterations=500):
    """A new causal network that is trained on texts (N, L) alone: the judge of the small preset."""
    settings = make_config("judge", "cpu-text", iterations=iterations)
    names = ("n_layer", "n_head", "dim", "cond_dim", "dropout")
    shape = {name: getattr(settings, name) for name in names}
    config = ModelConfig(vocab_size, texts.shape[1], causal=True, **shape)
    torch.manual_seed(seed)
    network = Transformer(config).to(texts.device)
    optimizers = make_optimizers(network, settings)
    for iteration in tqdm(range(iterations), "training a judge", leave=False):
        set_learning_rate(optimizers, iteration, settings)
        x = texts[torch.randint(len(texts), (settings.batch_size,), device=texts.device)]
        with autocast(texts.device):
            next_token_nll(network, x).mean().backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), settings.clip)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    return network.eval()


# ------------------------------------------------------------------------------------------------
# reports: lines on the screen, and rows for a JSON file


def value_text(row, name, digits=3):
    """Mean ± standard error, as text."""
    return f"{row[name]:.{digits}f} ± {row[name + '_error']:.{digits}f}"


def report_likelihood(networks, judge, blocks, dataset, arguments):
    """Rows of nats per token of held-out blocks (N, L): the judge's, and each network's bound."""
    nats = {"judge": judge_nll(judge, blocks)}
    for name, network in networks.items():
        torch.manual_seed(arguments.seed)
        nats[name] = likelihood_bound(network, blocks)
    rows = []
    for name, values in nats.items():
        row = {"model": name, "blocks": len(blocks)} | with_errors({"nats": values})
        row["corpus_perplexity"] = math.exp(row["nats"])
        rows.append(row)
        bound = "" if name == "judge" else "at most "
        line = f"{name:8}{bound}{value_text(row, 'nats')} nats per token"
        print(f"{line}, corpus perplexity {row['corpus_perplexity']:.1f}")
    return rows


def spread(blocks, count):
    """`count` of the blocks (N, L), evenly spread over the text."""
    return blocks[torch.linspace(0, len(blocks) - 1, min(count, len(blocks))).long()]


def given_tokens(x_1, tokenizer):
    """{name: which tokens of x_1 (N, L) are given, (N, L) bool}: half of every text, or parts of a
    story."""
    L = x_1.shape[1]
    positions = torch.arange(L, device=x_1.device)
    if can_check(tokenizer):
        stops = (x_1 == tokenizer.ids["."]).int()  # (N, L)
        before = stops.cumsum(-1) - stops  # (N, L), sentences that end before the token
        return {
            "first sentence": before == 0,
            "last sentence": before == stops.sum(-1, keepdim=True) - 1,
            "every second word": (positions % 2 == 0).expand(x_1.shape),
        }
    ranks = torch.rand(x_1.shape, device=x_1.device).argsort(-1)  # every row a permutation
    return {"random half": ranks < L // 2, "first half": (positions < L // 2).expand(x_1.shape)}


def report_infill(networks, judge, blocks, dataset, arguments):
    """Rows of accuracy and perplexity, and of right stories, of held-out blocks (N, L), when a part
    of each is given."""
    x_1 = spread(blocks, arguments.num_samples)
    sampler, batch_size = make_sampler(arguments), arguments.batch_size
    torch.manual_seed(arguments.seed)
    rows = []
    for pattern, given in given_tokens(x_1, dataset.tokenizer).items():
        real = {"given": pattern, "model": "real"}
        rows.append(real | measure_filled(x_1, judge, x_1, given))
        for name, network in networks.items():
            for n in arguments.steps:
                torch.manual_seed(arguments.seed)
                filled = infill(network, x_1, given, n, sampler, batch_size)
                row = {"given": pattern, "model": name, "steps": n}
                row |= measure_filled(filled, judge, x_1, given)
                rows.append(row | measure_stories(filled, dataset))
    for row in rows:
        line = f"{row['given']} given: {row['model']:6}{row.get('steps', ''):>5}"
        line += f"  accuracy {value_text(row, 'accuracy')}"
        line += f", perplexity {value_text(row, 'perplexity')}"
        print(f"{line}, right {value_text(row, 'right')}" if "right" in row else line)
    return rows


def new_samples(network, length, steps, at_a_time, arguments):
    """--num-samples texts of `length` tokens, (N, length)."""
    shape, sampler = (arguments.num_samples, length), make_sampler(arguments)
    with step_bar(f"{length} tokens", shape[0], steps) as bar:
        return timed_samples(
            network, shape, steps, sampler, arguments.seed, at_a_time,
            callback=lambda _, x_t: bar.update(len(x_t)),
        )[0]


def report_longer(networks, judge, blocks, dataset, arguments):
    """Rows of perplexity by quarter, for texts 1, 2 and 4 times as long as blocks (N, L)."""
    if dataset.row:
        return report_longer_stories(networks, blocks, dataset.tokenizer, arguments)
    rows = []
    for times in (1, 2, 4):
        length, at_a_time = times * blocks.shape[1], max(1, arguments.batch_size // times)
        real = blocks.flatten()
        texts = {("real", None): real[: len(real) // length * length].view(-1, length)}
        for name, network in networks.items():
            for n in arguments.steps:
                texts[name, n] = new_samples(network, length, n, at_a_time, arguments)
        for (name, n), x in texts.items():
            quarters = perplexity_by_quarter(x, judge)
            row = {"model": name, "steps": n, "length": length, "samples": len(x)}
            rows.append(row | {"quarters": quarters})
            values = "   ".join(value_text(quarter, "perplexity", 1) for quarter in quarters)
            print(f"{length:>6} tokens, {name:6}{n or '':>5}  perplexity by quarter: {values}")
    return rows


def report_longer_stories(networks, blocks, tokenizer, arguments):
    """Rows of right stories, in rows as long as blocks (N, L) and a quarter longer."""
    n, L = arguments.num_samples, blocks.shape[1]
    second = "every second word"
    cases = [  # the stories, their plots, what is given, tokens
        ("of the training's plots", PLOTS, "nothing", L),
        ("of the training's plots", PLOTS, "nothing", L * 5 // 4),
        ("of the training's plots", PLOTS, second, L),
        ("one sentence more", LONGER_PLOTS["one sentence more"], second, L),
        ("two sentences more", LONGER_PLOTS["two sentences more"], second, L * 5 // 4),
    ]
    rows = []
    for stories, plots, pattern, length in cases:
        x_1 = padded_stories(n, length, plots, tokenizer, arguments.seed).to(blocks.device)
        given = torch.zeros_like(x_1, dtype=torch.bool)
        if pattern == second:
            given = given_tokens(x_1, tokenizer)[second]
        for name, network in networks.items():
            for steps in arguments.steps:
                torch.manual_seed(arguments.seed)
                filled = infill(
                    network, x_1, given, steps, make_sampler(arguments), arguments.batch_size
                )
                right = [not check(tokenizer.decode(row), plots) for row in filled.tolist()]
                row = {"stories": stories, "given": pattern, "length": length, "model": name}
                row |= {"steps": steps} | with_errors({"right": torch.tensor(right).float()})
                rows.append(row)
                line = f"{length:>5} tokens, {stories}, {pattern} given: {name:6}{steps:>5}"
                print(f"{line}  right {value_text(row, 'right')}", flush=True)
    return rows


def report_reverse(networks, judge, blocks, dataset, arguments):
    """Rows of the perplexity of held-out blocks (N, L) under networks that are trained on generated
    texts, and on as many real ones."""
    N, L = arguments.num_samples, blocks.shape[1]
    torch.manual_seed(arguments.seed)
    texts = {("real", None): dataset.batch("train", N, L, blocks.device)}
    for name, network in networks.items():
        for n in arguments.steps:
            texts[name, n] = new_samples(network, L, n, arguments.batch_size, arguments)
    rows = []
    for (name, n), x in texts.items():
        learner = train_on(x, judge.config.vocab_size, arguments.seed)
        nll = token_nll(learner, blocks).mean(-1)  # (N,) nats
        row = {"model": name, "steps": n, "samples": N} | with_errors({"nats": nll})
        row["corpus_perplexity"] = math.exp(row["nats"])
        rows.append(row)
        print(f"{name:8}{n or '':>5}  {value_text(row, 'nats')} nats per token, "
              f"reverse perplexity {row['corpus_perplexity']:.1f}", flush=True)
    return rows


REPORTS = {
    "likelihood": report_likelihood,
    "infill": report_infill,
    "longer": report_longer,
    "reverse": report_reverse,
}

# ------------------------------------------------------------------------------------------------
# the command


def parse_arguments():
    """The command line. UserError if a flag has no meaning for the part."""
    parser = Parser(__doc__)
    parser.add_argument("part", choices=REPORTS, help="what is measured; --steps are 8 64 here")
    add_network_flags(parser, steps="8 64")
    defaults = {name: parser.get_default(name) for name in SAMPLING}
    parser.set_defaults(**dict.fromkeys(SAMPLING))  # None: not on the command line
    arguments = parser.parse_args()
    if arguments.part == "likelihood" and "dmd" in (arguments.models or []):
        raise UserError("dmd has no likelihood: what it predicts is no posterior (matching.py)")
    for name, default in defaults.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, default)
        elif arguments.part == "likelihood":
            flag = name.replace("_", "-")
            raise UserError(f"--{flag} has no meaning for likelihood, which samples no text")
    return arguments


def main():
    arguments = parse_arguments()
    device = pick_device(arguments.device)
    judge, networks, hashes, dataset, _ = load_all(arguments, device)
    config = next(iter(networks.values())).config
    length = arguments.length or config.block_size
    dataset.must_fill(4 * length if arguments.part == "longer" and not dataset.row else length)
    blocks = dataset.validation_blocks(length).to(device)  # (N, L)
    held = lock(arguments.out / "eval.lock")
    arguments.steps = arguments.steps or [FEW, 64]
    samples = 2000 if arguments.part == "reverse" else SAMPLES["text"]
    arguments.num_samples = arguments.num_samples or samples
    arguments.batch_size = arguments.batch_size or texts_at_a_time(length, config.n_tokens)

    rows = REPORTS[arguments.part](networks, judge, blocks, dataset, arguments)
    report = {"networks": hashes, "data": dataset.meta["text_sha256"], "rows": rows}
    path = arguments.out / f"{arguments.part}-{dataset.name}.json"
    write_text(path, json.dumps(report, indent=1))


if __name__ == "__main__":
    run_command(main)

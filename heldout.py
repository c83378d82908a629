"""How well do the networks know real text? Its likelihood, and what they write where half of it is missing.

Likelihood  The DFM has no exact one, but a bound: integral_0^1 E[generalised KL] dt is at least -log p(x_1), in nats
            (Shaul et al. 2025). It is tight for a perfect model of the mask source, and not for one of the uniform source:
            compare it within a source only. The judge's is exact.
Infilling   Half of the tokens of held-out text are kept, the others written again: how many come back as they were, and how
            well does the judge think they fit? Real text shows what is possible. Under the uniform source the kept
            tokens are heeded late (flow.generate): few steps fill in worse than the posterior could.

Both can be asked of a text of another kind than that of the training. Source: FS-DFM (arXiv 2509.20624), whose tables have both.
Read next: eval.py, which calls this.
"""

import math

import torch
import torch.nn.functional as F

from distill import FINEST
from flow import LAST_TIME, generalized_kl, generate, in_parts, make_step, sample_path, sample_source, step_times, text_logits
from measures import long_token_nll, with_errors
from model import autocast


@torch.no_grad()
def likelihood_bound(model, x_1, points=16, batch_size=64):
    """An upper bound on -log p(x_1), in nats per token, (N,) for texts x_1 (N, L).

        integral_0^T E[generalised KL at t] dt + E[-log p(x_1 | x_T)],    T = LAST_TIME

    The integral is over the training loss, at `points` times a text, spread evenly with a random offset of its own;
    the second term is the price of the last draw. FS-DFM is asked at its finest step, which learned from the data.
    """
    config, device = model.config, x_1.device

    def loss(logits, x_1, x_t, t):
        return generalized_kl(logits, x_1, x_t, t, config)

    def last_nll(logits, x_1):
        return F.cross_entropy(text_logits(logits, config).transpose(1, 2), x_1, reduction="none")

    bounds = []
    for part in x_1.split(batch_size):
        h = torch.full((len(part),), 1 / FINEST, device=device)
        offset = torch.rand(len(part), device=device)
        total = torch.zeros(len(part), device=device)
        with autocast(device):
            for point in range(points):
                t = (point + offset) / points * LAST_TIME  # (B,)
                x_t = sample_path(part, t, config)
                losses = in_parts(loss, model, model(x_t, t, h, hidden=True), part, x_t, t)  # (B, L)
                total += losses.mean(-1) / points * LAST_TIME
            end = torch.full((len(part),), LAST_TIME, device=device)
            x_t = sample_path(part, end, config)
            last = in_parts(last_nll, model, model(x_t, end, h, hidden=True), part)  # (B, L)
        if config.source == "mask":
            last = torch.where(x_t == config.mask_id, last, 0)
        bounds.append(total + last.mean(-1))
    return torch.cat(bounds)


def judge_nll(judge, x_1):
    """-log p(x_1) under the judge, in nats per token, (N,). Nothing foretells the first token: it is counted as one of
    V equally likely ones."""
    first = math.log(judge.config.vocab_size)
    return (long_token_nll(judge, x_1).sum(-1) + first) / x_1.shape[1]


def infill(model, judge, x_1, kept, steps, batch_size=64):
    """Writes the tokens of real texts x_1 (N, L) that are not `kept` (N, L) bool in `steps` steps, and measures them:
    accuracy, the share that is the real token, and the judge's perplexity of them given all that stands before."""
    parts, step, times = [], make_step(model), step_times(steps, model.config.easing)
    with autocast(x_1.device):
        for text, keep in zip(x_1.split(batch_size), kept.split(batch_size)):
            x_0 = torch.where(keep, text, sample_source(text.shape, model.config, text.device))
            parts.append(generate(step, x_0, times, frozen=keep))
    return measure_filled(torch.cat(parts), judge, x_1, kept)


def measure_filled(filled, judge, x_1, kept):
    """The measures of infilling, for texts `filled` (N, L)."""
    gaps = ~kept  # (N, L)
    gaps_after_first = gaps[:, 1:]
    nll = (long_token_nll(judge, filled) * gaps_after_first).sum(-1) / gaps_after_first.sum(-1)  # (N,)
    accuracy = ((filled == x_1) & gaps).sum(-1) / gaps.sum(-1)
    return with_errors({"accuracy": accuracy, "perplexity": nll.exp()})


# ---------------------------------------------------------------------------------------------------------------
# reports: lines on the screen, and rows for a JSON file


def show(row, *names):
    """"name value ± error" for each name of a row of measures."""
    return ", ".join(f"{name.replace('_', ' ')} {row[name]:.3f} ± {row[name + '_error']:.3f}" for name in names)


def likelihood_report(networks, judge, blocks, seed):
    """Nats per token of held-out text: the judge's own figure, and each network's bound."""
    nats = {"judge": judge_nll(judge, blocks)}
    for name, network in networks.items():
        torch.manual_seed(seed)
        nats[name] = likelihood_bound(network, blocks)
    rows = []
    for name, values in nats.items():
        row = {"model": name, "blocks": len(blocks)} | with_errors({"nats": values})
        row["corpus_perplexity"] = math.exp(row["nats"])
        print(f"{name:8}{'' if name == 'judge' else 'at most '}{show(row, 'nats')} per token, corpus perplexity {row['corpus_perplexity']:.1f}")
        rows.append(row)
    return rows


def infill_report(networks, judge, x_1, steps, seed, batch_size):
    """Accuracy and perplexity of the tokens written where held-out text x_1 (N, L) was taken out."""
    torch.manual_seed(seed)
    patterns = {
        "random half": torch.rand(x_1.shape, device=x_1.device).argsort(-1) < x_1.shape[1] // 2,  # exactly half
        "first half": (torch.arange(x_1.shape[1], device=x_1.device) < x_1.shape[1] // 2).expand(x_1.shape),
    }
    rows = []
    for pattern, kept in patterns.items():
        rows.append({"kept": pattern, "model": "real"} | measure_filled(x_1, judge, x_1, kept))
        for name, network in networks.items():
            for n in steps:
                torch.manual_seed(seed)
                rows.append({"kept": pattern, "model": name, "steps": n} | infill(network, judge, x_1, kept, n, batch_size))
    for row in rows:
        print(f"{row['kept']} kept: {row['model']:6}{row.get('steps', ''):>5}  {show(row, 'accuracy', 'perplexity')}")
    return rows

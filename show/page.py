"""The race as one page for a browser, which needs no network and no server: a template, its
scripts, and what was recorded.

The scripts: page.js has panes and recorded runs, checker.js is data/stories.py's checker, world.js
the exact world. With --live, live.js has two networks write: network.js is model.py in JavaScript,
sampler.js is flow.py, and both run in a worker.
"""

import base64
import json
from pathlib import Path

import numpy as np
import torch

import toy
from data import stories
from data.stories import can_check
from data.tokenizer import MARKS, PAD
from flow import generate
from show.run import LABELS, conclusion, title

FOLDER = Path(__file__).resolve().parent
SCRIPTS = ["checker.js", "page.js", "world.js"]
WORKER = ["network.js", "sampler.js", "worker.js"]


def changes_of(run):
    """For each step a flat list [place, token, percent, ...] of the tokens that are another than
    before, or noise again, which has the percentage -1; else it is the network's probability."""
    percents = np.where(run.is_noise[1:], -1, (100 * run.p).round()).astype(int)  # (n, L)
    moved = (run.states[1:] != run.states[:-1]) | (run.is_noise[1:] != run.is_noise[:-1])
    steps = []
    for k in range(run.steps):
        places = moved[k].nonzero()[0]
        rows = np.stack([places, run.states[k + 1, places], percents[k, places]], axis=1)
        steps.append(rows.flatten().tolist())
    return steps


def run_data(run, runs):
    return {
        "name": run.name,
        "label": LABELS[run.name],
        "title": title(run, runs),
        "steps": run.steps,
        "seconds": [round(value, 4) for value in run.seconds],
        "noise": run.states[0].tolist(),
        "changes": changes_of(run),
        "mistakes": [mistake._asdict() for mistake in run.mistakes or []],
        "verdict": ", ".join(filter(None, (run.verdict(), run.tally()))),
    }


def pieces_of(tokenizer):
    """The str of each token (of byte pairs a character is a byte), the kind of tokens, and the
    words that no blank stands before."""
    ids = range(tokenizer.vocab_size)
    if tokenizer.kind in ("bpe", "gpt2"):  # bytes, since a character may have several tokens
        known, bytes_of = tokenizer.bpe.n_vocab, tokenizer.bpe.decode_single_token_bytes
        pieces = [bytes_of(i).decode("latin-1") if i < known else "" for i in ids]
    else:
        pieces = [tokenizer.pieces([i])[0] or PAD for i in ids]
    return {"pieces": pieces, "pad": PAD, "kind": tokenizer.kind, "marks": MARKS}


def grammar_data():
    """data/stories.py as data, for checker.js. The parts of a template are words and slots."""
    plots = [[[name, [[part if isinstance(part, str) else list(part) for part in template]
                      for template in templates.values()]]
              for name, templates in stories.scenes_of(plot)] for plot in stories.PLOTS]
    return {
        "values": stories.VALUES,
        "kinds": stories.ROLES,
        "classes": stories.CLASSES,
        "pronouns": stories.PRONOUNS,
        "articles": stories.ARTICLES,
        "boys": sorted(stories.BOYS),
        "plots": plots,
    }


def world_data():
    """The distribution of the texts of toy.py, and of what n steps have made of noise after each of
    them: exact, without a network."""
    texts = ["".join("ABCD"[token] for token in text) for text in toy.TEXTS]
    runs = {}
    for n in toy.STEPS:
        states = [np.full(len(texts), 1 / len(texts))]
        times = toy.time_grid(n, 2)
        for t, after in zip(times, times[1:]):
            p = toy.posterior("uniform", t)
            step = toy.transition("uniform", p, t, after - t, last=after == 1)
            states.append(states[-1] @ step)
        runs[n] = np.round(states, 4).tolist()
    return {"texts": texts, "truth": np.round(toy.TEXT.flatten(), 4).tolist(), "runs": runs}


def quantize(weights):
    """Weights in int8, a quarter of the bytes of float32. Every row of a matrix has a scale of its
    own, and its numbers are whole multiples of it:

        W[i, j] is about int8[i, j] scale[i]       scale[i] = max_j |W[i, j]| / 127

    {name: tensor} -> {name: {"int8": (m, n) int8, "scale": (m, 1) float32}}, or the float32 tensor
    of a vector (biases, norms), and of a student's fusers: in each of their rows one number is
    large, and the others would be lost. sample.network_of reads them.
    """
    quantized = {}
    for name, tensor in weights.items():
        tensor = tensor.detach().float().cpu()
        if tensor.ndim == 2 and "fuser" not in name:
            scale = tensor.abs().amax(1, keepdim=True).clamp(min=1e-12) / 127  # (m, 1)
            tensor = {"int8": (tensor / scale).round().to(torch.int8), "scale": scale}
        quantized[name] = tensor
    return quantized


def network_data(model):
    """Config, sampler and weights as `quantize` has them, one after the other, in base64."""
    tensors, parts = [], []
    for name, value in quantize(model.state_dict()).items():
        arrays = list(value.values()) if isinstance(value, dict) else [value]
        tensors.append({"name": name, "shape": list(arrays[0].shape)})
        parts += [array.numpy().tobytes() for array in arrays]
    return {
        "config": vars(model.config),
        "renoise": model.sampler is not generate,
        "tensors": tensors,
        "weights": base64.b64encode(b"".join(parts)).decode(),
    }


def page_data(runs, tokenizer, command):
    """All that the page knows but the networks."""
    return {
        "command": command,
        "tokens": pieces_of(tokenizer),
        "runs": [run_data(run, runs) for run in runs],
        "conclusion": conclusion(runs) if runs else "",
        "world": world_data(),
        "grammar": grammar_data() if can_check(tokenizer) else None,
    }


def to_json(data):
    return json.dumps(data, separators=(",", ":")).replace("</", "<\\/")


def write_page(path, data, live=None):
    """Writes the page: page.html with the data and the scripts in it. `live` has the networks that
    write in it, {"dfm": teacher, name: student}."""

    def source(names):
        return "\n".join((FOLDER / name).read_text("utf-8") for name in names)

    networks = ""
    for name, network in (live or {}).items():
        packed = to_json(network_data(network))
        networks += f'<script type="application/json" id="network-{name}">{packed}</script>\n'
    html = (FOLDER / "page.html").read_text("utf-8")
    parts = {
        "/* DATA */": to_json(data | {"live": list(live or {})}),
        "/* SCRIPTS */": source(SCRIPTS),
        "<!-- NETWORKS -->": networks,
        "/* WORKER */": source(WORKER) if live else "",
        "/* LIVE */": source(["live.js"]) if live else "",
    }
    for place, part in parts.items():
        html = html.replace(place, part)
    Path(path).write_text(html, "utf-8")

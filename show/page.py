"""The race as one page for a browser, which needs no network and no server: a template, its
scripts, and what was recorded.

    page_data     runs, exact world and perhaps a network -> a dict for JSON
    write_page    the dict -> one file of HTML

The scripts: page.js replays the runs. With --live, network.js is model.py in JavaScript, sampler.js
is flow.py, and live.js lets the viewer use them.
"""

import base64
import json
from pathlib import Path

import numpy as np
import torch

import toy
from data.stories import wrong_places
from data.tokenizer import MARKS, PAD
from flow import generate
from show.run import LABELS

FOLDER = Path(__file__).resolve().parent
SCRIPTS = ["page.js"]
LIVE_SCRIPTS = ["network.js", "sampler.js", "live.js"]

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


def run_data(run):
    return {
        "label": LABELS[run.name],
        "steps": run.steps,
        "seconds": [round(value, 4) for value in run.seconds],
        "noise": run.states[0].tolist(),
        "changes": changes_of(run),
        "wrong": sorted(wrong_places(run.mistakes or [])),
        "mistakes": run.mistake_lines(),
        "verdict": run.verdict(),
    }


def pieces_of(tokenizer):
    """The str of each token, and of words which of them stand without a blank before them."""
    pieces = [tokenizer.pieces([i])[0] or PAD for i in range(tokenizer.vocab_size)]
    is_word = tokenizer.description["kind"] == "word"
    return {"pieces": pieces, "pad": PAD, "words": is_word, "marks": MARKS}


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
    where it is a vector (biases, norms). sample.network_of reads them.
    """
    quantized = {}
    for name, tensor in weights.items():
        tensor = tensor.detach().float().cpu()
        if tensor.ndim == 2:
            scale = tensor.abs().amax(1, keepdim=True).clamp(min=1e-12) / 127  # (m, 1)
            tensor = {"int8": (tensor / scale).round().to(torch.int8), "scale": scale}
        quantized[name] = tensor
    return quantized


def network_data(model):
    """Config, sampler and weights: matrices as int8 and scales, vectors as float32, one after the
    other, in base64."""
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


def page_data(runs, tokenizer, command, live=None, label=""):
    """All that the page knows. `live` is the network that runs in the browser."""
    data = {
        "command": command,
        "tokens": pieces_of(tokenizer),
        "runs": [run_data(run) for run in runs],
        "world": world_data(),
    }
    if live is not None:
        data["network"] = network_data(live) | {"label": label}
    return data


def write_page(path, data):
    """Writes the page: page.html with the scripts and the data in it."""
    names = SCRIPTS + (LIVE_SCRIPTS if "network" in data else [])
    scripts = "\n".join((FOLDER / name).read_text("utf-8") for name in names)
    html = (FOLDER / "page.html").read_text("utf-8")
    text = json.dumps(data, separators=(",", ":")).replace("</", "<\\/")
    html = html.replace("/* SCRIPTS */", scripts).replace("/* DATA */", text)
    Path(path).write_text(html, "utf-8")

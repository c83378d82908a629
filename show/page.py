"""The race as one page for a browser, which needs no network and no server: a template, its
scripts, and what was recorded.

    page_data     runs, exact world and perhaps a network -> a dict for JSON
    write_page    the dict -> one file of HTML

The scripts: page.js replays the runs. With --live, network.js is model.py in JavaScript, sampler.js
is flow.py, and live.js lets the viewer use them.
"""

import base64
import itertools
import json
from pathlib import Path

import numpy as np

import toy
from common.files import write_text
from common.quantize import quantize
from data.tokenizer import MARKS, PAD

FOLDER = Path(__file__).resolve().parent
SCRIPTS = ("page.js",)
LIVE_SCRIPTS = ("network.js", "sampler.js", "live.js")
WORLD_STEPS = (1, 2, 4, 8, 16, 64)

# ------------------------------------------------------------------------------------------------
# the runs


def changes_of(run):
    """For each step a flat list [place, token, percent, ...] of the tokens that are another than
    before, or noise again, which has the percentage -1; else it is the network's probability."""
    steps = []
    for k in range(1, run.steps + 1):
        again = run.is_noise[k] & ~run.is_noise[k - 1]  # only renoise does that
        came = ~run.is_noise[k] & run.is_noise[k - 1]
        moved = (run.states[k] != run.states[k - 1]) | again | came
        flat = []
        for place in np.flatnonzero(moved).tolist():
            percent = round(100 * float(run.probabilities[k - 1, place]))
            percent = -1 if run.is_noise[k, place] else percent
            flat += [place, int(run.states[k, place]), percent]
        steps.append(flat)
    return steps


def run_data(run):
    return {
        "label": run.label,
        "steps": run.steps,
        "seconds": [round(value, 4) for value in run.seconds],
        "noise": run.states[0].tolist(),
        "changes": changes_of(run),
        "wrong": sorted(run.wrong),
        "mistakes": [f"word {m.position + 1}: {m.message}" for m in run.mistakes],
        "verdict": run.verdict(),
    }


def pieces_of(tokenizer):
    """The str of each token, and of words which of them stand without a blank before them."""
    is_word = tokenizer.description["kind"] == "word"
    pieces = [tokenizer.pieces([i])[0] for i in range(tokenizer.vocab_size)]
    if is_word:
        pieces = [word if word else PAD for word in pieces]
    return {"pieces": pieces, "pad": PAD, "words": is_word, "marks": MARKS}


# ------------------------------------------------------------------------------------------------
# the exact world


def world_data():
    """The distribution of the texts of toy.py, and of what n steps have made of noise after each of
    them: exact, without a network."""
    symbols = "ABCD"
    texts = ["".join(pair) for pair in itertools.product(symbols, repeat=toy.L)]
    runs = {}
    for n in WORLD_STEPS:
        times = toy.time_grid(n, 2)
        p = np.full(len(texts), 1 / len(texts))
        states = [p]
        for i in range(n):
            step = times[i + 1] - times[i]
            p = p @ toy.transition("uniform", times[i], step, last=i == n - 1)
            states.append(p)
        runs[n] = np.round(states, 4).tolist()
    return {"texts": texts, "truth": np.round(toy.TEXT.flatten(), 4).tolist(), "runs": runs}


# ------------------------------------------------------------------------------------------------
# the network of --live


def network_data(model):
    """Config and weights: matrices as int8 and a float32 scale for each row, vectors as float32,
    one after the other, in base64."""
    tensors, parts = [], []
    for name, value in quantize(model.state_dict()).items():
        if isinstance(value, dict):
            tensors.append({"name": name, "shape": list(value["int8"].shape)})
            parts += [value["int8"].numpy().tobytes(), value["scale"].numpy().tobytes()]
        else:
            tensors.append({"name": name, "shape": list(value.shape)})
            parts.append(value.numpy().tobytes())
    config = {name: getattr(model.config, name) for name in (
        "vocab_size", "block_size", "n_layer", "n_head", "dim", "exponent", "step_aware",
        "time_scale", "positions", "update", "shared_noise",
    )}
    weights = base64.b64encode(b"".join(parts)).decode()
    return {"config": config, "tensors": tensors, "weights": weights}


# ------------------------------------------------------------------------------------------------
# the page


def page_data(runs, tokenizer, command, live=None, label=""):
    """All that the page knows. The runs have been recorded with their probabilities; `live` is the
    network that runs in the browser."""
    data = {
        "command": command,
        "seed": runs[0].seed,
        "tokens": pieces_of(tokenizer),
        "runs": [run_data(run) for run in runs],
        "world": world_data(),
    }
    if live is not None:
        data["network"] = network_data(live) | {"label": label}
    return data


def write_page(path, data):
    """Writes the page: page.html with the scripts and the data in it."""
    names = SCRIPTS + (LIVE_SCRIPTS if "network" in data else ())
    scripts = "\n".join((FOLDER / name).read_text("utf-8") for name in names)
    html = (FOLDER / "page.html").read_text("utf-8")
    text = json.dumps(data, separators=(",", ":")).replace("</", "<\\/")
    html = html.replace("/* SCRIPTS */", scripts).replace("/* DATA */", text)
    write_text(path, html)

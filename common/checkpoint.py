"""Checkpoints: saved so that they survive, loaded so that nothing in them is run.

    save_checkpoint    NAME.pt, with the hash of its bytes at its end; the one before it is kept
                       as NAME.previous.pt
    load_checkpoint    the newer of the two that is intact; numbers and plain values only
    find_network       a trained one's file, or one that comes with the project
    load_model         a trained network from any file, ours or a published one

Plumbing, to be skipped on a first reading.
"""

import hashlib
import os
import sys
from dataclasses import fields
from pathlib import Path

import torch

from common.command import ROOT, UserError
from common.files import OUT, field, file_hash, must_be_ordinary, replace, write_safely
from common.published import NETWORKS, is_published, load_published
from common.quantize import dequantize
from data.tokenizer import Tokenizer, check_description
from flow import UPDATES
from model import ModelConfig, Transformer

WEIGHTS = ROOT / "weights"  # networks that come with the project
FORMAT = 2  # raised when an older program cannot use a newer file, or the other way round
SEAL = b"nanoDFM: SHA-256 of all before: "  # stands before the hash at the end of a checkpoint
KEYS = {"stage", "iteration", "seconds", "config", "settings", "tokenizer", "model", "ema"}
KEYS |= {"optimizers", "dfm", "passes", "format"}
STAGES = ("judge", "dfm", "fsdfm", "dmd")
STUDENTS = STAGES[2:]  # they begin as the DFM
LABELS = {"dfm": "DFM", "fsdfm": "FS-DFM", "dmd": "distribution matching"}
LARGEST = {  # in a network's config: as train.py's flags allow
    "vocab_size": 2**20, "block_size": 2**20, "n_layer": 1000, "n_head": 1000, "dim": 2**16,
    "cond_dim": 2**16, "dropout": 1, "given_share": 1, "exponent": 10, "time_scale": 1e6,
}
WORDS = {
    "source": ("uniform", "mask"), "positions": ("rotary", "sinusoidal"),
    "update": (*UPDATES, "renoise"),
}

# ------------------------------------------------------------------------------------------------
# saving


def previous_name(path):
    """Where the checkpoint before this one is: beside it, also if `path` is a link to it."""
    path = Path(os.path.realpath(path)) if path.is_symlink() else path
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def versions(path):
    """The files that hold a checkpoint, the newest first: `path`, and the one before it."""
    return [p for p in (path, previous_name(path)) if p.exists()]


def save_checkpoint(path, checkpoint, first):
    """Writes the dict. What was in `path` becomes the one before it, or is deleted if this is the
    first checkpoint of its run."""

    def write(temporary):
        with temporary.open("wb") as file:
            torch.save(checkpoint | {"format": FORMAT}, file)
        seal = SEAL + bytes.fromhex(file_hash(temporary))
        with temporary.open("ab") as file:
            file.write(seal)

    write_safely(path, write, keep=None if first else previous_name(path))
    if first:
        previous_name(path).unlink(missing_ok=True)


# ------------------------------------------------------------------------------------------------
# loading


def check_seal(path):
    """UserError if the file ends in a hash that is not its own. Published files end in none."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        end = len(SEAL) + 32
        file.seek(max(0, size - end))
        seal = file.read()
        if not seal.startswith(SEAL):
            return
        file.seek(0)
        digest = hashlib.sha256()
        for start in range(0, size - end, 2**20):
            digest.update(file.read(min(2**20, size - end - start)))
    if digest.digest() != seal[len(SEAL) :]:
        raise UserError(f"{path} is damaged: its bytes are not those that were written")


def read_checkpoint(path):
    """What is in one file, memory-mapped on the CPU. UserError if it is damaged."""
    must_be_ordinary(path)
    check_seal(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # whatever a damaged file makes torch raise
        name = type(error).__name__
        raise UserError(f"{path} is not a readable checkpoint ({name})") from error


def load_checkpoint(path, repair=False):
    """The dict in a checkpoint, with the name of its "file".

    If the file is damaged, the one before it is used, and a line on stderr says so. With `repair`
    (for the process that will write there) it replaces the damaged one. UserError if neither is
    intact.
    """
    path, problem = Path(path), None
    if not path.name or path.is_dir():
        raise UserError(f"{path} is a folder, not a checkpoint")
    for candidate in versions(path):
        try:
            checkpoint = read_checkpoint(candidate)
        except UserError as error:
            problem = problem or error
            continue
        if candidate != path:
            why = problem or f"{path} is missing"
            print(f"{why}: using {candidate}, the one before it", file=sys.stderr)
            if repair:
                replace(candidate, path)
                candidate = path
        if isinstance(checkpoint, dict):
            checkpoint["file"] = str(candidate)
        return checkpoint
    if problem:
        raise UserError(f"{problem}: make or download it again") from problem
    raise UserError(f"there is no {path}{remedy_for(path)}")


def remedy_for(path):
    """What to do about a missing network, as the end of a sentence."""
    if path.stem not in STAGES:
        return ""
    if path.parent != OUT:
        return f": make it with `python train.py {path.stem} --data NAME --out {path.parent}`"
    remedy = f": make it with `python train.py {path.stem}`"
    if (WEIGHTS / path.name).exists():
        remedy += "; `python sample.py --out weights` has one that comes with the project"
    return remedy


def find_network(out, stage):
    """The path of a trained network: OUT/STAGE.pt, or weights/STAGE.pt, which comes with the
    project, as long as nothing has been trained in the default folder `out`."""
    own = [path for name in STAGES for path in versions(out / f"{name}.pt")]
    shipped = WEIGHTS / f"{stage}.pt"
    if out == OUT and not own and shipped.exists():
        return shipped
    return out / f"{stage}.pt"


def must_be_ours(checkpoint, path, stage=None):
    """UserError unless the dict is one that this version of train.py saved, for that stage."""
    version = checkpoint.get("format") if isinstance(checkpoint, dict) else None
    if isinstance(version, int) and version != FORMAT:
        age, remedy = ("a newer", "update") if version > FORMAT else ("an older", "train it again")
        raise UserError(
            f"{path} was written by {age} version of this project "
            f"(format {version}, here {FORMAT}): {remedy}"
        )
    if not isinstance(checkpoint, dict) or not KEYS <= checkpoint.keys():
        raise UserError(f"{path} is no checkpoint of this project")
    check_header(checkpoint, path)
    if stage and checkpoint["stage"] != stage:
        raise UserError(f"{path} is a {checkpoint['stage']}, not a {stage}")


def check_header(checkpoint, path):
    """UserError, with the key, if something beside the weights is not what train.py saves."""
    kinds = {"stage": str, "iteration": int, "seconds": (int, float), "settings": dict,
             "config": dict, "model": dict, "optimizers": list}
    try:
        for name, kind in kinds.items():
            field(checkpoint, name, "the file", kind, 0)
        field(checkpoint, "passes", "the file", int, 1)
        field(checkpoint, "ema", "the file", dict, optional=True)
        field(checkpoint, "dfm", "the file", str, optional=True)
        text = field(checkpoint, "text", "the file", dict, optional=True)  # none in older ones
        for name in ("name", "sha256") if text else ():
            field(text, name, "its text", str)
        field(checkpoint["settings"], "iterations", "its settings", int, 0)
        check_config(checkpoint["config"])
        check_description(checkpoint["tokenizer"])
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}): train it again") from error


def check_config(given):
    """ValueError if this is not the config of a network: a file may have been edited."""
    config = {item.name: item.default for item in fields(ModelConfig)} | given
    for item in fields(ModelConfig):
        kind = (int, float) if item.type is float else item.type
        value = field(config, item.name, "its config", kind, 1 if item.type is int else 0)
        if item.name in LARGEST and value > LARGEST[item.name]:
            raise ValueError(f"{item.name} is too large in its config")
        if item.name in WORDS and value not in WORDS[item.name]:
            raise ValueError(f"{item.name} is an unknown word in its config")
    if config["dim"] % (2 * config["n_head"]):
        raise ValueError("dim is no even multiple of n_head in its config")


def network_of(checkpoint, path, weights="model"):
    """The Transformer of a checkpoint of ours, with its "model" or "ema" weights.

    UserError if config and weights do not fit together.
    """
    try:
        network = Transformer(ModelConfig(**checkpoint["config"]))
        network.load_state_dict(dequantize(checkpoint[weights]))
    except (TypeError, ValueError, RuntimeError, AttributeError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} does not fit together ({reason}): train it again") from error
    return network


def load_model(path, device="cpu", network=NETWORKS[0], n_head=None):
    """A trained network (its EMA if it has one), ready to use, and its tokenizer.

    From a checkpoint of train.py or a published `.pth`, recognised by their keys; `network` and
    `n_head` are for the latter. model.file is the name of the file that was read, model.text says
    what it was trained on, if that is known, model.unfinished how far its training has come, if it
    has not ended. UserError if the file is missing, damaged or something else.
    """
    checkpoint = load_checkpoint(path)
    if is_published(checkpoint):
        model = load_published(checkpoint, network, n_head)
        model.unfinished = None
        tokenizer = Tokenizer({"kind": "gpt2"})
    else:
        must_be_ours(checkpoint, path)
        model = network_of(checkpoint, path, "ema" if checkpoint["ema"] else "model")
        tokenizer = Tokenizer(checkpoint["tokenizer"])
        model.unfinished = what_is_done(checkpoint)
        if tokenizer.vocab_size != model.config.vocab_size:
            reason = "its tokenizer has other tokens than its network"
            raise UserError(f"{path} does not fit together ({reason}): train it again")
    model.file, model.text = checkpoint["file"], checkpoint.get("text")
    return model.to(device).eval(), tokenizer


def what_is_done(checkpoint):
    """How far a training has come, as text; None if it has ended."""
    done, iterations = checkpoint["iteration"], checkpoint["settings"]["iterations"]
    return f"{done} of {iterations} iterations" if done < iterations else None


def load_finished_dfm(path, dataset):
    """The trained DFM that a student starts from. UserError if it is missing, not finished, or of
    other tokens."""
    checkpoint = load_checkpoint(path)
    must_be_ours(checkpoint, path, "dfm")
    dataset.must_match(checkpoint, path)
    if done := what_is_done(checkpoint):
        raise UserError(
            f"{path} is not finished ({done}): go on with `python train.py dfm` and --resume"
        )
    return network_of(checkpoint, path)

"""The published FS-DFM checkpoints, converted into those of this project.

    python -m extras.published FS-DFM.pth out-published      -> out-published/{dfm,fsdfm}.pt
    python sample.py --out out-published

A published `.pth` is a dict of state dicts: `teacher_model`, the many-step DFM, `student_model` and
its EMA `student_ema_model`, FS-DFM. A file with a DFM alone calls it `model`. The network is ours,
with other names, q, k and v apart and not normalised, no sines added to the embedding, and t and h
embedded without a scale. Its tokens are GPT-2's 50,257; one row more is MASK (extras/mask.py).
"""

from config.command import parser_of, stop  # before torch

import os
import re
from pathlib import Path

import torch
from torch import nn

import model
from model import Config

NETWORKS = {"dfm": ("teacher_model", "model"), "fsdfm": ("student_ema_model", "student_model")}
HEADS = {768: 12, 2048: 32}  # of the two published widths, which do not say it themselves
RENAMED = [
    ("vocab_embed", "embedding"),
    ("dt_embedding", "condition.step_embedding"),
    ("time_condition_fuser", "condition.fuser"),
    ("^time_embedding", "condition.time_embedding"),
    (r"(blocks\.\d+|output_layer)\.condition_fuser", r"\1.modulation.fuser"),
    ("adaLN_modulation", "modulation.linear"),
    ("attn_out", "attention.out"),
    ("norm_final", "norm"),
]


class Transformer(model.Transformer):
    """Attention by queries and keys as they are."""

    def __init__(self, config):
        super().__init__(config)
        for block in self.blocks:
            block.attention.qk_norm = nn.Identity()


def our_state(state):
    """A published state dict under our names, q, k and v joined: {name: tensor}."""
    state = {re.sub(r"^(module\.|_orig_mod\.)+", "", name): w for name, w in state.items()}
    ours = {}
    for name, weight in state.items():
        if match := re.fullmatch(r"(blocks\.\d+)\.qw\.weight", name):
            qkv = [state[f"{match[1]}.{letter}w.weight"] for letter in "qkv"]
            ours[f"{match[1]}.attention.qkv.weight"] = torch.cat(qkv)
        elif not re.search(r"\.[kv]w\.|inv_freq", name):
            for theirs, our in RENAMED:
                name = re.sub(theirs, our, name)
            ours[name] = weight
    return ours


def convert(published, network, n_head=None, vocab_size=50257):
    """A checkpoint as train.py saves it, of one state dict of a published one."""
    state = our_state(published[network])
    rows, dim = state["embedding.weight"].shape
    rotary = published[network].get("rotary_emb.inv_freq")
    n_head = n_head or (HEADS.get(dim) if rotary is None else dim // (2 * len(rotary)))
    if n_head is None or rows not in (vocab_size, vocab_size + 1):
        stop(f"its {network} has {rows} tokens and the width {dim}: none of those published has")
    blocks = {name.split(".")[1] for name in state if name.startswith("blocks.")}
    config = Config(
        rows, block_size=1024, n_layer=len(blocks), n_head=n_head, dim=dim,
        cond_dim=len(state["condition.time_embedding.mlp.2.bias"]),
        step_aware="condition.fuser.weight" in state, time_scale=1.0, position_scale=0.0,
    )
    sampler = "extras.samplers.uniform_grid" if rows == vocab_size else "extras.mask.generate"
    return {
        "stage": "fsdfm" if config.step_aware else "dfm", "config": vars(config), "model": state,
        "ema": None, "iteration": 0, "seconds": 0.0, "tokenizer": {"kind": "gpt2"},
        "settings": {"iterations": 0, "sampler": sampler,
                     "architecture": "extras.published.Transformer"},
    }


def main():
    parser = parser_of(__doc__)
    parser.add_argument("file", help="a published .pth")
    parser.add_argument("out", type=Path, help="folder for dfm.pt and fsdfm.pt")
    arguments = parser.parse_args()
    if not os.path.isfile(arguments.file):
        stop(f"there is no file {arguments.file}")
    try:
        published = torch.load(arguments.file, map_location="cpu", weights_only=True, mmap=True)
        found = {stage: next(name for name in names if name in published)
                 for stage, names in NETWORKS.items() if published.keys() & set(names)}
    except Exception as error:  # a damaged file makes torch raise anything
        stop(f"{arguments.file} has no networks ({type(error).__name__})")
    if not found:
        stop(f"{arguments.file} has none of the published networks")
    if any((arguments.out / f"{stage}.pt").exists() for stage in found):
        stop(f"{arguments.out} has networks already: name another folder")
    arguments.out.mkdir(parents=True, exist_ok=True)
    for stage, name in found.items():
        path = arguments.out / f"{stage}.pt"
        torch.save(convert(published, name), f"{path}.new")
        os.replace(f"{path}.new", path)
        print(f"{name} -> {path}")


if __name__ == "__main__":
    main()

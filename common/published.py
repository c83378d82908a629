"""The published FS-DFM checkpoints: their names of weights translated into ours.

A published `.pth` is a dict of state dicts: `teacher_model` (the many-step DFM), `student_model`
and `student_ema_model` (FS-DFM). A file that holds a DFM alone calls it `model`. The network is the
same as ours, with q, k and v apart, and t and h embedded without a scale (time_scale = 1). Its
tokens are GPT-2's. common/checkpoint.py loads a network from either kind of file.
"""

import re

import torch

from common.command import UserError
from model import ModelConfig, Transformer

NETWORKS = ("student_ema_model", "student_model", "teacher_model", "model")
HEADS = {768: 12, 2048: 32}  # by width, of the two published sizes
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


def is_published(checkpoint):
    """Whether a loaded file is of the published format, by its keys."""
    if not isinstance(checkpoint, dict):
        return False
    states = [checkpoint.get(name) for name in NETWORKS]
    return any(isinstance(state, dict) and "vocab_embed" in " ".join(state) for state in states)


def our_name(name):
    for theirs, ours in RENAMED:
        name = re.sub(theirs, ours, name)
    return name


def our_state(state):
    """A published state dict -> ours, and its rotary table if it has one.

    Prefixes of wrappers are dropped, names changed, q, k and v joined.
    """
    state = {re.sub(r"^(module\.|_orig_mod\.)+", "", name): w for name, w in state.items()}
    special = re.compile(r"\.[qkv]w\.|inv_freq")
    ours = {our_name(name): w for name, w in state.items() if not special.search(name)}
    for name in state:
        match = re.fullmatch(r"blocks\.(\d+)\.qw\.weight", name)
        if match:
            block = match[1]
            parts = [state.get(f"blocks.{block}.{letter}w.weight") for letter in "qkv"]
            if any(part is None for part in parts):
                raise UserError(
                    f"the checkpoint is incomplete: block {block} lacks its k or v weights"
                )
            ours[f"blocks.{block}.attention.qkv.weight"] = torch.cat(parts)
    return ours, state.get("rotary_emb.inv_freq")


def number_of_heads(n_head, dim, rotary):
    """That of the rotary table, else the published one of this width, else n_head.

    UserError if it is unknown or does not fit.
    """
    stored = dim // (2 * len(rotary)) if rotary is not None else HEADS.get(dim)
    if n_head is None and stored is None:
        raise UserError(
            f"the checkpoint does not store its number of heads, and {dim} is no published width: "
            "give --n-head"
        )
    if n_head is None:
        return stored
    if n_head < 1 or dim % (2 * n_head) or (rotary is not None and n_head != stored):
        what = f", which has {stored}" if stored else f" of width {dim}"
        raise UserError(f"{n_head} heads do not fit this checkpoint{what}")
    return n_head


def config_of(state, rotary, network, n_head, vocab_size):
    """The ModelConfig of a state dict in our names. UserError if it is not an FS-DFM network."""
    try:
        rows, dim = state["embedding.weight"].shape
        cond_dim = state["condition.time_embedding.mlp.2.weight"].shape[0]
        n_head = number_of_heads(n_head, dim, rotary)
    except (KeyError, ValueError, ZeroDivisionError) as error:
        raise UserError(f"the checkpoint's {network} is not an FS-DFM network ({error})") from error
    if rows not in (vocab_size, vocab_size + 1):
        raise UserError(f"the checkpoint has {rows} tokens, and its tokenizer {vocab_size}")
    blocks = {name.split(".")[1] for name in state if name.startswith("blocks.")}
    return ModelConfig(
        vocab_size=vocab_size,
        block_size=1024,
        n_layer=len(blocks),
        n_head=n_head,
        dim=dim,
        cond_dim=cond_dim,
        source="uniform" if rows == vocab_size else "mask",
        step_aware="condition.fuser.weight" in state,
        time_scale=1.0,
    )


def load_published(checkpoint, network="student_ema_model", n_head=None, vocab_size=50257):
    """The Transformer of one of a published checkpoint's NETWORKS.

    One row more than `vocab_size` in the embedding means a MASK token. Tensors of a memory-mapped
    file stay on the disk until they are used; only q, k and v are copied. UserError says what does
    not fit.
    """
    if network not in checkpoint and "model" in checkpoint:
        network = "model"
    if network not in checkpoint:
        there = ", ".join(name for name in NETWORKS if name in checkpoint)
        raise UserError(f"the checkpoint has no {network}, only {there}")
    state, rotary = our_state(checkpoint[network])
    config = config_of(state, rotary, network, n_head, vocab_size)
    with torch.device("meta"):  # no memory for weights that are replaced at once
        model = Transformer(config)
    try:
        missing, unexpected = model.load_state_dict(state, strict=False, assign=True)
    except RuntimeError as error:
        last_line = str(error).splitlines()[-1].strip()
        raise UserError(
            f"the checkpoint's {network} has weights of other sizes: {last_line}"
        ) from error
    if missing or unexpected:
        kind, names = ("lacks", missing) if missing else ("has the unknown", unexpected)
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        raise UserError(f"the checkpoint's {network} {kind} {names[0]}{more}")
    return model.eval()

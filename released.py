"""A trained network from a file: a checkpoint of ours, or a published one of FS-DFM, whose names are translated here.

A released `.pth` is a dict of state dicts: `teacher_model` (the many-step DFM), `student_model` and
`student_ema_model` (FS-DFM); one that holds a DFM alone calls it `model`. The network is the same as ours under other names, with q, k and v apart, and t and h
fed into the sinusoids as they are (time_scale = 1). Its tokens are GPT-2's.
"""

import re

import torch

from checkpoint import UserError, load_checkpoint, must_be_ours, network_of
from data.tokenizer import Tokenizer
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


def is_released(checkpoint):
    """Whether a loaded file is of the published format, told by its keys."""
    networks = [checkpoint.get(name) for name in NETWORKS] if isinstance(checkpoint, dict) else []
    return any(isinstance(state, dict) and any("vocab_embed" in name for name in state) for state in networks)


def our_name(name):
    for theirs, ours in RENAMED:
        name = re.sub(theirs, ours, name)
    return name


def our_state(state):
    """A published state dict -> ours, and its rotary table if it has one: prefixes of wrappers dropped, names changed,
    q, k and v joined."""
    state = {re.sub(r"^(module\.|_orig_mod\.)+", "", name): value for name, value in state.items()}
    ours = {our_name(name): value for name, value in state.items() if not re.search(r"\.[qkv]w\.|inv_freq", name)}
    for name in state:
        if match := re.fullmatch(r"blocks\.(\d+)\.qw\.weight", name):
            parts = [state.get(f"blocks.{match[1]}.{letter}w.weight") for letter in "qkv"]
            if any(part is None for part in parts):
                raise UserError(f"the checkpoint is incomplete: block {match[1]} lacks its k or v weights")
            ours[f"blocks.{match[1]}.attention.qkv.weight"] = torch.cat(parts)
    return ours, state.get("rotary_emb.inv_freq")


def load_released(checkpoint, network="student_ema_model", n_head=None, vocab_size=50257):
    """The Transformer of one of a released checkpoint's NETWORKS.

    The number of heads is that of the rotary table where the file has one, else the published one of this width, else
    `n_head`. One row more than `vocab_size` in the embedding means a MASK token. Tensors of a memory-mapped file stay
    on the disk until used (only q, k, v are copied, to be joined). UserError says what does not fit.
    """
    if network not in checkpoint and "model" in checkpoint:
        network = "model"
    if network not in checkpoint:
        raise UserError(f"the checkpoint has no {network}, only {', '.join(name for name in NETWORKS if name in checkpoint)}")
    state, rotary = our_state(checkpoint[network])
    try:
        rows, dim = state["embedding.weight"].shape
        cond_dim = state["condition.time_embedding.mlp.2.weight"].shape[0]
        stored = dim // (2 * len(rotary)) if rotary is not None else HEADS.get(dim)
    except (KeyError, ValueError, ZeroDivisionError) as error:
        raise UserError(f"the checkpoint's {network} is not an FS-DFM network ({error})") from error
    if n_head is None and stored is None:
        raise UserError(f"the checkpoint does not store its number of heads, and {dim} is no published width: give --n-head")
    if n_head is not None and (n_head < 1 or dim % (2 * n_head) or (rotary is not None and n_head != stored)):
        raise UserError(f"{n_head} heads do not fit this checkpoint" + (f", which has {stored}" if stored else f" of width {dim}"))
    if rows not in (vocab_size, vocab_size + 1):
        raise UserError(f"the checkpoint has {rows} tokens, and its tokenizer {vocab_size}")
    config = ModelConfig(
        vocab_size=vocab_size, block_size=1024, n_layer=len({name.split(".")[1] for name in state if name.startswith("blocks.")}),
        n_head=n_head or stored, dim=dim, cond_dim=cond_dim, source="uniform" if rows == vocab_size else "mask",
        step_aware="condition.fuser.weight" in state, time_scale=1.0,
    )  # fmt: skip
    with torch.device("meta"):  # no memory is taken for weights that are replaced at once
        model = Transformer(config)
    try:
        missing, unexpected = model.load_state_dict(state, strict=False, assign=True)
    except RuntimeError as error:
        raise UserError(f"the checkpoint's {network} has weights of other sizes: {str(error).splitlines()[-1].strip()}") from error
    if missing or unexpected:
        kind, names = ("lacks", missing) if missing else ("has the unknown", unexpected)
        raise UserError(f"the checkpoint's {network} {kind} {names[0]}" + (f" and {len(names) - 1} more" if len(names) > 1 else ""))
    return model.eval()


def load_model(path, device="cpu", network=NETWORKS[0], n_head=None):
    """A trained network (its EMA where it has one), ready to use, and its tokenizer. network.file is the name of the file that was read.

    From a checkpoint of train.py or a published `.pth`, told apart by their keys; `network` and `n_head` are for the
    latter. UserError if the file is missing, damaged or something else.
    """
    checkpoint = load_checkpoint(path)
    if is_released(checkpoint):
        model, tokenizer = load_released(checkpoint, network, n_head), Tokenizer({"kind": "gpt2"})
    else:
        must_be_ours(checkpoint, path)
        model, tokenizer = network_of(checkpoint, path, "ema" if checkpoint["ema"] else "model"), Tokenizer(checkpoint["tokenizer"])
    model.file = checkpoint["file"]
    return model.to(device).eval(), tokenizer

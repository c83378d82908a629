"""The judge: an autoregressive network that scores what the diffusion models write.

It is the Transformer of model.py with a causal mask, trained by `train.py judge` on the same text.
It also writes, one token after the other with a key-value cache, to compare. The scores can be
those of a published network instead, such as GPT-2 Large, the paper's judge:

    python eval.py --judge gpt2-large     needs `pip install transformers`, and GPT-2's tokens

A judge must know the same tokens as the models that it scores, or its perplexity means nothing.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm import tqdm

from common.checkpoint import load_model
from common.command import UserError
from common.device import autocast, texts_at_a_time
from common.files import file_hash
from data.tokenizer import Tokenizer
from flow import adjust_logits, categorical
from model import ModelConfig


def next_token_nll(judge, x):
    """-log p(x[i] | x[:i]) in nats: tokens (B, L) -> (B, L - 1) float32. The training loss is its
    mean."""
    logits, target = judge(x[:, :-1]).float(), x[:, 1:]  # (B, L - 1, V), (B, L - 1)
    nll = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none")
    return nll.view_as(target)


@torch.no_grad()
def token_nll(judge, x):
    """The judge's -log p of every token but the first, in nats: (N, L) -> (N, L - 1) float32."""
    at_a_time = texts_at_a_time(x.shape[1], judge.config.vocab_size)
    parts = tqdm(x.split(at_a_time), "scoring", unit="batch", leave=False, delay=1)
    with autocast(x.device):
        return torch.cat([next_token_nll(judge, part) for part in parts])


def long_token_nll(judge, x):
    """token_nll of texts longer than the judge's block: it scores windows of one block, each half
    a block further, the second half of each (of the first, all). (N, L) -> (N, L - 1)."""
    block, L = judge.config.block_size, x.shape[1]
    if L <= block:
        return token_nll(judge, x)
    parts = [token_nll(judge, x[:, :block])]  # (N, block - 1)
    scored = block
    while scored < L:
        end = min(scored + block // 2, L)
        window = token_nll(judge, x[:, end - block : end])
        parts.append(window[:, scored - end :])
        scored = end
    return torch.cat(parts, dim=1)


# ------------------------------------------------------------------------------------------------
# writing token by token


class KVCache:
    """The keys and values of the tokens that one block has seen, up to `capacity` of them."""

    def __init__(self, capacity):
        self.capacity = capacity
        self.length = 0

    def extend(self, k, v):
        """Adds those of new tokens; returns all so far. (B, heads, length, head_dim) each."""
        if self.length == 0:
            shape = (*k.shape[:2], self.capacity, k.shape[3])
            self.k, self.v = k.new_empty(shape), v.new_empty(shape)
        start, self.length = self.length, self.length + k.shape[2]
        self.k[:, :, start : self.length] = k
        self.v[:, :, start : self.length] = v
        return self.k[:, :, : self.length], self.v[:, :, : self.length]


def set_kv_caches(judge, capacity=None):
    """Gives every block an empty cache, or none."""
    for block in judge.blocks:
        block.attention.kv_cache = KVCache(capacity) if capacity else None


@torch.no_grad()
def generate_autoregressive(judge, x, length, callback=None, temperature=1.0, top_p=1.0):
    """Tokens x (B, n), n >= 1, continued to (B, length), one network call a token.

    callback(step, x) is called after every token.
    """
    set_kv_caches(judge, length)
    try:
        new = x  # the tokens that the network has not seen
        for step in range(1, length - x.shape[1] + 1):
            logits = judge(new, start=x.shape[1] - new.shape[1])[:, -1].float()  # (B, V)
            new = categorical(adjust_logits(logits, temperature, top_p).softmax(-1))[:, None]
            x = torch.cat([x, new], dim=1)
            if callback is not None:
                callback(step, x)
    finally:
        set_kv_caches(judge, None)
    return x


# ------------------------------------------------------------------------------------------------
# published judges


class PublishedJudge:
    """A causal model of the library `transformers` with the interface of our judge: judge(x)."""

    def __init__(self, network):
        self.network = network
        self.text = None  # what it was trained on is not known
        length = getattr(network.config, "max_position_embeddings", 1024)
        vocab_size = network.config.vocab_size
        self.config = ModelConfig(vocab_size=vocab_size, block_size=length, causal=True)

    def __call__(self, x):
        return self.network(x).logits


def load_judge(name, device):
    """(judge, tokenizer, a string that identifies it), for a checkpoint of ours, a folder, or a
    name on the Hugging Face hub. UserError if it cannot be loaded."""
    path = Path(name)
    if path.suffix == ".pt" or path.is_file():
        judge, tokenizer = load_model(path, device)
        if not judge.config.causal:
            raise UserError(f"{path} is no judge: make it with `python train.py judge`")
        if judge.unfinished:
            raise UserError(f"{path} is not finished ({judge.unfinished}): go on with `python "
                            "train.py judge` and --resume")
        return judge, tokenizer, file_hash(judge.file)
    try:
        from transformers import AutoModelForCausalLM
    except ImportError as error:
        raise UserError(
            f"--judge {name} needs the library transformers: pip install transformers"
        ) from error
    try:
        network = AutoModelForCausalLM.from_pretrained(name).float().to(device).eval()
    except (OSError, ValueError) as error:  # no network, no such name, or no causal model
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"the judge {name} cannot be loaded: {reason}") from error
    tokenizer = Tokenizer({"kind": "gpt2"})
    if network.config.vocab_size != tokenizer.vocab_size:
        raise UserError(
            f"the judge {name} has {network.config.vocab_size} tokens, and GPT-2 "
            f"{tokenizer.vocab_size}: it judges other tokens than the models here can write"
        )
    return PublishedJudge(network), tokenizer, str(name)

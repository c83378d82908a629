"""GPT-2 as the judge, as in the paper: it scores text of GPT-2's tokens.

    python eval.py --judge extras.gpt2.large     needs `pip install transformers`, and the network
"""

from config.command import stop
from model import Config


def large(device, tokenizer):
    """GPT-2 Large from the Hugging Face hub, called as a judge of model.py: (x, t) -> logits."""
    if tokenizer["kind"] != "gpt2":
        stop("GPT-2 scores its own tokens: name a --data prepared with --tokenizer gpt2")
    try:
        from transformers import AutoModelForCausalLM
    except ImportError:
        stop("GPT-2 as the judge needs the library transformers: pip install transformers")
    try:
        network = AutoModelForCausalLM.from_pretrained("gpt2-large").float().to(device).eval()
    except (OSError, ValueError) as error:
        stop(f"gpt2-large cannot be loaded: {str(error).strip().splitlines()[0]}")

    def judge(x, t):
        return network(x).logits

    judge.config = Config(network.config.vocab_size, block_size=1024)
    return judge

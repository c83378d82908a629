"""Text from noise, in as few steps as you like.

    python sample.py                                 FS-DFM, 8 steps
    python sample.py --model dfm --steps 64 --watch  every step on the screen
    python sample.py --prompt "Mia had a"            text to begin with, kept as given
    python sample.py --num-samples 4 --check         of stories and books: what is wrong
    python sample.py --race                          4 steps beside 1,024 (show/)

From Python:

    model, tokenizer = load_model(f"{WEIGHTS}/fsdfm.pt")
    texts = write(model, tokenizer, prompt="Mia had a", num_samples=3, steps=8, seed=1)

A network that is not in out/ is taken from weights/, which comes with the project. The work is done
by flow.generate. Read next: eval.py.
"""

from config.command import autocast, named, parser_of, pick_device, stop  # before torch

import os
import sys
import time
from unicodedata import category

import torch

from data.tokenizer import Tokenizer
from data.worlds import world_of
from model import Config

WEIGHTS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "weights")
AT_A_TIME = 64  # texts
REVERSE, PLAIN, HOME_AND_CLEAR = "\033[7m", "\033[0m", "\033[H\033[J"

# ------------------------------------------------------------------------------------------------
# trained networks


def find_network(out, stage):
    """OUT/STAGE.pt; in the default folder, where it has not been trained, weights/STAGE.pt."""
    path, shipped = os.path.join(out, f"{stage}.pt"), os.path.join(WEIGHTS, f"{stage}.pt")
    if os.path.normpath(out) == "out" and not os.path.exists(path) and os.path.exists(shipped):
        return shipped
    return path


def load_checkpoint(path):
    """The dict that train.py saved. stop() if there is none."""
    if not os.path.isfile(path):
        stage = os.path.basename(path).removesuffix(".pt")
        command = "-m extras.matching" if stage == "dmd" else f"train.py {stage}"
        stop(f"there is no {path}: train it with `python {command}` and the same --out")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        checkpoint["config"], checkpoint["model"], checkpoint["tokenizer"]
    except Exception as error:  # a damaged file makes torch raise anything
        stop(f"{path} is no checkpoint of train.py ({type(error).__name__}); "
             "published ones are converted by extras/published.py")
    return checkpoint


def network_of(checkpoint, weights="ema"):
    """The network of a checkpoint, with its EMA weights if it has them, or those trained."""
    state = checkpoint.get(weights) or checkpoint["model"]
    for name, value in state.items():
        if isinstance(value, dict):  # of weights/: int8, and a scale for each row
            state[name] = value["int8"].float() * value["scale"]
    architecture = named(checkpoint["settings"].get("architecture"), "model.Transformer")
    model = architecture(Config(**checkpoint["config"]))
    model.load_state_dict(state)
    return model.eval()


def load_model(path, device="cpu"):
    """(model, tokenizer) of a checkpoint. model.sampler is the function that it is to write with,
    flow.generate unless its training says otherwise."""
    checkpoint = load_checkpoint(path)
    note_unfinished(path, checkpoint)
    model = network_of(checkpoint).to(device)
    model.sampler = named(checkpoint["settings"]["sampler"], "flow.generate")
    return model, Tokenizer(checkpoint["tokenizer"])


def note_unfinished(path, checkpoint):
    done, iterations = checkpoint["iteration"], checkpoint["settings"]["iterations"]
    if done < iterations:
        print(f"note: {path} is not finished, {done} of {iterations} iterations: --resume goes on",
              file=sys.stderr)


def spare_threads(model, texts=1):
    """One thread for this process, where a second one gains nothing: on a CPU, for few texts of a
    small network. On a machine that does other work threads wait for one another, and two draw a
    text 10 times slower than one."""
    weights = sum(parameter.numel() for parameter in model.parameters())
    if next(model.parameters()).device.type == "cpu" and texts * weights < 1e7:
        torch.set_num_threads(1)


# ------------------------------------------------------------------------------------------------
# the same network, used in another way


def at_temperature(model, T):
    """The network with its logits divided by T: below 1 the posterior is sharper, and at 0 it is
    sure of the likeliest token."""

    def network(x, t, h=None):
        return model(x, t, h).float() / max(T, 1e-4)

    network.config = model.config
    return network


def conditioned_on(model, given, text):
    """The network, given that the tokens at `given` (B, L) bool are those of `text` (B, L): it
    reads them at time t = 1, and is sure of them. Best if trained for it (extras/infill.py)."""

    def network(x, t, h=None):
        mask, ids = given[: len(x)], text[: len(x)]  # in training a teacher reads fewer rows
        logits = model(torch.where(mask, ids, x), torch.where(mask, 1.0, t[:, None]), h)
        sure = torch.where(mask, 50.0, 0.0).to(logits.dtype)[..., None]  # others: e^-50 each
        return logits.masked_fill(mask[..., None], 0).scatter_add(-1, ids[..., None], sure)

    network.config = model.config
    return network


# ------------------------------------------------------------------------------------------------
# writing


def prompt_ids(prompt, tokenizer, length):
    """The token ids of a prompt, a list. stop() if it has unknown words, or too many."""
    if unknown := tokenizer.unknown(prompt):
        stop(f"the network has no tokens for: {' '.join(map(repr, unknown[:9]))}")
    ids = tokenizer.encode(prompt).tolist()
    if len(ids) > length:
        stop(f"the prompt has {len(ids)} tokens, and a text has {length}: make it shorter")
    return ids


@torch.no_grad()
def fill(model, template, steps, sampler=None, temperature=1.0, on_step=None):
    """Token ids (B, L) int64, with -1 for each token to be written -> ids (B, L)."""
    if model.config.causal:
        stop("that is a judge, which scores text: name a model that writes, such as fsdfm")
    given = template >= 0
    noise = torch.randint_like(template, model.config.vocab_size)
    network = model if temperature == 1 else at_temperature(model, temperature)
    network = conditioned_on(network, given, template.clamp(min=0)) if given.any() else network
    with autocast(template.device):
        x_0 = torch.where(given, template, noise)
        return (sampler or model.sampler)(network, x_0, steps, on_step=on_step)


def write(model, tokenizer, prompt="", num_samples=1, steps=8, seed=None, **options):
    """A list of texts, str, that begin with the prompt. Options are those of `fill`."""
    if seed is not None:
        torch.manual_seed(seed)
    L, device = model.config.block_size, next(model.parameters()).device
    ids = prompt_ids(prompt, tokenizer, L)
    template = torch.tensor(ids + [-1] * (L - len(ids)), device=device)
    texts, start = [], len(tokenizer.decode(ids))  # the prompt is given back as it was
    for first in range(0, num_samples, AT_A_TIME):
        rows = template.expand(min(AT_A_TIME, num_samples - first), L)
        written = fill(model, rows, steps, **options).tolist()
        texts += [prompt + tokenizer.decode(row)[start:] for row in written]
    return texts


# ------------------------------------------------------------------------------------------------
# the command


def printable(text):
    """Control characters, which a terminal would obey, as U+FFFD."""
    return "".join("\ufffd" if category(c) == "Cc" and c not in "\n\t" else c for c in text)


def watcher(tokenizer, steps):
    """An on_step that prints the first text after each step, changed tokens in reverse."""
    before, number = None, 0

    def on_step(x):
        nonlocal before, number
        if number == steps:  # texts beyond the first AT_A_TIME
            return
        ids, number = x[0].tolist(), number + 1
        changed = [a != b for a, b in zip(ids, before or ids)]
        colour = sys.stdout.isatty()
        pieces = [f"{REVERSE}{piece}{PLAIN}" if new and colour else piece
                  for piece, new in zip(map(printable, tokenizer.pieces(ids)), changed)]
        print(f"{HOME_AND_CLEAR if colour else ''}--- step {number} of {steps}")
        print("".join(pieces), flush=True)
        time.sleep(min(0.5, 8 / steps) if colour else 0)
        before = ids

    return on_step


def parse_arguments():
    parser = parser_of(__doc__)
    add = parser.add_argument
    add("--model", default="fsdfm", help="dfm, fsdfm, dmd: OUT/MODEL.pt (default: fsdfm)")
    add("--steps", type=int, default=8, help="steps from noise to text (default: 8)")
    add("--prompt", default="", help="text to begin with, kept as given")
    add("--num-samples", type=int, default=1, help="texts (default: 1)")
    add("--temperature", type=float, default=1.0, help="below 1: less variety; 0: greedy")
    add("--sampler", help="a function in the place of flow.generate, MODULE.NAME, such as "
        "extras.samplers.euler (default: that of the network's training)")
    add("--seed", type=int, default=1, help="same seed and --num-samples, same texts (default: 1)")
    add("--check", action="store_true", help="say what is wrong with each story or book")
    add("--watch", action="store_true", help="print the first text after every step")
    add("--out", default="out", help="folder of the checkpoints (default: out)")
    add("--device", help="cpu, cuda or cuda:N (default: a GPU if there is one)")
    arguments = parser.parse_args()
    if min(arguments.steps, arguments.num_samples) < 1 or arguments.temperature < 0:
        stop("--steps and --num-samples must be above 0, --temperature at least 0")
    return arguments


def main():
    if any(word.split("=")[0] in ("--race", "--html", "--gif") for word in sys.argv):
        from show.command import main as race

        return race()
    arguments = parse_arguments()
    path = find_network(arguments.out, arguments.model)
    model, tokenizer = load_model(path, pick_device(arguments.device))
    world = world_of(tokenizer)
    if arguments.check and world is None:
        stop(f"--check is for stories and books, and {path} was trained on another text")
    spare_threads(model, arguments.num_samples)
    began = time.perf_counter()
    texts = write(
        model, tokenizer, arguments.prompt, arguments.num_samples, arguments.steps, arguments.seed,
        sampler=arguments.sampler and named(arguments.sampler, "flow.generate"),
        temperature=arguments.temperature,
        on_step=watcher(tokenizer, arguments.steps) if arguments.watch else None,
    )
    seconds = time.perf_counter() - began
    for text in texts:
        print(printable(text))
        if arguments.check:
            print("\n".join(f"  {mistake}" for mistake in world.check(text)) or "  right")
        print("-" * 80)
    told = "" if arguments.watch else f", {seconds:.2f} s"  # --watch waits between the steps
    print(f"[{path}, {arguments.steps} steps{told}]", file=sys.stderr)


if __name__ == "__main__":
    main()

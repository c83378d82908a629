"""The one training loop, for all networks.

    python train.py judge      a causal transformer, which scores what the others write
    python train.py dfm        the many-step baseline: generalised KL to the text (flow.py)
    python train.py fsdfm      the few-step student: starts as the DFM, has its EMA as its teacher
    python train.py dmd        another student of the DFM, by distribution matching (matching.py)

Ctrl-C saves and ends. --resume goes on after that or any other interruption.
On several GPUs: torchrun --nproc-per-node 8 train.py dfm
A batch whose logits (B, L, V) are too large for the memory is made smaller with --batch-size. The
expected gradient stays the same if --accumulation grows by as much.

Every forward pass has a random seed of its own, made of (seed, iteration, pass). A resumed run
therefore sees what an undisturbed one would have seen, and 8 GPUs see what one sees with 8 times
the accumulation. Read next: sample.py.
"""

import common.early  # first: Ctrl-C is quiet from here on

import copy
import math
import os
import sys
import time
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path

import torch
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from common.checkpoint import STAGES, STUDENTS, load_finished_dfm, previous_name, versions
from common.command import Parser, UserError, number, printable, run_command
from common.device import autocast, can_compile, gradient_scaler, pick_device
from common.files import OUT, file_hash, lock, must_be_ordinary, open_log
from common.judge import generate_autoregressive, next_token_nll
from common.optimizer import make_optimizers, must_fit, set_learning_rate
from common.run import Run, add_auxiliary, must_be_finite, resume_run, save_run
from common.signals import StopRequest
from data.dataset import Dataset
from distill import STEP_WEIGHTS, TARGETS, distillation_loss, update_ema
from flow import UPDATES, dfm_loss, generate, sample_source
from matching import matching_loss
from model import ModelConfig, Transformer, copy_dfm_weights

# ------------------------------------------------------------------------------------------------
# settings


def setting(default, text, lowest=None, highest=None, choices=None):
    """A field of Config that is a flag: its default, its help text, its range or its choices."""
    metadata = {"text": text, "range": (lowest, highest), "choices": choices}
    return field(default=default, metadata=metadata)


POSITIONS = ("sinusoidal", "rotary")
LAST_JUMPS = ("posterior", "published")  # x_1 ~ p, or no special case: docs/paper.md
FREQUENCY_OF = ("place", "text")  # matching.py


@dataclass
class Config:
    """The settings of a run. Defaults: those of `train.py dfm --preset cpu --recipe ours`."""

    # network
    block_size: int = setting(128, "L, tokens in a sequence", 8, 2**20)
    n_layer: int = setting(4, "transformer blocks", 1, 1000)
    n_head: int = setting(4, "attention heads", 1, 1000)
    dim: int = setting(128, "d, width of the residual stream", 2, 2**16)
    cond_dim: int = setting(64, "width of the embeddings of t and h", 1, 2**16)
    dropout: float = setting(0.0, "dropout of every branch", 0, 0.99)
    source: str = setting("uniform", "x_0: random tokens or MASK", choices=("uniform", "mask"))
    exponent: float = setting(1.0, "the schedule is kappa(t) = t^X", 1, 10)
    time_scale: float = setting(1000.0, "t and h are embedded times X", 0.001, 1e6)
    positions: str = setting("sinusoidal", "absolute ones, too, or rotary alone", choices=POSITIONS)
    given_share: float = setting(0.0, "share of texts in which some tokens are given", 0, 1)
    # optimization
    batch_size: int = setting(16, "sequences in a forward pass, on each GPU", 1, 2**16)
    accumulation: int = setting(1, "forward passes in an iteration", 1, 2**16)
    iterations: int = setting(5000, "weight updates", 1, 2**31)
    optimizer: str = setting("muon", "Muon and AdamW, or AdamW alone", choices=("muon", "adamw"))
    learning_rate: float = setting(2.5e-3, "peak learning rate", 1e-9, 10)
    warmup: int = setting(50, "iterations in which the learning rate rises", 0, 2**31)
    lr_schedule: str = setting("linear", "to 0, or cosine to 1/10", choices=("linear", "cosine"))
    decay: float = setting(0.5, "share of the iterations in which a linear schedule falls", 0, 1)
    weight_decay: float = setting(0.1, "of Muon's matrices; with adamw of all weights", 0, 10)
    clip: float = setting(1.0, "largest norm of the gradient", 1e-6, 1e9)
    loss_weight_max: float = setting(5.0, "the loss weight is clipped at X", 0.1, 1e9)
    seed: int = setting(1, "of every random number", 0, 2**32 - 1)
    validate_every: int = setting(500, "iterations between validations and checkpoints", 1, 2**31)
    # distillation (fsdfm)
    teacher: str = setting("rk4", "target of the shortcut teacher", choices=TARGETS)
    mean: str = setting("logits", "the teacher averages", choices=("logits", "probabilities"))
    update: str = setting("cumulative", "rule of the teacher's jumps", choices=UPDATES)
    teacher_last_jump: str = setting("posterior", "its jump to t = 1", choices=LAST_JUMPS)
    step_weights: str = setting("balanced", "how often each h is trained", choices=STEP_WEIGHTS)
    data_steps: int = setting(0, "h <= 1/X has the data loss; 0: X = L/2, 1: no teacher", 0, 1024)
    training_grid: str = setting("dyadic", "trained (t, h)", choices=("dyadic", "sampler"))
    step_aware: str = setting("on", "condition the network on h", choices=("on", "off"))
    fuser_init: str = setting("copy", "new layers of the student", choices=("copy", "fresh"))
    ema_decay: float = setting(0.98, "of the teacher's weights", 0, 0.999999)
    ema_warmup: str = setting("on", "lower EMA decay at first", choices=("on", "off"))
    # distribution matching (dmd)
    auxiliary_rate: float = setting(5.0, "the auxiliary's learning rate is X times as high", 0, 1e3)
    frequency_weight: float = setting(4.0, "of token frequencies in the loss", 0, 1e3)
    frequency_of: str = setting("place", "counted at each place or over all", choices=FREQUENCY_OF)
    anchor: float = setting(0.1, "of KL(student || DFM) in the student's loss", 0, 1e3)
    text_share: float = setting(0.0, "share of its states that are text on the path", 0, 0.9)
    shared_noise: str = setting("on", "tokens of a text draw together", choices=("on", "off"))


NETWORK = (
    "block_size", "n_layer", "n_head", "dim", "cond_dim", "source", "exponent", "time_scale",
    "positions", "given_share",
)

# Sizes: overrides of the defaults for every stage, then for one stage. Learning rates, warm-up and
# the EMA decay belong to the length of a run, and so to its size. The paper's are of 128 sequences
# an iteration, 96 for the student, on one GPU: with N GPUs divide --accumulation by N.
DMD = {"optimizer": "adamw", "weight_decay": 0.0, "ema_decay": 0.99, "validate_every": 200}
DMD_STORIES = DMD | {"iterations": 1400, "learning_rate": 4e-4}
DMD_TEXT = DMD | {
    "iterations": 800, "learning_rate": 2e-4, "frequency_weight": 2.0,
    "frequency_of": "text", "anchor": 0.2, "text_share": 0.4, "shared_noise": "off",
}
REAL_TEXT = {"positions": "rotary", "loss_weight_max": 2.0}
CPU_TEXT = REAL_TEXT | {
    "n_layer": 3, "n_head": 2, "learning_rate": 5e-3,
    "judge": {"iterations": 300, "dropout": 0.1},
}
PAPER_RUN = REAL_TEXT | {
    "block_size": 1024, "dropout": 0.1, "warmup": 10_000, "decay": 0.9, "ema_decay": 0.9995,
    "validate_every": 5000, "learning_rate": 3e-4, "iterations": 1_000_000,
    "judge": {"iterations": 100_000},
    "dmd": DMD_TEXT | {"iterations": 20_000},
}
PRESETS = {
    "tiny": REAL_TEXT | {
        "block_size": 32, "n_layer": 2, "n_head": 2, "dim": 64, "cond_dim": 32, "iterations": 60,
        "learning_rate": 6e-3, "warmup": 5, "validate_every": 30,
        "fsdfm": {"iterations": 30, "learning_rate": 6e-4},
        "dmd": DMD_TEXT | {"iterations": 30, "validate_every": 30},
    },
    "cpu": {
        "judge": {"iterations": 300, "dropout": 0.1, "learning_rate": 5e-3},
        "fsdfm": {"iterations": 1500, "learning_rate": 1.2e-3},
        "dmd": DMD_STORIES,
    },
    "cpu-long": {
        "iterations": 20_000, "validate_every": 1000, "given_share": 0.25,
        "judge": {"iterations": 1000, "dropout": 0.1, "learning_rate": 5e-3},
        "fsdfm": {"iterations": 6000, "learning_rate": 1.2e-3},
        "dmd": DMD_STORIES | {"iterations": 3000},
    },
    "cpu-text": CPU_TEXT | {
        "iterations": 1500, "validate_every": 200,
        "fsdfm": {"iterations": 1200, "learning_rate": 1.2e-3},
        "dmd": DMD_TEXT,
    },
    "cpu-text-long": CPU_TEXT | {
        "iterations": 6000,
        "fsdfm": {"iterations": 2400, "learning_rate": 1.2e-3},
        "dmd": DMD_TEXT | {"iterations": 1200},
    },
    "gpu": REAL_TEXT | {
        "block_size": 256, "n_layer": 8, "n_head": 8, "dim": 512, "cond_dim": 128,
        "batch_size": 64, "iterations": 20_000, "learning_rate": 2e-3, "warmup": 200,
        "ema_decay": 0.99, "validate_every": 1000,
        "judge": {"iterations": 2000, "dropout": 0.1},
        "fsdfm": {"iterations": 3000, "learning_rate": 5e-4},
        "dmd": DMD_TEXT | {"iterations": 3000},
    },
    "paper-small": PAPER_RUN | {
        "n_layer": 12, "n_head": 12, "dim": 768, "cond_dim": 128, "batch_size": 16,
        "accumulation": 8,
        "fsdfm": {"iterations": 500_000, "learning_rate": 1e-5, "accumulation": 6},
    },
    "paper-1.3B": PAPER_RUN | {
        "n_layer": 21, "n_head": 32, "dim": 2048, "cond_dim": 256, "batch_size": 4,
        "accumulation": 32,
        "fsdfm": {"iterations": 500_000, "learning_rate": 1e-5, "accumulation": 24},
    },
}
RECIPES = {
    "ours": {},
    "paper": {  # sample it with --grid-power 1; docs/paper.md lists what else differs
        "optimizer": "adamw", "lr_schedule": "cosine", "weight_decay": 0.03, "time_scale": 1.0,
        "loss_weight_max": 1e9, "step_weights": "paper", "data_steps": 1024,
        "teacher_last_jump": "published", "fuser_init": "fresh", "ema_warmup": "off",
        "positions": "rotary", "given_share": 0.0,
    },
}


def make_config(stage, preset="cpu", recipe="ours", **flags):
    """The defaults, overridden by the preset, the recipe and the flags, in this order."""
    chosen = PRESETS[preset] | PRESETS[preset].get(stage, {}) | RECIPES[recipe] | flags
    return Config(**{name: value for name, value in chosen.items() if name not in STAGES})


def parse_arguments():
    """The command line: (arguments, Config, names of settings that a resumed run must share)."""
    presets = "\n".join(f"  --preset {name}: {values}" for name, values in PRESETS.items())
    parser = Parser(f"{__doc__}\n{presets}\n  --recipe paper: {RECIPES['paper']}")
    parser.add_argument("stage", choices=STAGES, help="which network to train")
    add = parser.add_argument
    add("--data", default="stories", help="name given to data/prepare.py (default: stories)")
    add("--out", type=Path, default=OUT, help="folder of the checkpoints (default: out)")
    add("--preset", choices=PRESETS,
        help="size (default: cpu for stories; for other text gpu with CUDA, else cpu-text)")
    add("--recipe", choices=RECIPES,
        help="ours, or the published one, to be sampled with --grid-power 1 (default: ours)")
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    again.add_argument("--overwrite", action="store_true", help="start again over a checkpoint")
    add("--device", help="cpu, cuda, cuda:N or mps (default: a GPU if there is one)")
    parser.add_boolean("--compile", None, "torch.compile (default: on CUDA)")
    for item in fields(Config):
        flag, meta = "--" + item.name.replace("_", "-"), item.metadata
        kind = str if meta["choices"] else number(item.type, *meta["range"])
        text = f"{meta['text']} (dfm, cpu, ours: {item.default})"
        metavar = None if meta["choices"] else "X"
        add(flag, type=kind, choices=meta["choices"], metavar=metavar, help=text)
    arguments = parser.parse_args()
    names = [item.name for item in fields(Config)]
    given = {name: getattr(arguments, name) for name in names}
    given = {name: value for name, value in given.items() if value is not None}
    return arguments, make_settings(arguments, given), names_to_agree(arguments, given)


def make_settings(arguments, given):
    """The Config of preset, recipe and the flags that were given. UserError if some clash."""
    network_flags = [name for name in given if name in NETWORK]
    if arguments.stage in STUDENTS and network_flags:
        flag = network_flags[0].replace("_", "-")
        raise UserError(f"the student's network is the DFM's: leave out --{flag}")
    on_cuda = pick_device(arguments.device).type == "cuda"
    real_text = "gpu" if on_cuda else "cpu-text"
    preset = arguments.preset or ("cpu" if arguments.data == "stories" else real_text)
    settings = make_config(arguments.stage, preset, arguments.recipe or "ours", **given)
    if settings.dim % (2 * settings.n_head):
        raise UserError(
            f"--dim {settings.dim} must be an even multiple of --n-head {settings.n_head}"
        )
    return settings


def names_to_agree(arguments, given):
    """Names of the settings that --resume must find unchanged: flags that were given, and what
    the preset and the recipe set, if they were named."""
    names = set(given)
    if arguments.preset:
        preset = PRESETS[arguments.preset]
        names |= (preset | preset.get(arguments.stage, {})).keys() - {*STAGES, "accumulation"}
    if arguments.recipe:
        names |= RECIPES["paper"].keys()
    return names - set(NETWORK) if arguments.stage in STUDENTS else names


# ------------------------------------------------------------------------------------------------
# device, network, loss


def torchrun_processes():
    """(rank, world size, local rank) among the processes of torchrun; (0, 1, 0) without it.
    UserError if the environment has some of its variables and not all, or no such numbers."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    given = {name: os.environ[name] for name in names if name in os.environ}
    if not given:
        return 0, 1, 0
    numbers = [given.get(name, "") for name in names]
    if all(number.isascii() and number.isdecimal() for number in numbers):
        rank, world, local_rank = map(int, numbers)
        if rank < world and local_rank < world:
            return rank, world, local_rank
    shown = " ".join(f"{name}={printable(value)}" for name, value in given.items())
    raise UserError(f"the environment has {shown}: use torchrun, which sets {', '.join(names)}, or "
                    "unset them")


def training_device(name, local_rank):
    """The torch.device: of several processes each has a GPU of its own."""
    if name in (None, "cuda") and torch.cuda.is_available():
        name = f"cuda:{local_rank}"
    device = pick_device(name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    torch.set_float32_matmul_precision("high")
    return device


def build_model(stage, settings, dataset, dfm_path, device):
    """A network to start from: fresh, or the trained DFM made step-aware; for dmd with a sampler of
    its own."""
    if stage in STUDENTS:
        dfm = load_finished_dfm(dfm_path, dataset)
    if stage == "dmd":
        if dfm.config.source == "mask":
            raise UserError(f"{dfm_path} has the mask source: dmd needs --source uniform")
        shared_noise = settings.shared_noise == "on"
        config = replace(dfm.config, update="renoise", shared_noise=shared_noise)
        student = Transformer(replace(config, dropout=settings.dropout, step_aware=True))
        copy_dfm_weights(student, dfm)
        return student
    if stage == "fsdfm":
        step_aware = settings.step_aware == "on"
        config = replace(dfm.config, dropout=settings.dropout, step_aware=step_aware)
        student = Transformer(config)
        if step_aware:
            copy_dfm_weights(student, dfm, settings.fuser_init)
        else:
            student.load_state_dict(dfm.state_dict())
        return student
    values = {name: getattr(settings, name) for name in (*NETWORK, "dropout")}
    config = ModelConfig(vocab_size=dataset.tokenizer.vocab_size, **values)
    if stage == "judge":
        config = replace(config, causal=True, source="uniform", given_share=0.0)
    must_fit(config, device)
    return Transformer(config)


def loss_of(stage, model, teacher, x_1, settings):
    """The loss of a stage, mean nats per token, for text x_1 (B, L). The teacher of fsdfm is its
    EMA; dmd has three: EMA, frozen DFM and auxiliary."""
    if stage == "judge":
        return next_token_nll(model, x_1).mean()
    if stage == "dfm":
        return dfm_loss(model, x_1, settings.loss_weight_max)
    if stage == "fsdfm":
        return distillation_loss(model, teacher, x_1, settings)
    return matching_loss(model, *teacher, x_1, settings)


# ------------------------------------------------------------------------------------------------
# validation

SHOWN = 140  # characters of a text


@torch.no_grad()
def validate(run, dataset, device):
    """The stage's own loss on the same four batches of held-out text every time, and one text
    that the network writes: (float, str)."""
    model, settings = run.ema or run.model, run.settings
    teacher = (model, run.frozen_dfm, run.auxiliary) if run.stage == "dmd" else model
    for network in run.trained():
        network.eval()
    torch.manual_seed(0)
    losses = []
    with autocast(device):
        for _ in range(4):
            x_1 = dataset.batch("val", settings.batch_size, settings.block_size, device)
            losses.append(loss_of(run.stage, model, teacher, x_1, settings))
        if run.stage == "judge":
            length = min(settings.block_size, SHOWN)  # a token has one character or more
            x_1 = generate_autoregressive(model, x_1[:1, :8], length)
        else:
            x_0 = sample_source((1, settings.block_size), model.config, device)
            x_1 = generate(model, x_0, steps=8)
    for network in run.trained():
        network.train()
    text = printable(dataset.tokenizer.decode(x_1[0].tolist()))
    return torch.stack(losses).mean().item(), " ".join(text.split())[:SHOWN]


# ------------------------------------------------------------------------------------------------
# a run: started, trained


def start_run(arguments, settings, dataset, device, world):
    """A fresh Run. UserError if it would overwrite another."""
    stage, out = arguments.stage, arguments.out
    path, dfm_path = out / f"{stage}.pt", out / "dfm.pt"
    if versions(path) and not arguments.overwrite:
        raise UserError(f"{path} exists: --resume goes on with it, --overwrite starts again")
    torch.manual_seed(settings.seed)
    model = build_model(stage, settings, dataset, dfm_path, device).to(device)
    ema, dfm = None, None
    if stage in STUDENTS:  # the student's network is the DFM's
        settings = replace(settings, **{name: getattr(model.config, name) for name in NETWORK})
        ema = copy.deepcopy(model).requires_grad_(False).eval()
        dfm = file_hash(dfm_path)
    dataset.must_fill(settings.block_size)
    optimizers, passes = make_optimizers(model, settings), world * settings.accumulation
    scaler = gradient_scaler(device)
    run = Run(stage, settings, path, model, ema, optimizers, passes, dfm, scaler=scaler)
    if stage == "dmd":
        add_auxiliary(run, dataset, device)
    return run


def update_weights(run, network, loss_function, dataset, device, rank):
    """One iteration. Returns its mean loss over this process's forward passes, on the device."""
    settings, accumulation = run.settings, run.settings.accumulation
    total_loss = torch.zeros((), device=device)
    for i in range(accumulation):
        number = (settings.seed * 1_000_003 + run.iteration) * run.passes + rank * accumulation + i
        torch.manual_seed(number % 2**63)
        x_1 = dataset.batch("train", settings.batch_size, settings.block_size, device)  # (B, L)
        if isinstance(network, DistributedDataParallel):  # processes exchange gradients once
            network.require_backward_grad_sync = i == accumulation - 1
        with autocast(device):
            loss = loss_function(x_1, settings) / accumulation
        run.scaler.scale(loss).backward()
        total_loss += loss.detach()
    for optimizer in run.optimizers:
        run.scaler.unscale_(optimizer)
    norms = [torch.nn.utils.clip_grad_norm_(trained.parameters(), settings.clip)
             for trained in run.trained()]
    # clipping spreads one infinite gradient over all: float16's overflow must stop every optimizer
    all_finite = not run.scaler.is_enabled() or all(norm.isfinite() for norm in norms)
    for optimizer in run.optimizers:
        if all_finite:
            run.scaler.step(optimizer)
        optimizer.zero_grad()
    run.scaler.update()
    if run.ema is not None:
        decay = settings.ema_decay
        if settings.ema_warmup == "on":  # a short memory at first, to forget the initial weights
            decay = min(decay, (1 + run.iteration) / (10 + run.iteration))
        update_ema(run.ema, run.model, decay)
    run.iteration += 1
    return total_loss


def train(run, network, loss_function, dataset, device, rank, world):
    """The loop: iterations, a row of the log for every tenth, validations, checkpoints."""
    settings, path = run.settings, run.path
    stop = StopRequest(ignore=rank > 0)
    log = open_log(path.with_suffix(".csv"), run.iteration) if rank == 0 else None
    steps = range(run.iteration, settings.iterations)
    bar = tqdm(steps, f"training {run.stage}", settings.iterations, initial=run.iteration,
               disable=rank > 0)
    began = time.perf_counter() - run.seconds
    for iteration in bar:
        set_learning_rate(run.optimizers, iteration, settings)
        loss = update_weights(run, network, loss_function, dataset, device, rank)
        run.seconds = time.perf_counter() - began
        finished = run.iteration == settings.iterations
        validation_due = run.iteration % settings.validate_every == 0 or finished
        if run.iteration % 10 == 0 or validation_due:
            if world > 1:  # the mean over the processes
                torch.distributed.all_reduce(loss)
                loss /= world
            if rank == 0:
                row = {"iteration": run.iteration, "loss": loss.item()}
                row["seconds"] = round(run.seconds, 2)
                must_be_finite(math.isfinite(row["loss"]), run)
                bar.set_postfix(loss=f"{row['loss']:.3f}")
                if validation_due:
                    nats, text = validate(run, dataset, device)
                    row["validation_loss"] = nats
                    bar.write(f"{run.iteration:>6}  {nats:.3f} nats  {text}")
                log.writerow(row)
                if validation_due:
                    save_run(run, dataset)
        if stop.signal:
            if run.saved != run.iteration:
                save_run(run, dataset)
            bar.close()
            message = f"stopped after iteration {run.iteration}, which is saved"
            print(f"\n{message}: --resume goes on from there", file=sys.stderr)
            sys.exit(128 + stop.signal)


def main():
    # settings
    arguments, settings, agreed = parse_arguments()
    path = arguments.out / f"{arguments.stage}.pt"

    # device, and the processes of torchrun if there are any
    rank, world, local_rank = torchrun_processes()
    device = training_device(arguments.device, local_rank)
    if arguments.stage == "dmd" and world > 1:
        raise UserError("dmd is trained by one process: run it without torchrun")

    # data
    held = lock(arguments.out / "train.lock") if rank == 0 else None  # until the process ends
    for file in (path, previous_name(path)):  # now, not at the first checkpoint
        must_be_ordinary(file)
    dataset = Dataset(arguments.data)

    # network, EMA, optimizers
    if arguments.resume and versions(path):
        run = resume_run(path, settings, agreed, dataset, device, world, repair=rank == 0)
        if run.iteration >= run.settings.iterations:
            return print(f"{path} is finished ({run.settings.iterations} iterations)")
    else:
        run = start_run(arguments, settings, dataset, device, world)
    network, teacher, loss_function = run.model, run.ema, loss_of
    if arguments.compile or (arguments.compile is None and can_compile(device)):
        if teacher is None and world == 1:  # network and loss as one graph: docs/speed.md
            loss_function = torch.compile(loss_of)
        else:
            network, teacher = torch.compile(network), teacher and torch.compile(teacher)
        for other in (run.auxiliary, run.frozen_dfm):
            if other is not None:
                other.compile()
    if run.stage == "dmd":
        teacher = teacher, run.frozen_dfm, run.auxiliary
    if world > 1:
        torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
        network = DistributedDataParallel(network)
        network.config = run.model.config
    if rank == 0:
        millions = sum(p.numel() for p in run.model.parameters()) / 1e6
        tokens = dataset.meta["tokens"]["train"] / 1e6
        print(f"{run.stage}: {millions:.1f}M parameters, {tokens:.2f}M tokens, on {device}")

    # loop
    loss_function = partial(loss_function, run.stage, network, teacher)
    train(run, network, loss_function, dataset, device, rank, world)
    if world > 1:
        torch.distributed.barrier()  # without it one may leave while another still works
        # All is saved. PyTorch's clean-up can wait for ever: it joins gloo's thread and holds
        # Python's global lock (GIL), which that thread may need to free its last tensors.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


if __name__ == "__main__":
    run_command(main)

"""The one training loop, for all three networks.

    python train.py judge      a causal transformer that scores text: the measure of everything else
    python train.py dfm        the many-step baseline: generalised KL between the model and the text (flow.py)
    python train.py fsdfm      the few-step student: starts as the DFM, learns from its own EMA (distill.py)

Ctrl-C saves and ends; --resume goes on after that or any other interruption. On several GPUs: torchrun --nproc-per-node 8 train.py dfm
Every random number of a forward pass comes from a generator seeded by (seed, iteration, number of the pass), so a resumed
run sees what an undisturbed one would have seen, and 8 GPUs see what one sees with 8 times the accumulation. Read next: sample.py.
"""

import argparse
import copy
import math
import os
import sys
import time
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from checkpoint import Parser, StopRequest, UserError, file_hash, load_checkpoint, lock, must_be_ours, network_of, number, open_log, pick_device, run_command, save_checkpoint, versions
from data.dataset import Dataset
from distill import MEANS, RULES, STEP_WEIGHTS, distillation_loss, update_ema
from flow import JUMP_PROBABILITIES, dfm_loss
from judge import next_token_nll
from model import ModelConfig, Transformer, autocast, make_step_aware
from optimizer import learning_rate, make_optimizers, must_fit

# ---------------------------------------------------------------------------------------------------------------
# settings: one row a flag, one column a preset; three values where judge, dfm and fsdfm differ

PRESETS = ("tiny", "cpu", "gpu", "paper-small", "paper-1.3B")
SETTINGS = {
    # flag             tiny              cpu               gpu               paper-small, paper-1.3B, what it is
    "block_size": (32, 128, 256, 1024, 1024, "L, tokens in a sequence"),
    "n_layer": (2, 3, 8, 12, 21, "transformer blocks"),
    "n_head": (2, 2, 8, 12, 32, "attention heads"),
    "dim": (64, 128, 512, 768, 2048, "d, width of the residual stream"),
    "cond_dim": (32, 64, 128, 128, 256, "width of the vector that carries t and h"),
    "dropout": (0.0, (0.1, 0.0, 0.0), (0.1, 0.0, 0.0), 0.1, 0.1, "chance that a branch's number is dropped"),
    "source": ("uniform", "uniform", "uniform", "uniform", "uniform", "what x_0 is: uniform or mask"),
    "exponent": (1.0, 1.0, 1.0, 1.0, 1.0, "kappa(t) = t^X"),
    "batch_size": (16, 16, 64, 16, 4, "sequences in a forward pass, on each GPU"),
    "accumulation": (1, 1, 1, (64, 64, 48), (256, 256, 192), "forward passes in an iteration"),
    "iterations": ((60, 60, 30), (300, 1500, 1200), (2000, 20000, 3000), *[(100000, 1000000, 500000)] * 2, "weight updates"),
    "learning_rate": ((6e-3, 6e-3, 6e-4), (5e-3, 5e-3, 1.2e-3), (2e-3, 2e-3, 5e-4), *[(3e-4, 3e-4, 1e-5)] * 2, "at its highest"),
    "warmup": (5, 50, 200, 10000, 10000, "iterations in which the learning rate rises"),
    "decay": (0.5, 0.5, 0.5, 0.9, 0.9, "last part of the iterations, in which it falls to zero"),
    "weight_decay": (0.1, 0.1, 0.1, 0.03, 0.03, "of the matrices"),
    "largest_rate": (2.0, 2.0, 2.0, 1e9, 1e9, "the weight of late times in the loss is held below it"),
    "clip": (1.0, 1.0, 1.0, 1.0, 1.0, "largest norm of the gradient"),
    "ema_decay": (0.98, 0.98, 0.99, 0.9995, 0.9995, "of the teacher's weights (fsdfm)"),
    "teacher": (*["rk4"] * 5, "the shortcut teacher's rule: rk4, simpson or heun (fsdfm)"),
    "mean": (*["logits"] * 5, "what the teacher takes the mean of: logits or probabilities (fsdfm)"),
    "text_steps": (64, 64, 64, 1024, 1024, "steps of 1/X and finer learn from the text, larger ones from the teacher; 1 is no teacher (fsdfm)"),
    "step_conditioning": (*["on"] * 5, "whether the network is told h: on or off (fsdfm)"),
    "easing": (2.0, 2.0, 2.0, 1.0, 1.0, "n steps of the sampler run between the times 1 - (1 - i/n)^X: above 1 they shrink towards the end"),
    "update": (*["cumulative"] * 5, "the jump probability's scale: cumulative or euler"),
    "step_weights": (*["balanced"] * 3, "paper", "paper", "how often each step size is trained: flat, balanced or paper (1, 2, ..., 1024 from h = 1 to 1/1024) (fsdfm)"),
    "seed": (1, 1, 1, 1, 1, "of every random number"),
    "validate_every": (30, 200, 1000, 5000, 5000, "iterations between validations and checkpoints"),
}
STAGES = ("judge", "dfm", "fsdfm")
CHOICES = {"source": ("uniform", "mask"), "teacher": RULES, "mean": MEANS, "step_conditioning": ("on", "off"), "update": JUMP_PROBABILITIES, "step_weights": STEP_WEIGHTS}
NETWORK = ("block_size", "n_layer", "n_head", "dim", "cond_dim", "source", "exponent")
LIMITS = {  # of the numbers, lowest and highest
    "block_size": (8, 2**20), "n_layer": (1, 1000), "n_head": (1, 1000), "dim": (2, 2**16), "cond_dim": (1, 2**16), "dropout": (0, 0.99), "exponent": (1, 10),
    "batch_size": (1, 2**16), "accumulation": (1, 2**16), "iterations": (1, 2**31), "learning_rate": (1e-9, 10), "warmup": (0, 2**31), "decay": (0, 1), "weight_decay": (0, 10),
    "largest_rate": (0.1, 1e9), "clip": (1e-6, 1e9), "ema_decay": (0, 0.999999), "text_steps": (1, 1024), "easing": (1, 10), "seed": (0, 2**32 - 1), "validate_every": (1, 2**31),
}  # fmt: skip


def preset_value(name, preset, stage):
    value = SETTINGS[name][PRESETS.index(preset)]
    return value[STAGES.index(stage)] if isinstance(value, tuple) else value


def parse_arguments():
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=STAGES, help="which network to train")
    parser.add_argument("--data", default="pydocs", help="name given to data/prepare.py (default: pydocs)")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder of the checkpoints and logs (default: out)")
    parser.add_argument("--preset", choices=PRESETS, help="a column of the table below (default: gpu with CUDA, else cpu)")
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="go on from the last checkpoint, if there is one (default: no)")
    again.add_argument("--overwrite", action="store_true", help="start again, over a checkpoint that is there (default: no)")
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: cuda if there is one)")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="torch.compile (default: on CUDA)")
    table = parser.add_argument_group("settings", "default: the preset's (" + ", ".join(PRESETS) + "; / between stages)")
    for name, (*values, text) in SETTINGS.items():
        kind = type(values[0][0] if isinstance(values[0], tuple) else values[0])
        kind = number(kind, *LIMITS[name]) if name in LIMITS else kind
        shown = ", ".join("/".join(map(str, v)) if isinstance(v, tuple) else str(v) for v in values)
        table.add_argument("--" + name.replace("_", "-"), type=kind, choices=CHOICES.get(name), metavar="X", help=f"{text} ({shown})")
    arguments = parser.parse_args()
    preset = arguments.preset or ("gpu" if pick_device(arguments.device).type == "cuda" else "cpu")
    settings = {name: preset_value(name, preset, arguments.stage) for name in SETTINGS}
    given = {name: value for name in SETTINGS if (value := getattr(arguments, name)) is not None}
    if arguments.stage == "fsdfm" and (shape := [name for name in given if name in NETWORK]):
        raise UserError(f"the student's network is the DFM's: leave out --{shape[0].replace('_', '-')}")
    if arguments.preset:  # all of it must agree with a run that is resumed
        given = {name: settings[name] for name in SETTINGS if name != "seed"} | given
    settings |= given
    if settings["dim"] % (2 * settings["n_head"]):
        raise UserError(f"--dim {settings['dim']} must be an even multiple of --n-head {settings['n_head']}")
    return arguments, settings, given


# ---------------------------------------------------------------------------------------------------------------
# the pieces


def make_loss(stage, settings, ema):
    """loss(network, x_1) -> mean nats per token, for the stage. x_1 (B, L) is text."""
    losses = {
        "judge": lambda network, x_1: next_token_nll(network, x_1).mean(),
        "dfm": lambda network, x_1: dfm_loss(network, x_1, settings["largest_rate"]),
        "fsdfm": lambda network, x_1: distillation_loss(
            network, ema, x_1, STEP_WEIGHTS[settings["step_weights"]], settings["teacher"], settings["mean"], settings["largest_rate"], settings["text_steps"]
        ),
    }
    return losses[stage]


def build_model(stage, settings, dataset, out, device):
    """A network to start from: fresh, or for fsdfm the trained DFM made step-aware."""
    shape = {name: settings[name] for name in (*NETWORK, "dropout", "easing", "update")}
    config = ModelConfig(vocab_size=dataset.tokenizer.vocab_size, **shape)
    if stage != "fsdfm":
        config = replace(config, causal=True, source="uniform") if stage == "judge" else config
        must_fit(config, device)
        return Transformer(config)
    checkpoint = load_checkpoint(out / "dfm.pt")
    must_be_ours(checkpoint, out / "dfm.pt", "dfm")
    dataset.must_match(checkpoint, out / "dfm.pt")
    if checkpoint["iteration"] < checkpoint["settings"]["iterations"]:
        raise UserError(f"{out / 'dfm.pt'} is not finished: run `python train.py dfm --resume`")
    dfm = network_of(checkpoint, out / "dfm.pt")
    changes = {name: settings[name] for name in ("dropout", "easing", "update")}
    student = Transformer(replace(dfm.config, step_aware=settings["step_conditioning"] == "on", **changes))
    if student.config.step_aware:
        make_step_aware(student, dfm)
    else:
        student.load_state_dict(checkpoint["model"])
    return student


# ---------------------------------------------------------------------------------------------------------------
# the loop


def main():
    arguments, settings, given = parse_arguments()
    stage, path = arguments.stage, arguments.out / f"{arguments.stage}.pt"

    # device, and the processes of torchrun if there are any
    rank, world, local_rank = (int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0)))
    device = pick_device(f"cuda:{local_rank}" if arguments.device in (None, "cuda") and torch.cuda.is_available() else arguments.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    torch.set_float32_matmul_precision("high")

    # data, and a run to go on with
    held = lock(arguments.out / "train.lock") if rank == 0 else None
    dataset = Dataset(arguments.data)
    checkpoint = None
    if arguments.resume and versions(path):
        checkpoint = load_checkpoint(path, mend=rank == 0)
        must_be_ours(checkpoint, path, stage)
        dataset.must_match(checkpoint, path)
        if checkpoint["passes"] % world:
            raise UserError(f"{path} was begun with {checkpoint['passes']} forward passes an iteration: {world} processes cannot share them")
        checkpoint["settings"]["accumulation"] = checkpoint["passes"] // world
        for name in given:
            if given[name] != checkpoint["settings"].get(name):
                raise UserError(f"{path} was begun with {name} = {checkpoint['settings'].get(name)}, not {given[name]}: leave the flag out, or use --overwrite instead of --resume")
        if checkpoint["dfm"] and (arguments.out / "dfm.pt").exists() and checkpoint["dfm"] != file_hash(arguments.out / "dfm.pt"):
            raise UserError(f"{path} began as another {arguments.out / 'dfm.pt'}: use --overwrite instead of --resume")
        settings = checkpoint["settings"]
        if checkpoint["iteration"] >= settings["iterations"]:
            return print(f"{path} is finished ({settings['iterations']} iterations)")
    elif versions(path) and not arguments.overwrite:
        raise UserError(f"{path} exists: --resume goes on with it, --overwrite starts again")

    # network, teacher, optimizers
    torch.manual_seed(settings["seed"])
    model = network_of(checkpoint, path) if checkpoint else build_model(stage, settings, dataset, arguments.out, device)
    model.to(device)
    batch_shape = (settings["batch_size"], model.config.block_size)  # (B, L)
    dataset.must_fill(model.config.block_size)
    ema = None
    if stage == "fsdfm":
        ema = copy.deepcopy(model).requires_grad_(False).eval()
        if checkpoint:
            ema.load_state_dict(checkpoint["ema"])
    optimizers = make_optimizers(model, settings)
    if checkpoint:
        for optimizer, state in zip(optimizers, checkpoint["optimizers"]):
            optimizer.load_state_dict(state)
    network, teacher = model, ema
    if arguments.compile if arguments.compile is not None else device.type == "cuda":
        network, teacher = torch.compile(model), ema and torch.compile(ema)
    if world > 1:
        torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
        network = DistributedDataParallel(network)
        network.config, network.read_out = model.config, model.read_out
    loss_of = make_loss(stage, settings, teacher)

    @torch.no_grad()
    def validate():
        """The stage's own loss on the same few batches of validation text every time."""
        judged = ema or model
        judged.eval()
        torch.manual_seed(0)
        with autocast(device):
            losses = [loss_of(judged, dataset.batch("val", *batch_shape, device)) for _ in range(4)]
        model.train()
        return torch.stack(losses).mean().item()

    def save(iteration):
        nonlocal saved
        if not all(p.isfinite().all() for p in model.parameters()):
            raise spoilt(iteration)
        save_checkpoint(path, {
            "stage": stage, "iteration": iteration, "seconds": time.perf_counter() - began, "config": asdict(model.config), "settings": settings,
            "tokenizer": dataset.tokenizer.description, "model": model.state_dict(), "ema": ema and ema.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in optimizers], "dfm": began_as, "passes": passes,
        }, first=saved is None)  # fmt: skip
        saved = iteration

    def spoilt(iteration):
        """The error for weights or a loss that are no numbers any more. The last good checkpoint must stay."""
        kept = f"{path} is of iteration {saved}" if saved else "nothing has been saved"
        return UserError(f"the loss or a weight is not finite at iteration {iteration} ({kept}): try a lower --learning-rate or a longer --warmup, with --overwrite")

    began_as = checkpoint["dfm"] if checkpoint else file_hash(arguments.out / "dfm.pt") if stage == "fsdfm" else None
    saved = checkpoint["iteration"] if checkpoint else None
    start, stop = saved or 0, StopRequest(ignore=rank > 0)
    passes = world * settings["accumulation"]  # forward passes in an iteration, whoever makes them
    if rank == 0:
        log = open_log(arguments.out / f"{stage}.csv", start)
        millions = sum(p.numel() for p in model.parameters()) / 1e6
        print(f"{stage}: {millions:.1f}M parameters, {dataset.meta['tokens']['train'] / 1e6:.2f}M tokens of text, on {device}")
    bar = tqdm(range(start, settings["iterations"]), desc=stage, initial=start, total=settings["iterations"], disable=rank > 0)
    began = time.perf_counter() - (checkpoint["seconds"] if checkpoint else 0)
    for iteration in bar:
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(iteration, settings)
        total_loss = 0.0
        for micro_step in range(settings["accumulation"]):
            torch.manual_seed(((settings["seed"] * 1_000_003 + iteration) * passes + rank * settings["accumulation"] + micro_step) % 2**63)
            x_1 = dataset.batch("train", *batch_shape, device)  # (B, L)
            last = micro_step == settings["accumulation"] - 1
            with nullcontext() if last or world == 1 else network.no_sync(), autocast(device):
                loss = loss_of(network, x_1) / settings["accumulation"]
            loss.backward()
            total_loss += loss.detach()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings["clip"])
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if ema is not None:  # a young EMA forgets faster, or it would hold on to the start
            update_ema(ema, model, min(settings["ema_decay"], (1 + iteration) / (10 + iteration)))

        done = iteration + 1
        if done % 10 == 0 or done == settings["iterations"]:
            if world > 1:  # the mean over the processes
                torch.distributed.all_reduce(total_loss)
                total_loss /= world
            if rank == 0:
                row = {"iteration": done, "loss": total_loss.item(), "seconds": round(time.perf_counter() - began, 2)}
                if not math.isfinite(row["loss"]):
                    raise spoilt(done)
                bar.set_postfix(loss=f"{row['loss']:.3f}")
                if done % settings["validate_every"] == 0 or done == settings["iterations"]:
                    row["validation_loss"] = validate()
                    bar.set_description(f"{stage} (validation {row['validation_loss']:.3f})")
                log.writerow(row)
                if "validation_loss" in row:
                    save(done)
        if stop.signal:
            if saved != done:
                save(done)
            bar.close()
            print(f"\nstopped after iteration {done}, which is saved: --resume goes on from there", file=sys.stderr)
            sys.exit(128 + stop.signal)
    if world > 1:
        torch.distributed.barrier()  # a process that leaves while another still works may crash on its way out
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    run_command(main)

"""A training run: what a checkpoint holds, saved and resumed.

Plumbing, to be skipped on a first reading. `settings` are train.py's Config.
"""

import copy
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from common.checkpoint import (
    STUDENTS, load_checkpoint, load_finished_dfm, must_be_ours, network_of, save_checkpoint,
)
from common.command import UserError
from common.device import gradient_scaler
from common.files import file_hash
from common.optimizer import make_optimizers
from matching import FREQUENCY_TEXTS, Auxiliary, token_frequency
from model import Transformer


@dataclass
class Run:
    """All that is needed to go on."""

    stage: str
    settings: object  # train.Config
    path: Path
    model: Transformer
    ema: Transformer | None  # of a student; FS-DFM's teacher, and what is sampled
    optimizers: list
    passes: int  # forward passes in an iteration, over all processes
    dfm: str | None  # hash of the DFM that a student started from
    frozen_dfm: Transformer | None = None  # of dmd: what it is matched to (matching.py)
    auxiliary: Auxiliary | None = None  # of dmd, trained beside it
    scaler: torch.amp.GradScaler | None = None  # of float16 (common/device.py)
    iteration: int = 0
    saved: int | None = None  # the iteration of the last checkpoint
    seconds: float = 0.0

    def trained(self):
        """The networks that are trained: one, or student and auxiliary."""
        return [self.model] if self.auxiliary is None else [self.model, self.auxiliary]


def must_be_finite(finite, run):
    """UserError if the loss or a weight is non-finite. The last good checkpoint stays."""
    if not finite:
        kept = f"{run.path} is of iteration {run.saved}" if run.saved else "nothing has been saved"
        raise UserError(
            f"the loss or a weight is not finite at iteration {run.iteration} ({kept}): "
            "try a lower --learning-rate or a longer --warmup, with --overwrite"
        )


def save_run(run, dataset):
    """Writes the checkpoint, unless a weight is non-finite."""
    weights = (p for network in run.trained() for p in network.parameters())
    must_be_finite(all(p.isfinite().all() for p in weights), run)
    checkpoint = {
        "stage": run.stage,
        "iteration": run.iteration,
        "seconds": run.seconds,
        "config": asdict(run.model.config),
        "settings": asdict(run.settings),
        "tokenizer": dataset.tokenizer.description,
        "text": {"name": dataset.name, "sha256": dataset.meta["text_sha256"]},
        "model": run.model.state_dict(),
        "ema": run.ema and run.ema.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in run.optimizers],
        "dfm": run.dfm,
        "passes": run.passes,
    }
    if run.auxiliary is not None:
        checkpoint["auxiliary"] = run.auxiliary.state_dict()
    if run.scaler.is_enabled():
        checkpoint["scaler"] = run.scaler.state_dict()
    save_checkpoint(run.path, checkpoint, first=run.saved is None)
    run.saved = run.iteration


def must_agree(checkpoint, path, settings, agreed, world):
    """UserError if the settings named in `agreed` differ from those of the checkpoint, if `world`
    processes cannot share its forward passes, or if it began as another DFM."""
    passes = checkpoint["passes"]
    if passes % world:
        raise UserError(
            f"{path} was begun with {passes} forward passes an iteration: "
            f"{world} processes cannot share them"
        )
    for name in sorted(agreed):
        then, now = checkpoint["settings"].get(name), getattr(settings, name)
        if name == "accumulation":
            then = passes // world
        if then != now:
            raise UserError(
                f"{path} was begun with {name} = {then}, not {now}: "
                "leave the flag out, or use --overwrite instead of --resume"
            )
    dfm = path.with_name("dfm.pt")
    if checkpoint["dfm"] and dfm.exists() and checkpoint["dfm"] != file_hash(dfm):
        raise UserError(f"{path} began as another {dfm}: use --overwrite instead of --resume")


def add_auxiliary(run, dataset, device):
    """What dmd has more than the other stages: the frozen DFM, the auxiliary and its optimizers."""
    dfm = load_finished_dfm(run.path.with_name("dfm.pt"), dataset)
    texts = dataset.batch("train", FREQUENCY_TEXTS, dfm.config.block_size)
    by_place = run.settings.frequency_of == "place"
    frequency = token_frequency(texts, dfm.config.vocab_size, by_place)
    run.frozen_dfm = dfm.to(device).requires_grad_(False).eval()
    run.auxiliary = Auxiliary(run.frozen_dfm, frequency).to(device)
    for optimizer in make_optimizers(run.auxiliary.network, run.settings):
        for group in optimizer.param_groups:
            group["factor"] = run.settings.auxiliary_rate
        run.optimizers.append(optimizer)


def resume_run(path, settings, agreed, dataset, device, world, repair):
    """The Run that was interrupted, from its checkpoint. With `repair` a damaged newest checkpoint
    is replaced by the one before it."""
    stage = path.stem
    checkpoint = load_checkpoint(path, repair)
    must_be_ours(checkpoint, path, stage)
    dataset.must_match(checkpoint, path)
    must_agree(checkpoint, path, settings, agreed, world)
    passes, done = checkpoint["passes"], checkpoint["iteration"]
    settings = replace(settings, **checkpoint["settings"] | {"accumulation": passes // world})
    dataset.must_fill(settings.block_size)
    model = network_of(checkpoint, path).to(device)
    ema = None
    if stage in STUDENTS:
        ema = network_of(checkpoint, path, "ema").to(device).requires_grad_(False).eval()
    run = Run(stage, settings, path, model, ema, make_optimizers(model, settings), passes,
              checkpoint["dfm"], iteration=done, saved=done, seconds=checkpoint["seconds"],
              scaler=gradient_scaler(device))
    if "scaler" in checkpoint and run.scaler.is_enabled():
        run.scaler.load_state_dict(checkpoint["scaler"])
    if stage == "dmd":
        add_auxiliary(run, dataset, device)
        run.auxiliary.load_state_dict(checkpoint["auxiliary"])
    for optimizer, state in zip(run.optimizers, checkpoint["optimizers"], strict=True):
        # a copy: Windows replaces no file of which a part is still mapped into memory
        optimizer.load_state_dict(copy.deepcopy(state))
    return run

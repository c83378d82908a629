"""The one training loop, for the three networks.

    python train.py judge                    a causal transformer, which scores text
    python train.py dfm                      the many-step baseline (flow.py)
    python train.py fsdfm                    the few-step student of the DFM (distill.py)
    python train.py dfm config/gpu.py --seed=2 --out=out-gpu
    torchrun --nproc-per-node 8 train.py dfm config/paper_small.py

Every name under "settings" can be given as --name=value, and a file of such assignments as well.
Without a file it is config/stories.py: 10 to 15 minutes on 2 CPU cores for all three. Ctrl-C saves
and ends; --resume goes on after that, or after any other interruption, and with more --iterations
after the end (the learning rate is then that of the longer run). --init_from=FILE starts from the
weights of another network, also on another text of the same tokens. Before: distill.py. Read next:
sample.py.
"""

from config.command import autocast, named, pick_device, read_settings, stop  # before torch

import copy
import csv
import os
import signal
import sys
import time

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from data.tokenizer import Tokenizer
from data.tokens import load_tokens
from distill import distillation_loss, update_ema
from flow import dfm_loss
from model import Block, Config, next_token_nll, student_from
from sample import load_checkpoint, network_of, printable

# ------------------------------------------------------------------------------------------------
# read_settings below runs a config file in this module, so it can replace any function that is
# defined or imported above, as config/books.py does with dfm_loss


def make_optimizers(model, weight_decay):
    """Muon (Jordan et al. 2024) for the matrices of attention and MLP: its every update is made
    orthogonal, so that rare directions count as much as frequent ones. AdamW for the rest, and for
    all weights of a network of yours that has no such blocks."""
    inner = [p for block in model.modules() if isinstance(block, Block)
             for part in (block.attention, block.mlp) for p in part.parameters() if p.ndim == 2]
    inner_ids = {id(p) for p in inner}
    rest = [p for p in model.parameters() if id(p) not in inner_ids]
    optimizers = [torch.optim.AdamW(rest, betas=(0.9, 0.95), weight_decay=0.0, fused=True)]
    if inner:
        optimizers.insert(0, torch.optim.Muon(
            inner, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"))
    return optimizers


def learning_rate_share(iteration, iterations, warmup, cooldown):
    """The learning rate as a share of its peak: up, level, down to 0 over the last part."""
    left = 1 - iteration / iterations
    return min((iteration + 1) / max(warmup, 1), 1, left / max(cooldown, 1e-9))


# ------------------------------------------------------------------------------------------------
# settings

# what to train, on what
stage = ""  # judge, dfm or fsdfm
data = "stories"  # a folder in data/, made by data/prepare.py
out = "out"  # folder of the checkpoints
# network; the student has that of the DFM
architecture = "model.Transformer"  # a class, saved with it
init_from = ""  # a checkpoint whose weights it starts from; of fsdfm by default OUT/dfm.pt
block_size = 128  # L, tokens of a text
n_layer = 4
n_head = 4
dim = 128  # d
cond_dim = 64  # width of the embeddings of t and h
dropout = 0.0
position_scale = 0.07  # 0: rotary positions alone
# optimization
batch_size = 16  # texts of a forward pass
accumulation = 1  # forward passes of an iteration, over all processes
iterations = 5000
learning_rate = 2.5e-3  # at its peak
warmup = 50  # iterations in which it rises
cooldown = 0.5  # the share of the iterations in which it falls to 0
weight_decay = 0.1
clip = 1.0  # largest norm of the gradient
largest_weight = 5.0  # the loss weight kappa' / (1 - kappa) is clipped there
ema_decay = 0.98  # of the teacher's weights, for each iteration
seed = 1
# this run
validate_every = 500  # iterations between validations, which also save
sampler = "flow.generate"  # how the network writes: a function, saved with it
device = ""  # cpu, cuda or cuda:N; by default a GPU if there is one
compile = True  # torch.compile, on CUDA
resume = False  # go on from the last checkpoint
overwrite = False  # start again over a checkpoint

names = read_settings(globals(), ("judge", "dfm", "fsdfm"), "config/stories.py")
settings = {name: globals()[name] for name in names}

# ------------------------------------------------------------------------------------------------
# device, and the processes of torchrun if there are any

rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
if world > 1 and device != "cpu" and torch.cuda.is_available():
    device = f"cuda:{os.environ['LOCAL_RANK']}"
if accumulation % world:
    stop(f"{world} processes cannot share {accumulation} forward passes: change --accumulation")
accumulation //= world
if min(batch_size, accumulation, iterations, validate_every) < 1 or dim % (2 * n_head):
    stop("batch_size, accumulation, iterations and validate_every must be at least 1, "
         f"and dim a multiple of 2 * n_head = {2 * n_head}")
device = pick_device(device)
amp = autocast(device)
generate = named(sampler, "flow.generate")

# ------------------------------------------------------------------------------------------------
# data

meta, tokens = load_tokens(data)
stride = meta["row"]  # texts begin at its multiples
if min(len(part) for part in tokens.values()) < block_size or 1 < stride < block_size:
    stop(f"the texts in data/{data} are shorter than block_size {block_size}: make it smaller")
tokenizer = Tokenizer(meta["tokenizer"])  # now: one that cannot be downloaded stops the run here


def batch(split, size):
    """Random texts of a split, "train" or "val": (size, L) int64."""
    count = (len(tokens[split]) - block_size) // stride + 1
    starts = torch.randint(count, (size,)) * stride
    rows = np.stack([tokens[split][i : i + block_size] for i in starts.tolist()])
    x_1 = torch.from_numpy(rows.astype(np.int64))
    return x_1.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x_1


# ------------------------------------------------------------------------------------------------
# network, teacher, optimizers


def load_fitting(path):
    """The checkpoint of a network with the tokens of this text."""
    checkpoint = load_checkpoint(path)
    if checkpoint["tokenizer"] != meta["tokenizer"]:
        stop(f"{path} has other tokens than data/{data}: name its --data, or train it anew")
    return checkpoint


torch.manual_seed(seed)
path, checkpoint = f"{out}/{stage}.pt", None
if resume and os.path.exists(path):
    checkpoint = load_fitting(path)
    if checkpoint["settings"].get("data") != data or "optimizers" not in checkpoint:
        stop(f"{path} was not trained on data/{data}, or has no optimizers any more (weights/): "
             f"to go on from it once it is finished, --init_from={path} and another --out")
    model = network_of(checkpoint, weights="model")
    if checkpoint["iteration"] >= iterations:
        print(f"{path} is finished ({checkpoint['iteration']} iterations)")
        sys.exit(0)
elif os.path.exists(path) and not overwrite:
    stop(f"{path} exists: --resume goes on with it, --overwrite starts again")
elif init_from or stage == "fsdfm":
    source = init_from or f"{out}/dfm.pt"
    first = load_fitting(source)
    if init_from:  # positions are computed, so a network takes any length
        first["config"]["block_size"] = block_size
    if first["iteration"] < first["settings"]["iterations"]:
        stop(f"{source} is not finished: go on with `train.py {first['stage']} --resume`")
    model = network_of(first)
    if (first["stage"], stage) == ("dfm", "fsdfm"):
        model = student_from(model)
    elif first["stage"] != stage:
        stop(f"{source} is a {first['stage']}, from which no {stage} can start")
else:
    model = named(architecture, "model.Transformer")(Config(
        meta["vocab_size"], block_size, n_layer, n_head, dim, cond_dim, dropout,
        causal=stage == "judge", position_scale=position_scale,
    ))
if model.config.block_size != block_size:
    stop(f"that network has block_size {model.config.block_size}: give it, --block_size")
settings["architecture"] = f"{type(model).__module__}.{type(model).__name__}"
model.to(device).train()
teacher = copy.deepcopy(model).requires_grad_(False).eval() if stage == "fsdfm" else None
optimizers = make_optimizers(model, weight_decay)
# float16 of older GPUs: a factor keeps small gradients in its range
scaler = torch.amp.GradScaler(device.type, enabled=amp.fast_dtype == torch.float16)
start, seconds = 0, 0.0
if checkpoint is not None:
    start, seconds = checkpoint["iteration"], checkpoint["seconds"]
    if teacher is not None:
        teacher.load_state_dict(checkpoint["ema"])
    for optimizer, state in zip(optimizers, checkpoint["optimizers"]):
        optimizer.load_state_dict(state)
    if checkpoint["scaler"]:
        scaler.load_state_dict(checkpoint["scaler"])


def loss_of(network, teacher, x_1):
    """The loss of this stage, mean nats per token, for texts x_1 (B, L)."""
    if stage == "judge":
        return next_token_nll(network, x_1).mean()
    if stage == "dfm":
        return dfm_loss(network, x_1, largest_weight)
    return distillation_loss(network, teacher, x_1, largest_weight)


network, training_loss = model, loss_of
# on an H200 a step of config/paper_small.py takes 68 ms instead of 112 with it
if compile and device.type == "cuda":
    if teacher is None and world == 1:
        training_loss = torch.compile(loss_of)  # network and loss as one graph
    else:
        for part in filter(None, (model, teacher)):
            part.compile()
if world > 1:
    torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    network = DistributedDataParallel(model)
    network.config = model.config

# ------------------------------------------------------------------------------------------------
# validation, checkpoint, log


@torch.no_grad()
def validate():
    """This stage's loss on the same 64 held-out texts every time, whatever batch_size is, and a
    text that the network writes: (nats, str)."""
    torch.manual_seed(0)
    best = teacher or model.eval()  # of a student the EMA, which is its own teacher here
    with amp:
        nats = torch.stack([loss_of(best, best, batch("val", 4)) for _ in range(16)]).mean().item()
        text = ""
        if stage != "judge":
            x_0 = torch.randint(model.config.vocab_size, (1, block_size), device=device)
            x_1 = generate(best, x_0, steps=8)
            text = " ".join(printable(tokenizer.decode(x_1[0].tolist())).split())
    model.train()
    return nats, text[:140]


def save(iteration, seconds):
    """Written under another name and renamed: a kill at any moment leaves the old or the new."""
    if not all(p.isfinite().all() for p in model.parameters()):
        stop(f"a weight is not finite at iteration {iteration}: {path} is as it was; "
             "try a smaller --learning_rate")
    torch.save({
        "stage": stage, "config": vars(model.config), "settings": settings,
        "iteration": iteration, "seconds": seconds, "tokenizer": meta["tokenizer"],
        "model": model.state_dict(), "ema": teacher and teacher.state_dict(),
        "optimizers": [o.state_dict() for o in optimizers], "scaler": scaler.state_dict(),
    }, f"{path}.new")
    os.replace(f"{path}.new", path)


# the loss is the mean since the row before
COLUMNS = ["iteration", "loss", "seconds", "learning_rate", "gradient_norm", "validation_loss"]


def open_log():
    """OUT/STAGE.csv, whose rows up to the iteration that is resumed are kept. plot.py draws it."""
    os.makedirs(out, exist_ok=True)
    name, rows = f"{out}/{stage}.csv", []
    if start and os.path.exists(name):
        before = list(csv.reader(open(name, newline="")))[1:]
        rows = [row for row in before if int(row[0]) <= start]
    log = open(name, "w", buffering=1, newline="")
    csv.writer(log).writerows([COLUMNS, *rows])
    return csv.writer(log)


# ------------------------------------------------------------------------------------------------
# the loop

stopping = 0


def request_stop(number, frame):
    """Ctrl-C: the iteration under way is finished and saved. A second one ends at once."""
    global stopping
    if stopping:
        raise KeyboardInterrupt
    stopping = number


signal.signal(signal.SIGINT, signal.SIG_IGN if rank else request_stop)
signal.signal(signal.SIGTERM, signal.SIG_IGN if rank else request_stop)
if rank == 0:
    log = open_log()
    print(f"{stage}: {sum(p.numel() for p in model.parameters()) / 1e6:.1f}M parameters, "
          f"{len(tokens['train']) / 1e6:.1f}M tokens, on {device}"
          + f", threads: {torch.get_num_threads()}" * (device.type == "cpu"))
bar = tqdm(range(start, iterations), f"training {stage}", iterations, initial=start,
           disable=rank > 0)
began = time.perf_counter() - seconds
total_loss, logged = torch.zeros((), device=device), start
for iteration in bar:
    lr = learning_rate * learning_rate_share(iteration, iterations, warmup, cooldown)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr
    for i in range(accumulation):
        # a seed for every forward pass: a resumed run sees what an undisturbed one would have seen,
        # and N processes what one would have (on CUDA with --compile=False)
        torch.manual_seed((seed * 1_000_003 + iteration) * 1000 + rank * accumulation + i)
        if world > 1:  # gradients are exchanged once an iteration
            network.require_backward_grad_sync = i == accumulation - 1
        x_1 = batch("train", batch_size)
        with amp:
            loss = training_loss(network, teacher, x_1) / accumulation
        scaler.scale(loss).backward()
        total_loss += loss.detach()
    for optimizer in optimizers:
        scaler.unscale_(optimizer)
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
    for optimizer in optimizers:
        if not scaler.is_enabled() or norm.isfinite():  # an overflow of float16 stops them all
            scaler.step(optimizer)
        optimizer.zero_grad()
    scaler.update()
    if teacher is not None:  # EMA, with a shorter memory at first
        decay = min(ema_decay, (1 + iteration) / (10 + iteration))
        update_ema(teacher, model, decay)

    done = iteration + 1
    validates = done % validate_every == 0 or done == iterations
    if rank == 0 and (done % 10 == 0 or validates):
        seconds = time.perf_counter() - began
        row = [done, total_loss.item() / (done - logged), round(seconds, 2), lr, norm.item()]
        total_loss.zero_()
        logged = done
        bar.set_postfix(loss=f"{row[1]:.3f}")
        if validates:
            nats, text = validate()
            row.append(nats)
            bar.write(f"{done:>6}  {nats:.3f} nats  {text}")
        log.writerow(row)
    if rank == 0 and (validates or stopping):
        save(done, time.perf_counter() - began)
    if stopping:
        bar.close()
        print(f"\nstopped after iteration {done}, which is saved: --resume goes on from there")
        sys.exit(128 + stopping)
if world > 1:
    torch.distributed.destroy_process_group()

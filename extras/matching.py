"""Distribution matching: a student whose texts, not its predictions, are those of the DFM.

    python -m extras.matching            a student of stories, from out/dfm.pt

FS-DFM teaches a later prediction, and a network that predicts every token by itself cannot make the
tokens of one step agree by predicting better. Here the student p(y | x_t) may predict what it
likes, as long as the texts that it *writes* are distributed as text. It has means to make them
agree: all its tokens read the same noise in x_t.

How does one compare two distributions of texts, when nobody knows the probability of a text? Noise
a text of the student to a time s. There the posterior of x_1 is known for true texts from the DFM
(f, frozen), and can be learned for the student's texts by a second network, the auxiliary (a).
Where a is above f, the student writes that token too often in that context:

    x ~ p(. | x_t, t, h)     z ~ path from x to time s

    auxiliary   loss = -log a(x | z, s)
    student     loss = -sum_v p(v | x_t, t, h) (log f(v | z, s) - log a(v | z, s))

with no gradient through x, z, f and a. If the student's texts are distributed as the DFM's, then
a = f, and nothing moves. experiments/one_step.py does this in an exact world. The states x_t are
those of the student's own sampler, which draws a whole text in each step (samplers.renoise). Two
terms keep the student from the few texts that it can write best:

    frequency   at s = 0 z says nothing, and the posterior is how often each token stands in the
                texts. There a running mean of p replaces the auxiliary
    anchor      KL(p || f(x_t, t)), strong at t = 0, and stronger the more steps there are: of very
                many small steps the posterior itself is best

Sources: DMD (Yin et al. 2024) for images; IDLM (arXiv 2602.19066) and D-MMD (2603.20155) for
tokens. The frequencies and the states of the sampler are ours. Before: distill.py, samplers.py.
"""

from config.command import autocast, pick_device, read_settings, stop  # before torch

import copy
import os
import time

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from tqdm import tqdm

import flow
from data.tokens import load_tokens
from distill import update_ema
from extras.samplers import renoise_step
from flow import sample_path
from model import student_from
from sample import load_checkpoint, network_of

# settings, of stories
data = "stories"
out = "out"
batch_size = 16
iterations = 1800
learning_rate = 4e-4
warmup = 50
auxiliary_rate = 5.0  # the auxiliary's learning rate is so many times as high
ema_decay = 0.97
frequency_weight = 8.0  # of the frequency term
anchor_weight = 0.15
text_share = 0.3  # of the states x_t that are true texts on the path
save_every = 200
seed = 1
device = ""
resume = False
overwrite = False

STEP_COUNTS = (4, 8)  # of the student's sampler in training
EARLIEST, LATEST = 0.02, 0.98  # s: before, frequencies; after, the text is there already
LARGEST_SCORE, LARGEST_FREQUENCY_SCORE = 5, 2  # of a difference of log probabilities
FREQUENCY_TEXTS, FREQUENCY_DECAY = 20_000, 0.97
ANCHOR_AT_0 = 2.0

# ------------------------------------------------------------------------------------------------
# what the student writes: the auxiliary, and the frequency of each token


def token_frequency(texts, vocab_size, by_place):
    """The share of each token among those of texts (N, L): at each place, (L, V), or over all,
    (1, V). float32."""
    places = texts.T if by_place else texts.reshape(1, -1)
    counts = torch.stack([torch.bincount(place, minlength=vocab_size) for place in places])
    return counts / places.shape[1]


class Auxiliary(nn.Module):
    """The posterior of the student's texts: logits (B, L, V) for noisy texts z (B, L) at times s
    (B,), and their token frequencies. It starts as the DFM. text_frequency is token_frequency."""

    def __init__(self, dfm, text_frequency):
        super().__init__()
        self.register_buffer("text_frequency", text_frequency)
        student = text_frequency.repeat(len(STEP_COUNTS), 1, 1)  # (n, L or 1, V)
        self.register_buffer("frequency", student)
        self.network = copy.deepcopy(dfm).requires_grad_(True)

    def forward(self, z, s):
        return self.network(z, s)

    def frequency_score(self, p, n, own):
        """log of a token's frequency in true texts, minus that in the student's: (B, L or 1, V).

        Texts of 4 steps and of 8 have frequencies of their own: n (B,) is each row's number of
        steps. Rows that are not the student's `own` (B,) have a score of 0. In training p (B, L, V)
        joins the running means.
        """
        which = torch.stack([n == count for count in STEP_COUNTS]) & own  # (len(STEP_COUNTS), B)
        if self.training:
            for rows, frequency in zip(which.float(), self.frequency):  # (B,), (L or 1, V)
                mean = (rows[:, None, None] * p.detach()).sum(0) / rows.sum().clamp(min=1)  # (L, V)
                if len(frequency) == 1:
                    mean = mean.mean(0, keepdim=True)
                frequency.lerp_(mean, (1 - FREQUENCY_DECAY) * (rows.sum() > 0))
        score = self.text_frequency.log() - self.frequency.clamp(min=1e-9).log()
        score = score.clamp(-LARGEST_FREQUENCY_SCORE, LARGEST_FREQUENCY_SCORE)
        return torch.where(own[:, None, None], score[which.int().argmax(0)], 0)


# ------------------------------------------------------------------------------------------------
# where the student is trained


def draw_steps(batch_size):
    """Random steps of the sampler, both (B,) and on the CPU: step k of n, one of STEP_COUNTS. The
    largest k come first."""
    n = torch.tensor(STEP_COUNTS)[torch.randint(len(STEP_COUNTS), (batch_size,))]
    k, order = (torch.rand(batch_size) * n).long().sort(descending=True)
    return k, n[order]


def step_times(k, n, device):
    """Times t and sizes h (B,) of steps k of n, as in flow.time_grid."""
    t, end = 1 - (1 - k / n) ** 2, 1 - (1 - (k + 1) / n) ** 2
    return t.to(device), (end - t).to(device)


@torch.no_grad()
def own_states(student, k, n):
    """States x_t (B, L) of the student's own sampler before step k of n, as draw_steps makes
    them."""
    config, device = student.config, next(student.parameters()).device
    x_t = torch.randint(config.vocab_size, (len(k), config.block_size), device=device)
    for i in range(k[0]):
        moving = int((k > i).sum())  # rows [:moving] make step i; k is on the CPU: no sync
        t, h = step_times(torch.tensor(i), n[:moving], device)
        x, last = x_t[:moving], torch.zeros(moving, dtype=torch.bool, device=device)
        x_t[:moving] = renoise_step(x, student(x, t, h), t, h, last)
    return x_t


def training_states(student, x_1):
    """x_t (B, L) of a batch; times t, sizes h and numbers n of the steps that begin there, (B,);
    and own (B,) bool.

    text_share of the rows are texts x_1 (B, L) on the path, so that no kind of text is forgotten.
    The others are states of the student's sampler. They are its own except at t = 0.
    """
    B, device = len(x_1), x_1.device
    texts = int(text_share * B)
    k_own, n_own = draw_steps(B - texts)
    k_path, n_path = draw_steps(texts)
    k, n = torch.cat([k_own, k_path]), torch.cat([n_own, n_path])
    t, h = step_times(k, n, device)
    x_own = own_states(student, k_own, n_own)
    x_path = sample_path(x_1[:texts], t[B - texts :], student.config.vocab_size)
    own = (k > 0) & (torch.arange(B) < B - texts)
    return torch.cat([x_own, x_path]), t, h, n.to(device), own.to(device)


# ------------------------------------------------------------------------------------------------
# the loss


def anchor(p, x_t, t, n, dfm):
    """The weighted KL(p || f(x_t, t)) of each token, (B, L) nats, for steps of n (B,)."""
    with torch.no_grad():
        log_f = dfm(x_t, t).float().log_softmax(-1)
    kl = (p * (p.clamp(min=1e-30).log() - log_f)).sum(-1)  # (B, L)
    weight = anchor_weight * (n / STEP_COUNTS[0]) ** 2
    return torch.where(t == 0, ANCHOR_AT_0, weight)[:, None] * kl


def matching_loss(student, ema, dfm, auxiliary, x_1):
    """The loss of student and auxiliary together, mean nats per token: they share no weights, so
    one backward pass trains both. Its value does not say how good the texts are, since each of the
    two moves what the other is measured by. The sampler of `ema`, the student's, makes the states.
    """
    # 1. the student writes
    x_t, t, h, n, own = training_states(ema, x_1)
    p = student(x_t, t, h).float().softmax(-1)  # (B, L, V)
    with torch.no_grad():
        x = flow.draw(p)  # (B, L)

    # 2. its text is noised to a time s, where f and a predict it
    s = t.clamp(min=EARLIEST)
    s = s + (LATEST - s) * torch.rand_like(s)
    z = sample_path(x, s, student.config.vocab_size)
    with torch.no_grad():
        log_f = dfm(z, s).float().log_softmax(-1)
    log_a = auxiliary(z, s).float().log_softmax(-1)

    # 3. the auxiliary learns what the student writes
    auxiliary_loss = F.nll_loss(log_a.flatten(0, 1), x.flatten())

    # 4. the student learns what text has more of
    with torch.no_grad():
        gain = (log_f - log_a).clamp(-LARGEST_SCORE, LARGEST_SCORE)
        gain += frequency_weight * auxiliary.frequency_score(p, n, own)
    loss = anchor(p, x_t, t, n, dfm) - (p * gain).sum(-1)  # (B, L)
    return loss.mean() + auxiliary_loss


# ------------------------------------------------------------------------------------------------
# the loop


def texts(tokens, stride, L, n):
    """Random texts (n, L) int64, as in train.py."""
    starts = torch.randint((len(tokens) - L) // stride + 1, (n,)) * stride
    return torch.from_numpy(np.stack([tokens[i : i + L] for i in starts.tolist()]).astype(np.int64))


def start(place):
    """(meta, tokens, dfm, networks, optimizer, iteration, seconds), new or from OUT/dmd.pt. The
    networks that are saved, {name: network}, are the student, its EMA and the auxiliary."""
    path = f"{out}/dmd.pt"
    if os.path.exists(path) and not (resume or overwrite):
        stop(f"{path} exists: --resume goes on with it, --overwrite starts again")
    checkpoint, source = None, load_checkpoint(f"{out}/dfm.pt")
    if resume and os.path.exists(path):
        checkpoint = load_checkpoint(path)
        if checkpoint["settings"].get("data") != data:
            stop(f"{path} was trained on another text than data/{data}: name its --data")
    meta, tokens = load_tokens(data)
    if source["tokenizer"] != meta["tokenizer"]:
        stop(f"{out}/dfm.pt has other tokens than data/{data}: name its --data")
    if source["iteration"] < source["settings"]["iterations"]:
        stop(f"{out}/dfm.pt is not finished: go on with `train.py dfm --resume`")
    torch.manual_seed(seed)
    dfm = network_of(source).to(place).requires_grad_(False)
    config = dfm.config
    sample = texts(tokens["train"], meta["row"], config.block_size, FREQUENCY_TEXTS)
    frequency = token_frequency(sample, config.vocab_size, by_place=meta["row"] > 1)
    auxiliary = Auxiliary(dfm, frequency).to(place).train()
    student = student_from(dfm).to(place).train()
    ema = copy.deepcopy(student).requires_grad_(False).eval()
    networks = {"model": student, "ema": ema, "auxiliary": auxiliary}
    optimizer = torch.optim.AdamW(
        [{"params": list(student.parameters()), "factor": 1.0},
         {"params": list(auxiliary.parameters()), "factor": auxiliary_rate}],
        betas=(0.9, 0.95), weight_decay=0.0, fused=True,
    )
    if checkpoint is None:
        return meta, tokens, dfm, networks, optimizer, 0, 0.0
    for name, network in networks.items():
        network.load_state_dict(checkpoint[name])
    optimizer.load_state_dict(checkpoint["optimizers"][0])
    return meta, tokens, dfm, networks, optimizer, checkpoint["iteration"], checkpoint["seconds"]


def main():
    read_settings(globals(), (), None)
    place = pick_device(device)
    meta, tokens, dfm, networks, optimizer, first, seconds = start(place)
    student, ema, auxiliary = networks.values()
    if first >= iterations:
        print(f"{out}/dmd.pt is finished ({first} iterations)")
        return
    if autocast(place).fast_dtype == torch.float16:
        stop("this GPU has no bfloat16, which distribution matching needs: --device=cpu")
    L = dfm.config.block_size
    settings = {"iterations": iterations, "seed": seed, "data": data,
                "sampler": "extras.samplers.renoise",
                "architecture": f"{type(dfm).__module__}.{type(dfm).__name__}"}
    began = time.perf_counter() - seconds
    bar = tqdm(range(first, iterations), "training dmd", iterations, initial=first)
    for iteration in bar:
        torch.manual_seed(seed * 1_000_003 + iteration)
        share = min((iteration + 1) / max(warmup, 1), 1, 2 * (iterations - iteration) / iterations)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * share * group["factor"]
        x_1 = texts(tokens["train"], meta["row"], L, batch_size).to(place)
        with autocast(place):
            loss = matching_loss(student, ema, dfm, auxiliary, x_1)
        loss.backward()
        for network in (student, auxiliary):
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        decay = min(ema_decay, (1 + iteration) / (10 + iteration))
        update_ema(ema, student, decay)
        done = iteration + 1
        if done % save_every == 0 or done == iterations:
            if not all(p.isfinite().all() for p in ema.parameters()):
                stop(f"a weight is not finite at update {done}: {out}/dmd.pt is as it was; "
                     "try a smaller --learning_rate")
            torch.save({
                "stage": "dmd", "config": vars(student.config), "settings": settings,
                "iteration": done, "seconds": time.perf_counter() - began,
                "tokenizer": meta["tokenizer"], "optimizers": [optimizer.state_dict()],
                **{name: network.state_dict() for name, network in networks.items()},
            }, f"{out}/dmd.pt.new")
            os.replace(f"{out}/dmd.pt.new", f"{out}/dmd.pt")


if __name__ == "__main__":
    main()

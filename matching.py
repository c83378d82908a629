"""Distribution matching: a student whose texts, not its predictions, are those of the DFM.

FS-DFM (distill.py) teaches a later prediction, and a network that predicts every token by itself
cannot make the tokens of one step agree by predicting better. Here the student p(y | x_t) may
predict what it likes, as long as the texts that it *writes* are distributed as text. It has means
to make them agree: all its tokens read the same noise in x_t, and may draw with the same random
numbers (flow.draw_with_shared_noise).

How does one compare two distributions of texts, when nobody knows the probability of a text? Noise
a text of the student to a time s. There the posterior of x_1 is known for true texts from the DFM
(f, frozen), and can be learned for the student's texts by a second network, the auxiliary (a).
Where a is above f, the student writes that token too often in that context:

    x ~ p(. | x_t, t, h)     z ~ path from x to time s

    auxiliary   loss = -log a(x | z, s)
    student     loss = -sum_v p(v | x_t, t, h) (log f(v | z, s) - log a(v | z, s))

with no gradient through x, z, f and a. If the student's texts are distributed as the DFM's, then
a = f, and nothing moves. experiments/one_step.py does this in an exact world.

The states x_t are those that the student's own sampler visits in few steps, flow.renoise: to draw
a whole text and noise it afresh is what makes p(y | x_t) a distribution of texts. Of real text a
part of them is text on the path, as in the training of the DFM.

Two terms keep the student from the few texts that it can write best (docs/results.md):

    frequency   At s = 0 z says nothing, and the posterior is how often each token stands in the
                texts. There a running mean of p replaces the auxiliary: that one of two very
                different texts is written too often, no later z can tell.
    anchor      KL(p || f(x_t, t)). It is strong at t = 0, where nothing is decided yet, and grows
                with the number of steps: of very many small steps the posterior itself is best.

One network serves several numbers of steps, since it is conditioned on h, like FS-DFM's student.

Sources: DMD (Yin et al. 2024) for images; IDLM (arXiv 2602.19066) and D-MMD (2603.20155) for
tokens. The frequencies, the shared noise and the states of the sampler are ours. Before:
distill.py. Read next: train.py.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F

from flow import (
    Sampler, draw_texts, grid_time, sample_path, sample_source, sampler_step, text_logits,
)
from model import Transformer

STEP_COUNTS = (4, 8, 16)  # of the student's sampler in training
EARLIEST, LATEST = 0.02, 0.98  # s: before, frequencies; after, the text is there already
LARGEST_SCORE, LARGEST_FREQUENCY_SCORE = 5, 2  # of a difference of log probabilities
FREQUENCY_TEXTS = 20_000  # of the text, in which the tokens are counted
FREQUENCY_DECAY = 0.99  # of the running mean of the student's, for each update
ANCHOR_AT_0 = 2.0

# ------------------------------------------------------------------------------------------------
# what the student writes: a network's view, and the frequency of each token


def token_frequency(texts, vocab_size, by_place):
    """The share of each token among those of texts (N, L): at each place, (L, V), or over all,
    (1, V). float32."""
    places = texts.T if by_place else texts.reshape(1, -1)
    counts = torch.stack([torch.bincount(place, minlength=vocab_size) for place in places])
    return counts / places.shape[1]


class Auxiliary(nn.Module):
    """The posterior of the student's texts, (B, L, n_tokens) logits for noisy texts z (B, L) at
    times s (B,), and their token frequencies. It starts as the DFM, as the student does.

    text_frequency (L, V) is that of true texts at each place (token_frequency). Where texts are not
    laid out alike, a place has too few tokens to count: then it is (1, V), over all places.
    """

    def __init__(self, dfm, text_frequency):
        super().__init__()
        self.register_buffer("text_frequency", text_frequency)
        student = text_frequency.repeat(len(STEP_COUNTS), 1, 1)  # (n, L or 1, V)
        self.register_buffer("frequency", student)
        self.network = Transformer(dfm.config)
        self.network.load_state_dict(dfm.state_dict())

    def forward(self, z, s):
        return self.network(z, s)

    def frequency_score(self, p, n, own):
        """log of a token's frequency in true texts, minus the same of the student's texts,
        (B, L or 1, V).

        Texts of 4 steps and of 16 have frequencies of their own: n (B,) is each row's number of
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


def step_times(k, n, sampler, device):
    """Times t and sizes h (B,) of steps k of n."""
    t = grid_time(k, n, sampler.grid_power)
    return t.to(device), (grid_time(k + 1, n, sampler.grid_power) - t).to(device)


@torch.no_grad()
def own_states(student, k, n, sampler):
    """States x_t (B, L) of the student's own sampler before step k of n, as draw_steps makes
    them."""
    config, device = student.config, next(student.parameters()).device
    x_t = sample_source((len(k), config.block_size), config, device)
    for i in range(k[0]):
        moving = int((k > i).sum())  # rows [:moving] make step i; k is on the CPU: no sync
        t, h = step_times(torch.tensor(i), n[:moving], sampler, device)
        x_t[:moving] = sampler_step(student, x_t[:moving], t, h, None, sampler)
    return x_t


def training_states(student, x_1, text_share, sampler):
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
    t, h = step_times(k, n, sampler, device)
    x_own = own_states(student, k_own, n_own, sampler)
    x_path = sample_path(x_1[:texts], t[B - texts :], student.config)
    own = (k > 0) & (torch.arange(B) < B - texts)
    return torch.cat([x_own, x_path]), t, h, n.to(device), own.to(device)


# ------------------------------------------------------------------------------------------------
# the loss


def anchor(p, x_t, t, n, dfm, weight):
    """The weighted KL(p || f(x_t, t)) of each token, (B, L) nats, for steps of n (B,).

    The more steps, the nearer the posterior itself is to the best that a step can do, and the
    nearer the student is kept to it.
    """
    with torch.no_grad():
        log_f = text_logits(dfm(x_t, t), dfm.config).log_softmax(-1)
    kl = (p * (p.clamp(min=1e-30).log() - log_f)).sum(-1)  # (B, L)
    weight = weight * (n / STEP_COUNTS[0]) ** 2
    return torch.where(t == 0, ANCHOR_AT_0, weight)[:, None] * kl


def score(log_f, log_a):
    """log f - log a, (B, L, V): positive for tokens that the student writes too rarely."""
    return (log_f - log_a).clamp(-LARGEST_SCORE, LARGEST_SCORE)


def matching_loss(student, ema, dfm, auxiliary, x_1, settings):
    """The loss of student and auxiliary together, mean nats per token: they share no weights, so
    one backward pass trains both. Its value does not say how good the texts are, since each of the
    two moves what the other is measured by.

    `ema` is the student's: its sampler makes the states x_t. `settings` are train.py's:
    frequency_weight, anchor and text_share.
    """
    config = student.config
    sampler = Sampler().for_network(config)

    # 1. the student writes
    x_t, t, h, n, own = training_states(ema, x_1, settings.text_share, sampler)
    logits = text_logits(student(x_t, t, h), config)  # (B, L, V)
    p = logits.softmax(-1)
    with torch.no_grad():
        x = draw_texts(p, sampler.shared_noise)  # (B, L)

    # 2. its text is noised to a later time s, where f and a predict it
    s = t.clamp(min=EARLIEST)
    s = s + (LATEST - s) * torch.rand_like(s)
    z = sample_path(x, s, config)
    with torch.no_grad():
        log_f = text_logits(dfm(z, s), config).log_softmax(-1)
    log_a = text_logits(auxiliary(z, s), config).log_softmax(-1)

    # 3. the auxiliary learns what the student writes
    auxiliary_loss = F.nll_loss(log_a.flatten(0, 1), x.flatten())

    # 4. the student learns what text has more of
    with torch.no_grad():
        gain = score(log_f, log_a)
        gain += settings.frequency_weight * auxiliary.frequency_score(p, n, own)
    loss = anchor(p, x_t, t, n, dfm, settings.anchor) - (p * gain).sum(-1)  # (B, L)
    return loss.mean() + auxiliary_loss

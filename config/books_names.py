"""Who has what, for two courses of books, after config/books.py: in 64 of 256 tokens, about a day
and a half, nearly all names and pronouns are noise and a few other words, and the rest is text.

Under plain noise the names of a whole day are seldom hidden together while the rest can be read, so
a network needs thousands of iterations more to learn that they follow from the days before.
"""

import torch

from data import books
from data.tokenizer import Tokenizer, describe_words
from flow import generalized_kl

IDS = Tokenizer(describe_words(books.vocabulary())).ids
HIDDEN = [*books.VALUES["A"], *books.VALUES["B"], "he", "she", "him", "her", "his"]
SPAN, PERIOD = 64, 256  # tokens
SHARE, TIME = 0.9, 1 - 10 / 256  # the share of HIDDEN that is noise; the time the network is told


def dfm_loss(model, x_1, largest_weight):
    """The loss of DFM, for SPAN of PERIOD tokens, told one time for all texts x_1 (B, L)."""
    B, L = x_1.shape
    first = torch.rand(B, 1, device=x_1.device) * PERIOD
    distance = (torch.arange(L, device=x_1.device) - first) % PERIOD  # (B, L)
    is_hidden = torch.isin(x_1, torch.tensor([IDS[word] for word in HIDDEN], device=x_1.device))
    is_noise = torch.rand(B, L, device=x_1.device) < torch.where(is_hidden, SHARE, 0.05)
    is_noise &= distance < SPAN
    x_t = torch.where(is_noise, torch.randint_like(x_1, model.config.vocab_size), x_1)
    t = torch.full((B,), TIME, device=x_1.device)
    return generalized_kl(model(x_t, t), x_1, x_t, t, largest_weight).mean()

"""The texts in which right and wrong can be counted: stories.py and books.py."""

from data import books, stories


def world_of(tokenizer):
    """The module of this tokenizer's texts, stories or books, or None for other texts."""
    return next((world for world in (stories, books) if world.can_check(tokenizer)), None)

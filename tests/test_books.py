"""Checks the world of books: its generator and its reader agree, every kind of mistake is found,
and the measure of experiments/books.py sees it."""

import json
import random
import re
import subprocess
import sys

import pytest
import torch

from data import books
from data.books import VALUES, can_check, draw_book, make_book, read
from data.tokenizer import Tokenizer, describe_words, join_words, split_words
from data.worlds import world_of
from experiments.books import variety
from model import Config, Transformer

TOKENIZER = Tokenizer(describe_words(books.vocabulary()))


def test_right_books_are_right():
    """They fit and have no mistake, and no form of a sentence is that of another."""
    rng = random.Random(1)
    for _ in range(50):
        book = make_book(rng)
        assert read(book).mistakes == [] and read(book).wrong == 0
        assert 950 < len(split_words(book)) <= books.LENGTH
    assert len(books.by_skeleton()) == sum(map(len, books.templates().values()))  # none is another
    words = [word for values in VALUES.values() for word in values]
    assert len(words) == len(set(words))
    assert can_check(TOKENIZER) and world_of(TOKENIZER) is books


def test_who_has_what_by_another_reader():
    """Regular expressions follow the thing: it moves where it is given, liked or won."""
    rng, seen = random.Random(2), set()
    for _ in range(20):
        has = {}
        for sentence in make_book(rng).split(". "):
            if found := re.match(r"(\w+) (?:had|found|made|bought) an? \w+ (\w+)$", sentence):
                has[found[2]] = found[1]
            if found := re.match(r"(\w+) gave the \w+ (\w+) to (\w+), and", sentence):
                who, thing, to = found.groups()
            elif found := re.match(r"(\w+) liked the \w+ (\w+), so (\w+) gave", sentence):
                to, thing, who = found.groups()
            elif found := re.match(r"(\w+) and (\w+) raced for the \w+ (\w+)", sentence):
                who, to, thing = found.groups()
            elif found := re.match(r"(\w+) ran faster than (\w+), so \w+ won the \w+ (\w+)",
                                   sentence):
                to, who, thing = found.groups()
            if found:
                assert has[thing] == who != to
                has[thing] = to
                seen.add(sentence.split()[1])
            if found := re.match(r"(?:In the end|So) (\w+) (?:had|kept) the \w+ (\w+)", sentence):
                assert has[found[2]] == found[1]
    assert seen == {"gave", "liked", "and", "ran"}


@pytest.mark.parametrize("kind", ["name", "possession", "pronoun", "thing", "colour", "place"])
def test_a_wrong_word_is_found(kind):
    """The last fact of its kind, with another word of the same sort: that mistake and no other, at
    its place. Its distance is to the last place of that word, or of who has the thing."""
    book = make_book(random.Random(3))
    fact = [fact for fact in read(book).facts if fact.kind == kind][-1]
    same = {"pronoun": ["he", "she", "her", "his", "him"], "possession": None}.get(kind)
    if same is None:
        role = books.ROLE_OF[fact.word]
        cast = read(book).cast
        same = [cast[r] for r in "AB"] if kind == "possession" else VALUES[role]
    words = split_words(book)
    wrong = 0
    for other in same:
        words[fact.position] = other
        mistakes = read(join_words(words)).mistakes
        if other != fact.word and mistakes and mistakes[0].kind not in ("sentence", "event"):
            assert [(m.kind, m.position) for m in mistakes] == [(kind, fact.position)], mistakes
            wrong += 1
    assert wrong >= 1
    words[fact.position] = fact.word
    if kind in ("thing", "colour", "place"):
        assert words[fact.position - fact.distance] == fact.word
        assert fact.word not in words[fact.position - fact.distance + 1 : fact.position]


def test_broken_sentences_count_all_their_facts():
    words = split_words(make_book(random.Random(4)))
    second = words.index(".") + 1
    reading = read(join_words(words[:second] + ["the", "the", "."] + words[second:]))
    assert [m.kind for m in reading.mistakes] == ["sentence"] and reading.wrong == books.UNREAD
    assert read("").wrong == books.UNREAD * len(books.SENTENCES)
    words[second - 2] = "the"  # in the first sentence, and the last but one
    words[-15] = "the"
    assert read(join_words(words)).wrong == 2 * books.UNREAD


def test_variety_sees_pairs():
    """Of casts in which one slot is copied to another, that pair is the lowest."""
    rng = random.Random(5)
    casts = [draw_book(rng)[0] for _ in range(128)]
    assert variety(casts)[0] > 0.95
    copied = [cast | {"cy": VALUES["cy"][VALUES["cx"].index(cast["cx"])]} for cast in casts]
    share, name = variety(copied)
    assert name == "cx+cy" and share < 0.6


def test_the_command(tmp_path):
    """An untrained network writes books that are wrong in nearly all; a table and a picture."""
    torch.manual_seed(0)
    model = Transformer(Config(TOKENIZER.vocab_size, books.LENGTH, 1, 2, 8, 8))
    torch.save({"stage": "dfm", "config": vars(model.config), "iteration": 1,
                "settings": {"sampler": "flow.generate", "iterations": 1}, "model":
                model.state_dict(), "tokenizer": TOKENIZER.description}, tmp_path / "dfm.pt")
    run = [sys.executable, "experiments/books.py", "--out", tmp_path, "--steps", "2",
           "--num-samples", "2", "--device", "cpu"]
    print(subprocess.run(run, check=True, capture_output=True, text=True).stdout)
    rows = json.loads((tmp_path / "books.json").read_text())
    assert [row["rung"] for row in rows] == ["DFM, Meta's sampler", "DFM, by the jump", "DFM"]
    assert all(row["wrong"] > 300 and row["right_books"] == 0 for row in rows)
    assert (tmp_path / "books.png").exists()

"""Checks the world of stories: its generator, its checker and its probability agree, every kind of
mistake is found and named, and data/prepare.py writes what it should."""

import math
import random
import re
from collections import Counter
from itertools import combinations, product

import pytest

import data.prepare
import data.tokens
from data import stories
from data.stories import (
    CLASSES, KINDS, PLOTS, SCENES, VALUES, align, can_check, check, draw_cast,
    draw_story, entropy, expand, fill, log_casts, log_probability, make_story, parse, scenes_of,
    split_sentences, variety, vocabulary, wrong_places,
)
from data.tokenizer import PAD, UNKNOWN, Tokenizer, describe_words, join_words, split_words

STORY = (
    "Mia had an orange kite. One evening she took the orange kite to the barn. At the barn she met "
    "Tom. Mia gave the orange kite to Tom, and he was glad. That night the kite was in the house "
    "of Tom. The next day Lily came with a blue flute. Tom and Lily walked to the pond, and Mia "
    "came too. At the pond Tom traded the orange kite for the blue flute. So Lily went home with "
    "the kite, and Tom kept the flute. Mia never forgot the day at the barn with Tom."
)


def draw(n, seed=1):
    rng = random.Random(seed)
    return [make_story(rng) for _ in range(n)]


# ------------------------------------------------------------------------------------------------
# right stories


def test_every_template_is_right():
    """Each plot with each template of each scene at least once, with the cast that was drawn."""
    rng = random.Random(2)
    for plot in PLOTS:
        scenes = scenes_of(plot)
        for turn in range(max(len(t) for _, t in scenes)):
            cast = draw_cast(rng)
            chosen = [list(t.values())[turn % len(t)] for _, t in scenes]
            reading = parse(join_words([fill(part, cast) for one in chosen for part in one]))
            assert (reading.mistakes, reading.plot, reading.cast) == ([], plot, cast)


def test_a_story_has_one_derivation():
    """No two templates of one scene are alike, and of all plots one alone fits a story."""
    for plot in PLOTS:
        for name, templates in scenes_of(plot):
            assert len(templates) == sum(len(expand(line)) for line in SCENES[name])
            for template in templates.values():  # or a wrong word would be taken for a right one
                assert not {part for part in template if isinstance(part, str)} & set(CLASSES)
    for text in draw(200):
        sentences = split_sentences(split_words(text))
        names = [stories.scenes_by_skeleton()[key] for _, _, key in sentences]
        fits = 0
        for plot in PLOTS:
            pairs = align(names, [name for name, _ in scenes_of(plot)])
            fits += len(pairs) == 10 and not stories.read(sentences, plot, pairs).mistakes
        assert fits == 1, text


def test_slots_hold_different_words():
    """Of all roles but the two colours, so that two people cannot share a name."""
    lists = [values for role, values in VALUES.items() if role != "cy"]
    for one, other in combinations(lists, 2):
        assert not set(one) & set(other)
    others = "she he She He her him his a an A An".split()
    assert len(CLASSES) == sum(map(len, lists)) + len(others)


def test_a_story_is_english():
    """The sentence begins with a capital, and the article fits the colour."""
    for story in draw(300):
        assert story[0].isupper() and story[-1] == "." and not re.search(r"\. [a-z]", story), story
        assert not re.search(r"\b[Aa]( [aeiou]|n [^aeiou])", story), story


# ------------------------------------------------------------------------------------------------
# mistakes


@pytest.mark.parametrize(
    "old, new, kind, word",
    [
        ("met Tom", "met Tim", "name", "Tim"),
        ("she took", "he took", "pronoun", "he"),
        ("and he was glad", "and she was glad", "pronoun", "she"),
        ("an orange", "a orange", "article", "a"),
        ("a blue flute", "an blue flute", "article", "an"),
        ("night the kite", "night the drum", "thing", "drum"),
        ("traded the orange", "traded the blue", "colour", "blue"),
        ("At the barn she", "At the river she", "place", "river"),
        ("So Lily went", "So Mia went", "possession", "Mia"),
        ("So Lily went", "So Anna went", "name", "Anna"),
        ("house of Tom", "house of Mia", "possession", "Mia"),
        ("and Tom kept", "and Lily kept", "possession", "Lily"),
        ("At the barn she met Tom.", "At the barn she and Tom.", "sentence", "At"),
        ("That night the kite was in the house of Tom.", "Tom was already at the barn.", "event",
         "Tom"),
        ("That night the kite", "That night [pad] kite", "sentence", "That"),
    ],
)
def test_a_mistake_is_found_and_named(old, new, kind, word):
    assert check(STORY) == [] and STORY.count(old) == 1
    text = STORY.replace(old, new)
    mistakes = check(text)
    assert [mistake.kind for mistake in mistakes] == [kind], mistakes
    assert split_words(text)[mistakes[0].position] == word
    assert kind in KINDS and log_probability(text) == -math.inf
    assert mistakes[0].position in wrong_places(mistakes) <= set(range(len(split_words(text))))


def test_a_trade_that_did_not_happen():
    """All names are of the story, and all sentences, but the kite is with two people."""
    text = STORY.replace("So Lily went home with the kite, and Tom kept the flute.",
                         "So Tom went home with the kite, and Lily kept the flute.")
    assert [mistake.kind for mistake in check(text)] == ["possession"] * 2


def test_a_value_of_another_role():
    """Mia is a name, but never that of the one who comes on the second day."""
    mistakes = check(STORY.replace("Lily", "Mia"))
    assert [mistake.kind for mistake in mistakes] == ["name"] * 3
    assert mistakes[0].message.startswith("Mia should be one of Alma, Dora, ")
    mistakes = check(STORY.replace("kite", "flute"))  # everywhere but in the two that have a flute
    assert {mistake.kind for mistake in mistakes} == {"thing"}


@pytest.mark.parametrize(
    "text", ["", ".", "Mia", "kite kite kite", "[pad] [pad]", "Something else. And more of it.",
             "Mia had an orange kite.", STORY[: len(STORY) // 2], STORY + " " + STORY,
             STORY + " Mia", STORY[:-1], "\n\x00\u00e9 \U0001f600"],
)
def test_what_is_no_story(text):
    """Nothing, half a story, two stories, other words: mistakes with words that say so."""
    mistakes = check(text)
    assert mistakes and all(mistake.message and mistake.kind in KINDS for mistake in mistakes)
    words = len(split_words(text))
    assert all(0 <= mistake.position <= words for mistake in mistakes)


def test_one_change_makes_a_story_wrong():
    """A word for another, anywhere: few pairs of stories differ in one word, such as morning and
    evening. The other words of such a pair are what the generator may write."""
    rng = random.Random(3)
    words_of_all = sorted(vocabulary())
    may_differ = {"had", "found", "made", "bought", "morning", "evening", "day", "met", "saw"}
    may_differ |= {"talks", "thinks"}
    wrong = 0
    for story in draw(300, seed=4):
        words = split_words(story)
        position = rng.randrange(len(words))
        word = rng.choice([w for w in words_of_all if w != words[position]])
        old, words[position] = words[position], word
        if check(join_words(words)):
            wrong += 1
        else:
            assert {old, word} <= may_differ, (old, word, story)
    assert wrong > 290


# ------------------------------------------------------------------------------------------------
# probability and variety


def test_the_probabilities_sum_to_one(monkeypatch):
    """Of one cast and one plot, over all ways to say it, in a world of fewer templates."""
    some = {name: lines[: 1 + i % 2] for i, (name, lines) in enumerate(SCENES.items())}
    caches = (scenes_of, stories.scenes_by_skeleton)
    for function in caches:
        function.cache_clear()
    monkeypatch.setattr(stories, "SCENES", some)
    cast = draw_cast(random.Random(7))
    templates = [list(templates.values()) for _, templates in scenes_of(PLOTS[5])]
    texts = {
        join_words([fill(part, cast) for one in chosen for part in one])
        for chosen in product(*templates)
    }
    assert len(texts) == math.prod(map(len, templates)) > 100
    of_these = math.log(len(PLOTS)) + log_casts()  # given the plot and the cast
    assert sum(math.exp(log_probability(text) + of_these) for text in texts) == pytest.approx(1)
    for function in caches:
        function.cache_clear()


def test_log_probability_is_that_of_the_generator():
    """The mean of -ln P over draws is the entropy, within 4 standard errors."""
    nats = [-log_probability(story) for story in draw(500)]
    mean = sum(nats) / len(nats)
    deviation = (sum((n - mean) ** 2 for n in nats) / len(nats)) ** 0.5
    assert abs(mean - entropy()) <= 4 * deviation / len(nats) ** 0.5 + 1e-9
    # chi square of the plots and of the templates of a scene, each at p = 0.001
    plots, templates = Counter(), Counter()
    for story in draw(1000, seed=5):
        plots[parse(story).plot] += 1
        templates[split_sentences(split_words(story))[1][2]] += 1
    for counts, number, bound in ((plots, 16, 37.7), (templates, 4, 16.3)):
        expected = 1000 / number
        assert len(counts) == number
        assert sum((n - expected) ** 2 / expected for n in counts.values()) < bound


def readings_of(n, seed, change=lambda cast: None):
    """n right stories, whose casts may be changed before they are told."""
    rng, found = random.Random(seed), []
    for _ in range(n):
        _, cast, templates = draw_story(rng)
        change(cast)
        words = [fill(part, cast) for template in templates for part in template]
        found.append(parse(join_words(words)))
    return found


def test_variety_of_true_stories():
    shares = variety(readings_of(400, seed=6))
    assert len(shares) == 9 + 1 + 45 + 10
    assert all(0.97 < share < 1.03 for share in shares.values())
    one = readings_of(1, seed=6)
    assert max(variety(one * 200).values()) == 0
    assert variety(one) == variety([]) == {}
    assert variety([*one * 2, parse("A lake.")]) == variety(one * 2)  # of right stories alone


def test_variety_sees_a_pair():
    """A sampler that copies one colour to the other: each colour has all of its entropy."""
    shares = variety(readings_of(400, seed=7, change=lambda cast: cast.update(cy=cast["cx"])))
    assert min(shares["cx"], shares["cy"]) > 0.97
    assert min(shares, key=shares.get) == "cx+cy"
    assert shares["cx+cy"] == pytest.approx(math.log2(10) / math.log2(100), abs=0.02)


def test_variety_sees_a_form_that_is_never_used():
    readings = [r for r in readings_of(800, seed=8) if "already" not in r.forms[2]]
    shares = variety(readings)
    assert min(shares, key=shares.get) == "form 3" and shares["form 3"] < 0.7


# ------------------------------------------------------------------------------------------------
# words


def test_words_round_trip():
    tokenizer = Tokenizer(describe_words(vocabulary()))
    for story in draw(50):
        ids = tokenizer.encode(story)
        assert tokenizer.decode(ids.tolist()) == story == join_words(split_words(story))
        padded = ids.tolist() + [tokenizer.ids[PAD]] * 9
        assert tokenizer.decode(padded) == "".join(tokenizer.pieces(padded)) == story
    inside = [tokenizer.ids[word] for word in ("Mia", PAD, "had")]
    assert tokenizer.decode(inside) == "Mia [pad] had"
    assert tokenizer.encode("Mia had zebras.").tolist()[2] == tokenizer.ids[UNKNOWN]
    assert tokenizer.unknown("Mia had zebras, zebras.") == ["zebras"]
    assert can_check(tokenizer) and not can_check(Tokenizer(describe_words({"zebras"})))


def test_the_files(tmp_path, monkeypatch):
    """A right story in every row, and none of the training set among those held out."""
    for module in (data.prepare, data.tokens):
        monkeypatch.setattr(module, "FOLDER", tmp_path)
    few = (make_story, vocabulary, 128, 2000, 100)
    monkeypatch.setitem(data.prepare.WORLDS, "stories", few)
    data.prepare.prepare_world("stories")
    meta, tokens = data.tokens.load_tokens("stories")
    assert meta["row"] == 128 and can_check(Tokenizer(meta["tokenizer"]))
    rows = {split: tokens[split].reshape(-1, 128).tolist() for split in tokens}
    texts = [Tokenizer(meta["tokenizer"]).decode(row) for row in rows["train"] + rows["val"]]
    assert len(set(texts)) == 2100 and len(rows["val"]) == 100
    assert all(check(text) == [] for text in texts[-300:])
    assert texts[:50] == draw(50, seed=0)  # the same on every machine
    first = data.tokens.held_out(meta, tokens, 20, most=3)
    assert first.tolist() == [row[:20] for row in rows["val"][:3]]

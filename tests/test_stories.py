"""Checks the world of stories: its generator, its checker and its probability agree, every kind of
mistake is found and named, and the files of data/prepare.py are what they should be."""

import json
import math
import random
import sys
from collections import Counter
from itertools import combinations, product
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import data.dataset
from command import copy_project, error_line, run
from common.command import UserError
from data import stories
from data.stories import (
    BOYS, CLASSES, KINDS, LONGER_PLOTS, PLOTS, ROLES, SCENES, VALUES, align, check, draw_cast,
    entropy, expected_entropies, fill, log_casts, log_probability, make_story, parse, scenes_of,
    skeleton, slot_entropies, variety, vocabulary,
)
from data.tokenizer import PAD, UNKNOWN, Tokenizer, describe_words, join_words, split_words
from eval import measure_stories
from experiments import heldout
from experiments.ablate import Result, draw_right, table
from experiments.agreement import ExactPosterior, share_wrong
from experiments.heldout import given_tokens
from sample import PLAIN, RED, marked

STORIES = ["--data", "stories"]
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


def test_every_story_is_right():
    for story in draw(300):
        assert check(story) == [], story


def test_every_template_is_right():
    """Each plot with each template of each scene at least once, with the cast that was drawn."""
    rng = random.Random(2)
    for plot in PLOTS:
        scenes = scenes_of(plot)
        for turn in range(max(len(templates) for _, templates in scenes)):
            cast = draw_cast(rng)
            chosen = [templates[turn % len(templates)] for _, templates in scenes]
            reading = parse(join_words([fill(part, cast) for one in chosen for part in one]))
            assert (reading.mistakes, reading.plot, reading.cast) == ([], plot, cast)


def test_the_length_of_a_story():
    for plot in PLOTS:
        lengths = [[len(t) for t in templates] for _, templates in scenes_of(plot)]
        assert sum(map(min, lengths)) >= 90 and sum(map(max, lengths)) <= 125


LONGER_STORY = (
    "Finn made a yellow sled. He carried the yellow sled to the castle one evening. Cora was "
    "already at the castle. The yellow sled fell down, but Cora gave it to Finn. Cora ran faster "
    "than Finn, so she won the yellow sled. That night Cora put the yellow sled under her bed. The "
    "next day Dora came with a purple crown. Cora and Dora walked to the meadow, and Finn came "
    "too. Finn watched Cora play with the sled and Dora with the crown. At the meadow Cora traded "
    "the yellow sled for the purple crown. In the end Dora had the sled, and Cora had the crown. "
    "Cora still talks of the castle and the yellow sled."
)


def test_a_longer_story():
    """The last event of a day says who has what: after the race it is Cora's, not Finn's."""
    plots = LONGER_PLOTS["two sentences more"]
    assert check(LONGER_STORY, plots) == []
    wrong = LONGER_STORY.replace("That night Cora put", "That night Finn put")
    assert [mistake.kind for mistake in check(wrong, plots)] == ["possession"]


def test_longer_stories_have_more_sentences():
    """They are right as what they are, and as a story of the training have events too many. Those
    of one more fit in a row of the training."""
    rng = random.Random(4)
    assert make_story(rng).count(".") == 10
    for more, plots in enumerate(LONGER_PLOTS.values(), start=1):
        for plot in plots * 20:
            text = make_story(rng, [plot])
            assert text.count(".") == 10 + more
            assert (len(split_words(text)) > 128) == (more == 2)
            assert check(text, plots) == []
            assert [mistake.kind for mistake in check(text)] == ["event"] * more, text


def test_a_story_has_one_derivation():
    """No two templates of one scene are alike, and of all plots one alone fits a story."""
    for plot in PLOTS:
        for _, templates in scenes_of(plot):
            assert len({skeleton(template) for template in templates}) == len(templates)
    for text in draw(200):
        words = split_words(text)
        sentences = stories.split_sentences(words)
        skeletons = [skeleton(sentence) for _, sentence in sentences]
        fits = 0
        for plot, pairs in stories.closest_plots(skeletons, PLOTS):
            _, mistakes = stories.read_slots(sentences, skeletons, plot, pairs)
            fits += not mistakes and len(pairs) == len(sentences) == len(scenes_of(plot))
        assert fits == 1, text


def test_slots_hold_different_words():
    """Of all roles but the two colours, so that two people cannot share a name."""
    lists = [values for role, values in VALUES.items() if role != "cy"]
    for one, other in combinations(lists, 2):
        assert not set(one) & set(other)
    others = "she he She He her him his a an A An".split()
    assert len(CLASSES) == sum(map(len, lists)) + len(others)
    assert len(PLOTS) >= 12


def test_a_story_is_english():
    """The sentence begins with a capital, and the article fits the colour."""
    for story in draw(300):
        words = split_words(story)
        assert words[0][0].isupper() and words[-1] == "."
        for before, word in zip(words, words[1:]):
            assert before != "." or word[0].isupper(), story
            if before in ("a", "an"):
                assert (before == "an") == (word[0] in "aeiou"), story


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


def test_align_is_the_longest_common_subsequence():
    pairs = align([{"a"}, {"x"}, {"b", "c"}, {"c"}, set()], ["a", "b", "c", "d"])
    assert pairs == [(0, 0), (2, 1), (3, 2)]


# ------------------------------------------------------------------------------------------------
# probability and variety


def test_the_probabilities_sum_to_one(monkeypatch):
    """Of one cast and one plot, over all ways to say it, in a world of fewer templates."""
    some = {name: lines[: 1 + i % 2] for i, (name, lines) in enumerate(SCENES.items())}
    caches = (scenes_of, stories.templates_by_skeleton, stories.scenes_by_skeleton)
    for function in caches:
        function.cache_clear()
    monkeypatch.setattr(stories, "SCENES", some)
    cast = draw_cast(random.Random(7))
    templates = [templates for _, templates in scenes_of(PLOTS[5])]
    texts = {
        join_words([fill(part, cast) for one in chosen for part in one])
        for chosen in product(*templates)
    }
    assert len(texts) == math.prod(map(len, templates)) > 100
    of_these = math.log(len(PLOTS)) + log_casts()  # given the plot and the cast
    assert sum(math.exp(log_probability(text) + of_these) for text in texts) == pytest.approx(1)
    for function in caches:
        function.cache_clear()


def test_the_number_of_stories():
    casts = 16**3 * 12**2 * 10**4
    assert log_casts() == pytest.approx(math.log(casts))
    assert casts * len(PLOTS) > 10**9


def test_log_probability_is_that_of_the_generator():
    """How often each choice is drawn, against the probability of a story: the mean of -ln P over
    draws is the entropy, within 4 standard errors."""
    nats = [-log_probability(story) for story in draw(1000)]
    mean = sum(nats) / len(nats)
    deviation = (sum((n - mean) ** 2 for n in nats) / len(nats)) ** 0.5
    assert abs(mean - entropy()) <= 4 * deviation / len(nats) ** 0.5 + 1e-9
    # chi square of the plots and of the templates of a scene, each at p = 0.001
    plots, templates = Counter(), Counter()
    for story in draw(2000, seed=5):
        plots[parse(story).plot] += 1
        templates[skeleton(stories.split_sentences(split_words(story))[1][1])] += 1
    for counts, number, bound in ((plots, 16, 37.7), (templates, 4, 16.3)):
        expected = 2000 / number
        assert len(counts) == number
        assert sum((n - expected) ** 2 / expected for n in counts.values()) < bound


def test_variety():
    readings = [parse(story) for story in draw(200, seed=6)]
    shares = variety(readings)
    assert set(shares) == {*ROLES, "plot"}
    assert all(0.97 < share < 1.03 for share in shares.values())
    same = variety([readings[0]] * 200)
    assert same["plot"] == 0 and all(share < 0.5 for share in same.values())
    assert variety(readings[:1]) == variety([]) == {}


def test_slot_entropies():
    one = {role: values[0] for role, values in VALUES.items()}
    other = one | {"A": VALUES["A"][1], "q": VALUES["q"][1]}
    bits = slot_entropies([(("gift", "trade"), one), (("race", "trade"), other)])
    assert bits == {"name": 1 / 3, "thing": 0, "colour": 0, "place": 1 / 2, "plot": 1}
    for kind, known in (("name", 16), ("thing", 12), ("colour", 10), ("place", 10)):
        known = math.log2(known)
        assert known - 0.05 < expected_entropies(1000)[kind] < known


def test_pronouns_follow_names():
    for name in (name for role in ROLES["name"] for name in VALUES[role]):
        assert stories.pronoun("he", name) == ("he" if name in BOYS else "she")


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


def test_all_words_of_the_scenes_are_in_the_vocabulary():
    words = vocabulary()
    for story in draw(1000):
        assert set(split_words(story)) <= words
    assert PAD not in words


# ------------------------------------------------------------------------------------------------
# words that must agree, with an exact posterior (experiments/agreement.py)


def test_exact_posterior_by_hand():
    """Of the texts 0 0 and 1 1, after reading 0 5 at t = 1/2: (V + 1) to 1."""
    model = ExactPosterior([(0, 0), (1, 1)])
    V = model.config.vocab_size
    p = model(torch.tensor([[0, 5]]), torch.tensor([0.5]), None).exp()[0]  # (2, V)
    expected = torch.tensor([(V + 1) / (V + 2), 1 / (V + 2)])
    torch.testing.assert_close(p[:, :2], expected.expand(2, 2))


def test_one_step_draws_words_apart():
    pairs = [(a, a) for a in range(12)]
    n, expected = 4000, 11 / 12
    error = (expected * (1 - expected) / n) ** 0.5
    assert abs(share_wrong(pairs, 1, 2, n) - expected) < 4 * error
    assert share_wrong(pairs, 64, 2, n) < 0.01 < share_wrong(pairs, 4, 2, n) < 0.2


# ------------------------------------------------------------------------------------------------
# the commands


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """A project with stories and three networks that have hardly been trained."""
    project = copy_project(tmp_path_factory.mktemp("project"))
    run(project, "data/prepare.py", "stories")
    for stage in ("judge", "dfm", "fsdfm"):
        flags = [*STORIES, "--preset", "tiny", "--iterations", 4]
        if stage != "fsdfm":
            flags += ["--block-size", 128]
        run(project, "train.py", stage, *flags)
    few = ["--steps", 1, 8, "--num-samples", 4, "--temperatures", 0.5, 1]
    run(project, "eval.py", *STORIES, *few)
    return project


def rows_of(project, split):
    rows = np.fromfile(project / f"data/stories/{split}.bin", np.uint16).reshape(-1, 128)
    tokenizer = Tokenizer(json.loads((project / "data/stories/meta.json").read_text())["tokenizer"])
    return rows, tokenizer


def test_the_files(told):
    """A right story in every row, and none of the training set among those held out."""
    (train, tokenizer), (val, _) = rows_of(told, "train"), rows_of(told, "val")
    assert len(train) == 100_000 and len(val) == 5_000
    for row in [*train[:200], *val[:200]]:
        assert check(tokenizer.decode(row.tolist())) == []
    known = {row.tobytes() for row in train}
    assert len(known) == 100_000 and not any(row.tobytes() in known for row in val)
    before = (told / "data/stories/train.bin").read_bytes()
    run(told, "data/prepare.py", "stories", "--overwrite")
    assert (told / "data/stories/train.bin").read_bytes() == before


def test_the_report(told):
    report = json.loads((told / "out/eval.json").read_text())
    assert report["real"]["right"] == 1 and report["real"]["mistakes"] == 0
    assert report["real"]["new"] == 1
    assert min(report["real"]["variety"].values()) > 0.97
    assert len(report["rows"]) == 8
    for row in report["rows"]:
        assert row["right"] == 0 and row["mistakes"] >= 1 and row["variety"] == {}
        total = sum(row["mistakes_by_kind"].values())
        assert total == pytest.approx(row["mistakes"]) and set(row["mistakes_by_kind"]) == {*KINDS}
    run(told, "plot.py")
    for name in ("stories", "curve", "frontier"):
        assert (told / f"out/{name}.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert not (told / "out/variety.png").exists()  # no story is right
    for row in report["rows"]:
        if row["steps"] == 8:
            row |= {"right": 0.5, "variety": dict.fromkeys((*ROLES, "plot"), 0.9)}
    (told / "other").mkdir()
    (told / "other/eval.json").write_text(json.dumps(report))
    run(told, "plot.py", "--out", "other")
    assert (told / "other/variety.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_measures_of_stories_by_hand(told, monkeypatch):
    """Two stories of the training set, one held out, one wrong."""
    monkeypatch.setattr(data.dataset, "FOLDER", told / "data")
    dataset = data.dataset.Dataset("stories")
    (train, tokenizer), (val, _) = rows_of(told, "train"), rows_of(told, "val")
    wrong = val[1].copy()
    wrong[0] = tokenizer.ids["the"]
    x = torch.tensor(np.stack([train[0], train[1], val[0], wrong]).astype(np.int64))
    row = measure_stories(x, dataset)
    assert row["right"] == 0.75 and row["mistakes"] == 0.25 and row["new"] == pytest.approx(1 / 3)
    assert row["mistakes_by_kind"]["sentence"] == 0.25
    assert row["right_error"] == pytest.approx(0.25)  # s / sqrt(4), s = 0.5


def test_what_is_given_of_a_story(told):
    rows, tokenizer = rows_of(told, "val")
    x_1 = torch.tensor(rows[:3].astype(np.int64))
    given = given_tokens(x_1, tokenizer)
    for row, first, last in zip(x_1, given["first sentence"], given["last sentence"]):
        text = tokenizer.decode(row.tolist())
        sentences = [sentence + "." for sentence in text.split(".")[:-1]]
        assert tokenizer.decode(row[first].tolist()) == sentences[0]
        assert tokenizer.decode(row[last].tolist()) == sentences[-1].strip()
    assert given["every second word"].float().mean() == 0.5


def test_longer_rows_on_the_command_line(told):
    """Every case has its row, of stories that these networks cannot write yet."""
    command = ["experiments/heldout.py", "longer", *STORIES, "--steps", 2, "--num-samples", 3]
    run(told, *command)
    rows = json.loads((told / "out/longer-stories.json").read_text())["rows"]
    cases = [(row["stories"], row["given"], row["length"]) for row in rows[::2]]
    usual = "of the training's plots"
    assert cases == [
        (usual, "nothing", 128), (usual, "nothing", 160), (usual, "every second word", 128),
        ("one sentence more", "every second word", 128),
        ("two sentences more", "every second word", 160),
    ]
    assert [row["model"] for row in rows] == ["dfm", "fsdfm"] * 5
    assert all(row["right"] == 0 for row in rows)


def test_longer_rows_keep_what_is_given(told, monkeypatch):
    """Networks that fill in the words that were there have all stories right."""
    tokenizer = rows_of(told, "val")[1]
    asked = []

    def perfect(network, x_1, given, steps, sampler, batch_size):
        asked.append(given.float().mean().item())
        return x_1

    monkeypatch.setattr(heldout, "infill", perfect)
    arguments = SimpleNamespace(
        num_samples=5, seed=1, steps=[8], batch_size=2, update=None, grid_power=None,
        step_conditioning="exact", shared_noise=False,
    )
    blocks = torch.zeros(1, 128)
    rows = heldout.report_longer_stories({"dfm": None}, blocks, tokenizer, arguments)
    assert [row["right"] for row in rows] == [1] * 5 and asked == [0, 0, 0.5, 0.5, 0.5]
    two_more = LONGER_PLOTS["two sentences more"]
    stories_160 = heldout.padded_stories(3, 160, two_more, tokenizer, 1)
    assert (stories_160[:, -20:] == tokenizer.ids[PAD]).all()
    assert (stories_160[:, 128] != tokenizer.ids[PAD]).all()  # beyond the length of the training
    with pytest.raises(UserError, match="does not fit in 64"):
        heldout.padded_stories(1, 64, PLOTS, tokenizer, 1)


def test_an_ablation_shows_right_stories_with_their_variety():
    """Bars are sorted, and have the mean over the seeds and the lowest variety beside it."""

    def result(name, seed, right, lowest):
        none = {"right": 0.0, "right_error": 0.0, "variety": {}}
        some = {"right": right, "right_error": 0.03, "variety": {"name": 1.0, "plot": lowest}}
        return Result(name, seed, 60.0, dict.fromkeys((1, 2), none) | dict.fromkeys(
            (4, 8, 16, 64), some), {"right": 1.0})

    results = [result("DFM", 1, 0.7, 0.98), result("narrow", 1, 0.9, 0.72)]
    results += [result("narrow", 2, 0.8, 0.83), result("broad", 1, 0.8, 0.99)]
    axis = draw_right(results).axes[0]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["DFM", "broad", "narrow"]
    assert [bar.get_width() for bar in axis.patches] == pytest.approx([0.7, 0.8, 0.85])
    assert [text.get_text()[-4:] for text in axis.texts] == ["0.98", "0.99", "0.72"]
    lines = table(results).splitlines()
    assert lines[3].startswith("| narrow | 1 | 60 s | 0.000 ± 0.000 | 0.000 ± 0.000 | 0.900 ± 0.03")
    assert lines[3].count("0.900 ± 0.030 (0.72)") == 4


def test_check_on_the_command_line(told):
    printed = run(told, "sample.py", "--steps", 2, "--num-samples", 2, "--check").stdout
    assert printed.count("no story has this sentence") + printed.count("does not belong") >= 2
    lines = run(told, "sample.py", "--steps", 2, "--check", "--json").stdout.splitlines()
    assert json.loads(lines[0])["mistakes"][0]["kind"] in KINDS
    assert "\033" not in printed
    prompt = run(told, "sample.py", "--prompt", "Mia had a", "--watch").stdout
    assert prompt.rstrip().splitlines()[-1].startswith("Mia had a")
    assert "'zebra'" in error_line(told, "sample.py", "--prompt", "Mia had a zebra")


def test_wrong_words_are_red_on_a_terminal(monkeypatch):
    text = STORY.replace("met Tom", "met Tim")
    assert "\033" not in marked(text, check(text))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    shown = marked(text, check(text))
    assert shown.startswith(text.split(" Tim")[0] + f"{RED} Tim{PLAIN}. Mia gave")
    assert shown.count(RED) == 1 and shown.endswith("Tim should be Tom (name)")
    assert marked(STORY, []) == f"{STORY}\n  right"


def test_check_of_another_text(told, tmp_path):
    (tmp_path / "text").write_text("the cat sat on the mat, and so on. " * 100)
    flags = ["--text", tmp_path / "text", "--tokenizer", "word"]
    assert "V = 11" in run(told, "data/prepare.py", "cats", *flags).stdout
    out = ["--out", tmp_path / "out"]
    tiny = ["--preset", "tiny", "--iterations", 2, "--data", "cats"]
    run(told, "train.py", "dfm", *tiny, *out)
    line = error_line(told, "sample.py", "--model", "dfm", "--check", *out)
    assert "--check is for stories" in line
    line = error_line(told, "train.py", "judge", *STORIES, "--block-size", 200, *out)
    assert "128 tokens each" in line
    assert "comes in words" in error_line(told, "data/prepare.py", "stories", "--tokenizer", "bpe")

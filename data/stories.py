"""Stories in which right and wrong can be counted.

    Mia had a blue drum. One evening she took the blue drum to the barn. At the barn she met Tom.

A story is two days in the life of three people, two things and two places. Its sentences are
templates with slots, and the slots must agree from the first sentence to the last: a name and its
pronouns, a thing and its colour, where they are, and who has what. Tokens that are drawn without
knowing of each other do not agree, so the share of right stories shows what few steps break.

One description, SCENES and PLOTS, serves three purposes:

    make_story(rng)         draws a story: the plot, then the cast, then a template for each scene
    check(text)             the mistakes of a text, each with its kind and place
    log_probability(text)   ln P(text), exact: a right story can be made in one way only

    P(text) = P(plot) * P(cast) * prod over scenes 1 / (number of the scene's templates)

Read next: prepare.py, which writes them to files. This world is ours, not the paper's.
"""

import math
import random
import re
from collections import Counter
from functools import cache
from itertools import combinations, product
from typing import NamedTuple

from data.tokenizer import describe_words, join_words, split_words

NOUN = "story"  # what a text is called

# ------------------------------------------------------------------------------------------------
# the words that fill the slots

# Every role has values of its own, so that two people cannot share a name. With one list for all, a
# network has to learn that names differ. It is worth 0.2 nats of a story, and is learned last.
PEOPLE = {  # role: girls, boys
    "A": ("Amy Anna Ella Emma Ivy Mia Rose Zoe", "Ben Finn Jack Leo Max Ned Sam Tim"),
    "B": ("Ada Cora Eva Fay Kate Lucy Nora Ruby", "Adam Dan Evan Hugo Luke Nick Paul Tom"),
    "C": ("Alma Dora Grace Iris June Lily Nina Vera", "Abel Carl Eric Felix John Owen Ralph Toby"),
}
BOYS = {name for _, boys in PEOPLE.values() for name in boys.split()}
COLOURS = "black blue brown golden green orange purple red silver yellow".split()
VALUES = {  # of the roles
    **{role: f"{girls} {boys}".split() for role, (girls, boys) in PEOPLE.items()},
    "x": "ball bell boat book doll drum hat kite lamp rope sled whistle".split(),
    "y": "basket bow cart crown flag flute mask puppet shell sword top wheel".split(),
    "cx": COLOURS, "cy": COLOURS,
    "p": "barn beach bridge castle forest garden lake market mill river".split(),
    "q": "cave farm field harbour hill meadow orchard park pond tower".split(),
}
ROLES = {"name": ["A", "B", "C"], "thing": ["x", "y"], "colour": ["cx", "cy"], "place": ["p", "q"]}
KIND_OF = {role: kind for kind, roles in ROLES.items() for role in roles}
PRONOUNS = {"he": ("she", "he"), "He": ("She", "He"), "him": ("her", "him"), "his": ("her", "his")}
ARTICLES = {"a": ("a", "an"), "A": ("A", "An")}

# The class of a word that some slot may hold: sentences that differ in such words alone are alike.
CLASSES = {value: KIND_OF[role] for role, values in VALUES.items() for value in values}
CLASSES |= {word: form for form, words in (PRONOUNS | ARTICLES).items() for word in words}
CLASSES |= {"her": "him", "his": "him"}  # "her" may stand for both

# ------------------------------------------------------------------------------------------------
# the stories: scenes, each with several ways to say it

# {A} {B} {C} people, {x} {y} things, {cx} {cy} their colours, {p} {q} places. {he A} {him A}
# {his A} pronouns, {a cx} an article. {h} has x after the first day, {o} is the other one. {i} has
# x in the end, and {j} has y. (one|two) stands for one or two.
SCENES = {
    # the first day
    "begin": ["{A} (had|found|made|bought) {a cx} {cx} {x}."],
    "go": ["One (morning|evening) {he A} took the {cx} {x} to the {p}.",
           "{He A} carried the {cx} {x} to the {p} one (morning|evening)."],
    "meet": ["At the {p} {he A} (met|saw) {B}.",
             "{B} was already at the {p}."],
    "gift": ["{A} gave the {cx} {x} to {B}, and {he B} was glad.",
             "{B} liked the {cx} {x}, so {A} gave it to {him B}."],
    "race": ["{A} and {B} raced for the {cx} {x}, and {he B} won.",
             "{B} ran faster than {A}, so {he B} won the {cx} {x}."],
    "play": ["{A} let {B} play with the {cx} {x} until it was dark.",
             "{A} and {B} played with the {cx} {x} until it was dark."],
    "find": ["{A} lost the {cx} {x}, but {B} found it for {him A}.",
             "The {cx} {x} fell down, but {B} gave it to {A}."],
    "night": ["That night the {x} was in the house of {h}.",
              "That night {h} put the {cx} {x} under {his h} bed."],
    # the second day
    "come": ["The next (morning|day) {C} came with {a cy} {cy} {y}.",
             "Then {C} came, who had {a cy} {cy} {y}."],
    "walk": ["{h} and {C} walked to the {q}, and {o} came too.",
             "{C} went to the {q}, and {h} and {o} came too."],
    "trade": ["At the {q} {h} traded the {cx} {x} for the {cy} {y}.",
              "At the {q} {C} gave the {cy} {y} for the {cx} {x}."],
    "present": ["At the {q} {C} gladly gave the {cy} {y} to {o}.",
                "{o} had nothing, so {C} gave {him o} the {cy} {y}."],
    "share": ["At the {q} {h} gladly gave the {cx} {x} to {o}.",
              "{o} had nothing, so {h} gave {him o} the {cx} {x}."],
    "keep": ["At the {q} they played with the {cx} {x} and the {y}.",
             "{o} watched {h} play with the {x} and {C} with the {y}."],
    # the end
    "home": ["So {i} went home with the {x}, and {j} kept the {y}.",
             "In the end {i} had the {x}, and {j} had the {y}.",
             "{j} took the {cy} {y} home, and {i} took the {cx} {x}."],
    "last": ["{A} never forgot the day at the {p} with {B}.",
             "{B} still (talks|thinks) of the {p} and the {cx} {x}."],
}

# What may happen on each day, and who then has what: who h and o are, and who i and j.
FIRST_DAYS = {"gift": "BA", "race": "BA", "play": "AB", "find": "AB"}
SECOND_DAYS = {"trade": "Ch", "present": "ho", "share": "oC", "keep": "hC"}
PLOTS = list(product(FIRST_DAYS, SECOND_DAYS))


class Slot(NamedTuple):
    """A place in a template that the story's cast fills."""

    form: str  # name, thing, colour, place; he, He, him, his; a, A
    role: str  # whose: A B C, x y, cx cy, p q
    owner: bool  # written h, o, i or j: the person is named for who has what


def parse_template(text, roles):
    """"{h} had {a cx} {cx} {x}." -> (Slot, "had", Slot, Slot, Slot, "."). `roles` says who h is."""
    parts = []
    for part in re.findall(r"\{[^}]*\}|\w+|[^\w\s]", text):
        if part.startswith("{"):
            *form, name = part[1:-1].split()
            role = roles.get(name, name)
            part = Slot(form[0] if form else KIND_OF[role], role, owner=name in "hoij")
        parts.append(part)
    return tuple(parts)


def expand(text):
    """"a (b|c) d" -> ["a b d", "a c d"]."""
    pieces = re.split(r"\(([^)]*)\)", text)  # text and choices by turns
    return ["".join(choice) for choice in product(*(piece.split("|") for piece in pieces))]


def skeleton(parts, classes=CLASSES):
    """The words of a sentence, or the parts of a template, with classes in place of slots."""
    forms = (part.form if isinstance(part, Slot) else part for part in parts)
    return tuple(classes.get(form, form) for form in forms)


@cache
def scenes_of(plot):
    """[(name, {skeleton: template})] of a plot: the scenes of a story in their order."""
    first, second = plot
    roles = dict(zip("ho", FIRST_DAYS[first]))
    roles |= {name: roles.get(role, role) for name, role in zip("ij", SECOND_DAYS[second])}
    scenes = []
    for name in ("begin", "go", "meet", first, "night", "come", "walk", second, "home", "last"):
        lines = [line for choices in SCENES[name] for line in expand(choices)]
        templates = [parse_template(line, roles) for line in lines]
        scenes.append((name, {skeleton(template): template for template in templates}))
    return scenes


@cache
def scenes_by_skeleton():
    """{skeleton: names of the scenes that have such a sentence}."""
    found = {}
    for name, templates in (scene for plot in PLOTS for scene in scenes_of(plot)):
        for key in templates:
            found.setdefault(key, set()).add(name)
    return found


@cache
def vocabulary():
    """All words and marks of all stories, a set."""
    words = {word for values in VALUES.values() for word in values}
    words |= {word for forms in (PRONOUNS | ARTICLES).values() for word in forms}
    for _, templates in (scene for plot in PLOTS for scene in scenes_of(plot)):
        words |= {part for parts in templates.values() for part in parts if isinstance(part, str)}
    return words


def can_check(tokenizer):
    """Whether the texts of this tokenizer are stories."""
    return tokenizer.description == describe_words(vocabulary())


# ------------------------------------------------------------------------------------------------
# the generator


def pick(rng, values):
    """One of a list, each as likely, the same in every version of Python."""
    return values[int(rng.random() * len(values))]


def draw_cast(rng):
    """{role: value}, independent of one another."""
    return {role: pick(rng, values) for role, values in VALUES.items()}


def fill(part, cast):
    """The word of a part of a template."""
    if isinstance(part, str):
        return part
    value = cast[part.role]
    if part.form in PRONOUNS:
        return PRONOUNS[part.form][value in BOYS]
    if part.form in ARTICLES:
        return ARTICLES[part.form][value[0] in "aeiou"]
    return value


def draw_story(rng):
    """(plot, cast, template of each scene), drawn with rng, a random.Random."""
    plot = pick(rng, PLOTS)
    cast = draw_cast(rng)
    return plot, cast, [pick(rng, list(choices.values())) for _, choices in scenes_of(plot)]


def make_story(rng):
    """A right story, a str, drawn with rng, a random.Random."""
    _, cast, templates = draw_story(rng)
    return join_words([fill(part, cast) for template in templates for part in template])


# ------------------------------------------------------------------------------------------------
# the checker

KINDS = ("sentence", "event", "name", "possession", "pronoun", "article", "thing", "colour",
         "place")


class Mistake(NamedTuple):
    """What is wrong with a text, and where."""

    kind: str  # one of KINDS
    position: int  # of the word in split_words(text), or of a sentence's first word
    words: int  # how many are wrong
    message: str

    def __str__(self):
        return f"word {self.position + 1}: {self.message}"


class Reading(NamedTuple):
    """A text, read as a story."""

    plot: tuple
    cast: dict  # {role: value}, where the text says it
    mistakes: list
    forms: list  # the skeleton of each sentence


def check(text):
    """The mistakes of a text, a list of Mistake, in their order; [] if it is a right story."""
    return parse(text).mistakes


def wrong_places(mistakes):
    """The places of wrong words, a set; in stories a word is a token."""
    return {place for m in mistakes for place in range(m.position, m.position + m.words)}


def parse(text):
    """Reads a text as the story that it is most like: as the one of the plots that has most of its
    sentences in their order, and then the fewest mistakes. A Reading."""
    sentences = split_sentences(split_words(text))
    names = [scenes_by_skeleton().get(key, set()) for _, _, key in sentences]
    aligned = [(plot, align(names, [name for name, _ in scenes_of(plot)])) for plot in PLOTS]
    most = max(len(pairs) for _, pairs in aligned)
    readings = [read(sentences, plot, pairs) for plot, pairs in aligned if len(pairs) == most]
    return min(readings, key=lambda reading: len(reading.mistakes))


def split_sentences(words, classes=CLASSES):
    """[(position of the first word, words, skeleton)]: a full stop ends a sentence."""
    stops = [i + 1 for i, word in enumerate(words) if word == "." or i == len(words) - 1]
    spans = zip([0, *stops], stops)
    return [(start, words[start:end], skeleton(words[start:end], classes)) for start, end in spans]


def align(names, scenes):
    """((i, j), ...): pairs of sentence i and scene j, both in order, as many as possible (the
    longest common subsequence). names: for each sentence, the set of scenes that it may be."""
    n, m = len(names), len(scenes)
    best = [[()] * (m + 1) for _ in range(n + 1)]  # the pairs of sentences i... and scenes j...
    for i in reversed(range(n)):
        for j in reversed(range(m)):
            if scenes[j] in names[i]:
                best[i][j] = ((i, j), *best[i + 1][j + 1])
            else:
                # the first of equals: a sentence that cannot be read takes the place of one
                best[i][j] = max(best[i + 1][j + 1], best[i + 1][j], best[i][j + 1], key=len)
    return best[0][0]


def read(sentences, plot, pairs):
    """The Reading of sentences, of which `pairs` says which scene of the plot they are.

    A role has the value of its own that most of these sentences say, the first one of equals. A
    word that differs from it is a mistake.
    """
    slots = []  # (position, word, part of the template)
    for i, j in pairs:
        start, words, key = sentences[i]
        slots += zip(range(start, start + len(words)), words, scenes_of(plot)[j][1][key])
    votes = {role: Counter() for role in VALUES}
    for _, word, part in slots:
        if isinstance(part, Slot) and word in VALUES[part.role]:
            votes[part.role][word] += 1
    cast = {role: counts.most_common(1)[0][0] for role, counts in votes.items() if counts}
    mistakes = slot_mistakes(slots, cast)
    mistakes += sentence_mistakes(sentences, {i for i, _ in pairs}, len(scenes_of(plot)),
                                  scenes_by_skeleton())
    mistakes.sort(key=lambda mistake: mistake.position)
    return Reading(plot, cast, mistakes, [key for _, _, key in sentences])


def slot_mistakes(slots, cast):
    """Words of the aligned sentences that are not those of the cast."""
    people = {cast[role] for role in ROLES["name"] if role in cast}
    mistakes = []
    for position, word, part in slots:
        if isinstance(part, str):  # a sentence of this skeleton has this word
            continue
        right = fill(part, cast) if part.role in cast else ""
        if not right and part.form in ROLES:  # no sentence says a value of the role's own
            message = f"{word} should be one of {', '.join(VALUES[part.role])} ({part.form})"
            mistakes.append(Mistake(part.form, position, 1, message))
        elif right and word != right:
            kind = "possession" if part.owner and word in people else part.form
            kind = "pronoun" if kind in PRONOUNS else "article" if kind in ARTICLES else kind
            mistakes.append(Mistake(kind, position, 1, f"{word} should be {right} ({kind})"))
    return mistakes


def sentence_mistakes(sentences, matched, length, known):
    """Sentences that no right text has, or not here, and what is missing of `length` sentences.
    matched: the numbers of the sentences that belong; known: the skeletons of all."""
    mistakes = []
    for i, (start, words, key) in enumerate(sentences):
        if i in matched:
            continue
        message = "this does not belong here" if key in known else "no right text has this sentence"
        kind = "event" if key in known else "sentence"
        mistakes.append(Mistake(kind, start, len(words), f"{message}: {join_words(words)}"))
    end = sum(len(words) for _, words, _ in sentences)
    missing = length - len(sentences)
    return mistakes + [Mistake("sentence", end, 0, "the text is not complete")] * missing


# ------------------------------------------------------------------------------------------------
# probability


def log_casts():
    """ln of the number of casts, each as likely."""
    return sum(math.log(len(values)) for values in VALUES.values())


def log_templates(plot):
    """ln of the number of ways to tell a plot, each as likely."""
    return sum(math.log(len(templates)) for _, templates in scenes_of(plot))


def log_probability(text):
    """ln P(text) in nats; -inf if it is no right story."""
    reading = parse(text)
    if reading.mistakes:
        return -math.inf
    return -math.log(len(PLOTS)) - log_casts() - log_templates(reading.plot)


def entropy():
    """The entropy of a story, in nats: -log_probability, on average over the plots."""
    return math.log(len(PLOTS)) + log_casts() + sum(map(log_templates, PLOTS)) / len(PLOTS)


# ------------------------------------------------------------------------------------------------
# variety


def facts(reading):
    """{name: value} of a right story, all drawn independently of one another: its cast, its plot,
    and the form of each sentence, "form 1" to "form 10"."""
    forms = {f"form {i + 1}": form for i, form in enumerate(reading.forms)}
    return reading.cast | {"plot": reading.plot} | forms


def bits(values):
    """The entropy of a list of values, bits."""
    counts = Counter(values)
    return -sum(n / counts.total() * math.log2(n / counts.total()) for n in counts.values())


def entropies(stories):
    """{name: bits} of a list of facts: of every slot and the plot ("cx"), every pair of them
    ("cx+cy") and every sentence's form ("form 3").

    Pairs see what single slots cannot: two colours that are always the same have, each by itself,
    the entropy of all colours.
    """
    slots = [*VALUES, "plot"]
    found = {name: bits(story[name] for story in stories) for name in stories[0]}
    return found | {f"{a}+{b}": bits((story[a], story[b]) for story in stories)
                    for a, b in combinations(slots, 2)}


@cache
def expected_entropies(n, repeats=10):
    """The entropies of n stories of the grammar, a mean over `repeats` times n. Few stories have
    less than very many."""
    rng = random.Random(0)
    drawn = []
    for _ in range(repeats):
        stories = []
        for _ in range(n):
            plot, cast, templates = draw_story(rng)
            forms = [skeleton(template) for template in templates]
            stories.append(facts(Reading(plot, cast, [], forms)))
        drawn.append(entropies(stories))
    return {name: sum(one[name] for one in drawn) / repeats for name in drawn[0]}


def variety(readings):
    """{name: share}: the entropies of the right ones of these Readings, as shares of those of as
    many stories of the grammar. {} for fewer than two. The lowest of the 65 shares is 0.96 in the
    mean for 64 true stories, 0.98 for 256 and 0.995 for 1,024."""
    right = [facts(reading) for reading in readings if not reading.mistakes]
    if len(right) < 2:
        return {}
    expected = expected_entropies(len(right))
    return {name: found / expected[name] for name, found in entropies(right).items()}

"""Books: the first day of a story (stories.py) again and again, for 1,024 tokens.

    Mia had a red ball. [...] One evening Mia went to the barn. At the barn she met Tom. Mia gave
    the red ball to Tom, and he was glad. That night the ball was in the house of Tom. [...] In the
    end Tom had the red ball.

Two people, four things, each with its colour, and four places come back day after day. The day's
thing is with whoever has it by then, and the end says who has what. Some things come back every
other day, some after eight, so a word may have to agree with one that was said hundreds of tokens
before: facts are counted by that distance.

    make_book(rng)          draws a book
    read(text)              its facts, each right or wrong, and its mistakes

Before: stories.py, whose templates these are. Read next: experiments/books.py.
"""

from collections import Counter
from functools import cache
from typing import NamedTuple

from data import stories
from data.stories import (
    ARTICLES, FIRST_DAYS, PRONOUNS, Mistake, Slot, align, expand, fill, parse_template, pick,
    sentence_mistakes, skeleton, split_sentences,
)
from data.tokenizer import describe_words, join_words, split_words

# ------------------------------------------------------------------------------------------------
# the world

NOUN = "book"  # what a text is called
LENGTH = 1024  # tokens of a book, with its padding
DAYS = 24
OTHER = {"A": "B", "B": "A"}  # the two people
THINGS = "zwxy"  # in the order of the beginning and the end
VALUES = {  # of the roles. Every word belongs to one of them, so that a word says whose it is
    **{role: stories.VALUES[role] for role in "ABxypq"},
    "z": "bottle bucket candle coin cup fan jar key map pencil ring spoon".split(),
    "w": "card chair clock cloak comb feather fork glove ladder mirror pin quilt".split(),
    "cx": "black blue brown golden green orange purple red silver yellow".split(),
    "cy": "amber azure beige bronze copper crimson ebony grey olive pink".split(),
    "cz": "apricot cherry coral emerald honey indigo ivory lemon scarlet white".split(),
    "cw": "chestnut cream jade lilac maroon mint ochre rusty teal violet".split(),
    "r": "attic church hall inn island kitchen library school stable theatre".split(),
    "s": "bakery canyon desert fountain glacier museum palace station tavern valley".split(),
}
ROLE_OF = {word: role for role, words in VALUES.items() for word in words}
KIND_OF = {"A": "name", "B": "name", "c": "colour"}
KIND_OF |= dict.fromkeys(THINGS, "thing") | dict.fromkeys("pqrs", "place")
KIND_OF_FORM = dict.fromkeys(PRONOUNS, "pronoun") | dict.fromkeys(ARTICLES, "article")
CLASSES = stories.CLASSES | {word: KIND_OF[role[0]] for word, role in ROLE_OF.items()}

# In the sentences "go" and "meet" {A} goes to the place {p}, where {B} is: every day the same two.
# In the others {A} is who has the thing {x}, of colour {cx}, and {B} the other one. {i} is {A}, and
# {h} who has the thing at night.
SCENES = {name: stories.SCENES[name] for name in ("begin", "meet", *FIRST_DAYS, "night")} | {
    "go": ["One (morning|evening) {A} went to the {p}.",
           "{A} walked to the {p} one (morning|evening)."],
    "end": ["In the end {i} had the {cx} {x}.", "So {i} kept the {cx} {x}."],
}
EVENTS = list(FIRST_DAYS)
# (scenes, thing, place) of each day; before the first one and after the last, of each thing
PLAN = [(["begin"], x, "") for x in THINGS]
PLAN += [(["go", "meet", "event", "night"], "xyxzxyxw"[day % 8], "ppqqrrss"[day % 8])
         for day in range(DAYS)]
PLAN += [(["end"], x, "") for x in THINGS]
SENTENCES = [(name, day) for day, (names, _, _) in enumerate(PLAN) for name in names]
UNREAD = 4  # facts of an average sentence: so many are wrong where one cannot be read


@cache
def templates():
    """{scene: [template]}; the role of {h} is called C, that of {i} A."""
    roles = {"h": "C", "i": "A"}
    return {name: [parse_template(line, roles) for choices in lines for line in expand(choices)]
            for name, lines in SCENES.items()}


@cache
def by_skeleton():
    """{skeleton of a sentence: (its scene, its template)}."""
    return {skeleton(parts, CLASSES): (name, parts)
            for name, choices in templates().items() for parts in choices}


@cache
def vocabulary():
    """All words and marks of all books, a set."""
    words = {word for forms in (PRONOUNS | ARTICLES).values() for word in forms} | set(ROLE_OF)
    parts = [part for choices in templates().values() for template in choices for part in template]
    return words | {part for part in parts if isinstance(part, str)}


def can_check(tokenizer):
    """Whether the texts of this tokenizer are books."""
    return tokenizer.description == describe_words(vocabulary())


def roles_of(name, day, a, h):
    """{role in the templates: role in the book} of a sentence of a day, on which a has the thing,
    and h at night."""
    _, x, p = PLAN[day]
    a = "A" if name in ("go", "meet") else a
    return {"A": a, "B": OTHER[a], "C": h, "x": x, "cx": f"c{x}", "p": p}


def night_owner(event, a):
    """Who has the thing after a day that a began with it."""
    return a if FIRST_DAYS[event][0] == "A" else OTHER[a]


# ------------------------------------------------------------------------------------------------
# the generator


def draw_book(rng):
    """(cast, [(scene, roles)]), drawn with rng, a random.Random."""
    cast = {role: pick(rng, values) for role, values in VALUES.items()}
    owner = {x: pick(rng, list(OTHER)) for x in THINGS}
    scenes = []
    for day, (names, x, _) in enumerate(PLAN):
        a, event = owner[x], None
        if "event" in names:
            event = pick(rng, EVENTS)
            owner[x] = night_owner(event, a)
        scenes += [(event if name == "event" else name, roles_of(name, day, a, owner[x]))
                   for name in names]
    return cast, scenes


def make_book(rng):
    """A right book, a str, drawn with rng, a random.Random."""
    cast, scenes = draw_book(rng)
    words = []
    for name, roles in scenes:
        values = {variable: cast.get(role) for variable, role in roles.items()}
        words += [fill(part, values) for part in pick(rng, templates()[name])]
    return join_words(words)


# ------------------------------------------------------------------------------------------------
# the reader


class Fact(NamedTuple):
    """A word that must agree with another."""

    kind: str  # name, possession, pronoun, article, thing, colour or place
    position: int  # in split_words(text)
    distance: int  # words since that was said last; 0 where it is said for the first time
    word: str
    right: str  # what it should be; "" if nothing says it


class Reading(NamedTuple):
    """A text, read as a book."""

    cast: dict  # {role: value}, where the text says it
    facts: list
    mistakes: list  # wrong facts and wrong sentences, as Mistake, in their order
    wrong: int  # facts that are wrong, UNREAD for each wrong sentence


def check(text):
    """The mistakes of a text, a list of Mistake, in their order; [] if it is a right book."""
    return read(text).mistakes


def read(text):
    """Reads a text as the book that it is most like: with as many sentences as possible in the
    order of SENTENCES. A Reading. A role has the value of its own that most of them say."""
    sentences = split_sentences(split_words(text), CLASSES)
    found = [by_skeleton().get(key, ("", ())) for _, _, key in sentences]
    names = [{"event" if name in EVENTS else name} for name, _ in found]
    pairs = align(names, [name for name, _ in SENTENCES])
    days, votes = {}, Counter()
    for i, j in pairs:
        (start, words, _), (name, parts) = sentences[i], found[i]
        slots = [(name, start + n, word, part)
                 for n, (word, part) in enumerate(zip(words, parts)) if isinstance(part, Slot)]
        days.setdefault(SENTENCES[j][1], []).extend(slots)
        votes.update(word for _, _, word, _ in slots if word in ROLE_OF)
    cast = {}
    for word, _ in votes.most_common():
        cast.setdefault(ROLE_OF[word], word)
    facts, owner, said = [], {}, {}
    for day in sorted(days):
        facts += facts_of(day, days[day], cast, owner, said)
    mistakes = [Mistake(fact.kind, fact.position, 1, f"{fact.word} should be "
                        f"{fact.right or 'another word'} ({fact.kind})")
                for fact in facts if fact.word != fact.right]
    broken = sentence_mistakes(sentences, {i for i, _ in pairs}, len(SENTENCES), by_skeleton())
    wrong = len(mistakes) + UNREAD * len(broken)
    mistakes = sorted(mistakes + broken, key=lambda mistake: mistake.position)
    return Reading(cast, facts, mistakes, wrong)


def facts_of(day, slots, cast, owner, said):
    """The facts of a day, a list, from its slots: (scene, position, word, part of the template).

    owner: {thing: who has it by now}, and said: {role, or ("owner", thing): its last position};
    both are brought up to date. Who has the thing during the day is what most of its words say;
    that it is whoever has it by now is a fact of the first of them alone.
    """
    x, who = PLAN[day][1], Counter()
    for name, _, word, part in slots:
        if part.form == "name" and name not in ("go", "meet", "night") and word in ROLE_OF:
            who[ROLE_OF[word] if part.role == "A" else OTHER[ROLE_OF[word]]] += 1
    before = owner.get(x)
    a = who.most_common(1)[0][0] if who else before or "A"
    event = next((name for name, *_ in slots if name in EVENTS), None)
    h = night_owner(event, a) if event else before or a
    facts, told = [], False
    for name, position, word, part in slots:
        role, kind = roles_of(name, day, a, h)[part.role], KIND_OF_FORM.get(part.form, part.form)
        owns = kind == "name" and name not in ("go", "meet") and not (told and name in EVENTS)
        if owns and before and name != "night":
            by_now = before if part.role == "A" else OTHER[before]
            role = role if ROLE_OF.get(word) == by_now else by_now
        told = told or owns
        right = fill(part, {part.role: cast[role]}) if role in cast else ""
        key = ("owner", x) if owns else role
        facts.append(Fact("possession" if owns else kind, position,
                          position - said.get(key, position), word, right))
        if kind not in ("pronoun", "article"):
            said[key] = said[role] = position
        if owns and name in ("begin", "night"):
            owner[x] = ROLE_OF.get(word, role)
    return facts

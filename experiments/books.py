"""Does a text of 1,024 tokens agree with itself? Wrong facts of a book (data/books.py) against the
number of steps, and against the distance to what a word must agree with.

    python experiments/books.py --out out-books       OUT/books.json, OUT/books.png

The rungs are the DFM by the sampler of Meta's library; by flow.jump; and by renoise
(extras/samplers.py), as all that follow: a DFM trained as long as DFM and FS-DFM together, where it
has been put as OUT/longer.pt, and the students. A book has about 322 facts. Of a sentence that
cannot be read, all are wrong. ± is one standard error over books. Variety is the entropy of every
slot, and of every pair of slots, as a share of that of as many true books; the lowest.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # model.py is there

from config.command import parser_of, pick_device, stop  # before torch

import json
import os
import random
from itertools import combinations
from statistics import mean, stdev

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from tqdm import tqdm

from data import books
from data.stories import bits, pick
from eval import draw_texts, wilson
from extras.samplers import euler, renoise
from flow import generate
from sample import load_model

RUNGS = {  # name: network, sampler, colour, marker
    "DFM, Meta's sampler": ("dfm", euler, "#806000", "v"),
    "DFM, by the jump": ("dfm", generate, "#cc79a7", "x"),
    "DFM": ("dfm", renoise, "#0072b2", "o"),
    "DFM, trained as long": ("longer", renoise, "#56b4e9", "^"),
    "FS-DFM": ("fsdfm", renoise, "#d55e00", "s"),
    "distribution matching": ("dmd", renoise, "#009e73", "D"),
}
FARTHEST = [16, 64, 256, 1024]  # of each group of distances, in words


def entropies(casts):
    """{slots: bits} of every slot and every pair of slots, of a list of casts."""
    singles = {role: bits(cast.get(role) for cast in casts) for role in books.VALUES}
    return singles | {f"{a}+{b}": bits((cast.get(a), cast.get(b)) for cast in casts)
                      for a, b in combinations(books.VALUES, 2)}


def variety(casts):
    """The lowest share, and of which slots: (float, str)."""
    rng, found = random.Random(0), entropies(casts)
    drawn = [entropies([{role: pick(rng, values) for role, values in books.VALUES.items()}
                        for _ in casts]) for _ in range(10)]
    shares = {name: found[name] / max(1e-9, mean(one[name] for one in drawn)) for name in found}
    name = min(shares, key=shares.get)
    return shares[name], name


def measure(texts):
    """What is wrong with books, a dict: facts a book by kind, and by distance as shares."""
    readings = [books.read(text) for text in texts]
    counts = [reading.wrong for reading in readings]
    facts = [fact for reading in readings for fact in reading.facts]
    wrong = [fact for fact in facts if fact.word != fact.right]
    row = {"texts": len(texts), "wrong": mean(counts), "right_books": counts.count(0) / len(texts)}
    row["wrong_error"] = stdev(counts) / len(counts) ** 0.5 if len(counts) > 1 else 0.0
    row["right_low"], row["right_high"] = wilson(counts.count(0), len(counts))
    row["kinds"] = {kind: sum(fact.kind == kind for fact in wrong) / len(texts)
                    for kind in ("possession", "name", "pronoun", "article", "thing", "colour",
                                 "place")}
    row["sentences"] = (sum(counts) - len(wrong)) / books.UNREAD / len(texts)
    row["by_distance"] = {}
    for nearest, farthest in zip([0, *FARTHEST], FARTHEST):
        group = [fact for fact in facts if nearest < fact.distance <= farthest]
        row["by_distance"][farthest] = [sum(f.word != f.right for f in group), len(group)]
    row["variety"] = variety([reading.cast for reading in readings])
    return row


def table(rows):
    """A line a row, at most 100 columns."""
    lines = [f"{'':21}{'steps':>6}{'wrong facts':>15}{'right books':>17}{'variety':>13}"
             + "".join(f"{f'to {n}':>8}" for n in FARTHEST)]
    for row in rows:
        wrong = f"{row['wrong']:.1f} ± {row['wrong_error']:.1f}"
        right = f"{row['right_books']:.2f} {row['right_low']:.2f}-{row['right_high']:.2f}"
        share, name = row["variety"]
        line = f"{row['rung']:21}{row['steps']:>6}{wrong:>15}{right:>17}{share:>7.2f} {name:5}"
        lines.append(line + "".join(f"{bad / max(1, n):>8.2%}"
                                    for bad, n in row["by_distance"].values()))
    return "\n".join(lines)


def draw(rows):
    """Left wrong facts against steps; right, in 8 and in 1,024 steps, what is wrong by distance."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 5), layout="constrained")
    for name, (_, _, colour, marker) in RUNGS.items():
        own = sorted((row for row in rows if row["rung"] == name), key=lambda row: row["steps"])
        if not own:
            continue
        left.errorbar([row["steps"] for row in own], [row["wrong"] for row in own],
                      [row["wrong_error"] for row in own], color=colour, marker=marker, label=name)
        for row in {row["steps"]: row for row in own if row["steps"] in (8, 1024)}.values():
            shares = [bad / max(1, n) for bad, n in row["by_distance"].values()]
            right.plot(FARTHEST, shares, "-" if row["steps"] == 8 else ":", color=colour,
                       marker=marker)
    left.set(xscale="log", ylim=(0, None), xlabel="steps", title="wrong facts of a book",
             ylabel="wrong facts (lower is better)")
    left.set_xticks(ticks := sorted({row["steps"] for row in rows}), [f"{n:,}" for n in ticks])
    right.set(xscale="log", xlabel="words since it was said, at most", ylabel="share that is wrong",
              title="does a word agree with what was said before?\n8 steps, dotted: 1,024",
              ylim=(0, None))
    right.set_xticks(FARTHEST, [f"{n:,}" for n in FARTHEST])
    left.legend()
    for axis in (left, right):
        axis.minorticks_off()
    return figure


def main():
    parser = parser_of(__doc__)
    add = parser.add_argument
    add("--rungs", nargs="+", choices=RUNGS, metavar="RUNG", help="(default: all there are)")
    add("--steps", type=int, nargs="+", default=[8, 16, 32, 64], help="(default: 8 16 32 64)")
    add("--num-samples", type=int, default=32, help="books of each number (default: 32)")
    add("--seed", type=int, default=1, help="(default: 1)")
    add("--out", default="out-books", help="folder of the checkpoints (default: out-books)")
    add("--device", help="cpu, cuda or cuda:N (default: a GPU if there is one)")
    arguments = parser.parse_args()
    device, n = pick_device(arguments.device), arguments.num_samples
    path = os.path.join(arguments.out, "books.json")  # rows that are measured again are replaced
    rows = json.load(open(path)) if os.path.exists(path) else []
    jobs = []
    for name in arguments.rungs or RUNGS:
        checkpoint = os.path.join(arguments.out, f"{RUNGS[name][0]}.pt")
        if arguments.rungs or os.path.exists(checkpoint):
            jobs += [(name, checkpoint, steps) for steps in arguments.steps]
    if not jobs:
        stop(f"there is no dfm.pt in {arguments.out}: train it, `python train.py dfm "
             "config/books.py`")
    bar = tqdm(total=n * sum(steps for *_, steps in jobs), unit="step", unit_scale=True)
    for name, checkpoint, steps in jobs:
        model, tokenizer = load_model(checkpoint, device)
        if not books.can_check(tokenizer):
            stop(f"facts are counted of books, and {checkpoint} was trained on another text")
        x, seconds = draw_texts(model, n, steps, RUNGS[name][1], 1.0, arguments.seed, bar.update)
        row = {"rung": name, "steps": steps, "seconds": seconds}
        rows = [old for old in rows if (old["rung"], old["steps"]) != (name, steps)]
        rows.append(row | measure([tokenizer.decode(ids) for ids in x.tolist()]))
        with open(f"{path}.new", "w") as file:
            json.dump(rows, file, indent=1)
        os.replace(f"{path}.new", path)
    bar.close()
    print(table(rows))
    draw(rows).savefig(os.path.join(arguments.out, "books.png"), dpi=110)


if __name__ == "__main__":
    main()

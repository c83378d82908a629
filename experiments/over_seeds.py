"""What runs of several seeds have in common: right stories, mean and range, and the student's gain.

    for seed in 2 3 4; do bash speedrun.sh --seed $seed; done
    python experiments/over_seeds.py out-seed2 out-seed3 out-seed4

Two runs of one recipe differ by more than the standard error of one run says, so a recipe is
judged by several seeds, none of which was used to choose a setting. Reads OUT/eval.json of eval.py.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # config is there

from config.command import parser_of, stop

import json
from statistics import mean, stdev


def shares(folder):
    """{(model, steps): right}, at temperature 1."""
    path = Path(folder) / "eval.json"
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    if not any("right" in row for row in rows):
        stop(f"{path} has no right stories: it is written by `python eval.py --out {folder}`")
    return {(row["model"], row["steps"]): row["right"] for row in rows if row["temperature"] == 1}


def summary(values):
    """Mean ± standard error over runs, and the range: 0.812 ± 0.014 (0.77 to 0.86)."""
    error = f" ± {stdev(values) / len(values) ** 0.5:.3f}" if len(values) > 1 else ""
    return f"{mean(values):.3f}{error} ({min(values):.2f} to {max(values):.2f})"


def main():
    parser = parser_of(__doc__)
    parser.add_argument("folders", nargs="+", help="of eval.json, one a seed")
    runs = [shares(folder) for folder in parser.parse_args().folders]
    print(f"right stories, {len(runs)} runs: mean ± standard error over runs (lowest to highest)")
    print(f"{'steps':>6}{'DFM':>31}{'FS-DFM':>31}{'gain':>31}")
    steps = [n for model, n in runs[0] if model == "dfm" and all(("dfm", n) in run for run in runs)]
    for n in steps:
        dfm = [run["dfm", n] for run in runs]
        line = f"{n:>6}{summary(dfm):>31}"
        if all(("fsdfm", n) in run for run in runs):
            student = [run["fsdfm", n] for run in runs]
            line += f"{summary(student):>31}"
            line += f"{summary([b - a for a, b in zip(dfm, student)]):>31}"
        print(line)


if __name__ == "__main__":
    main()

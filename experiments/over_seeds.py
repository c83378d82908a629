"""What runs of several seeds have in common: right stories, mean and range, and the student's gain.

    for seed in 2 3 4; do bash speedrun.sh --seed $seed; done
    python experiments/over_seeds.py out-seed2 out-seed3 out-seed4

Two runs of one recipe differ by more than the standard error of one run says, so a recipe is
judged by several seeds, none of which was used to choose a setting. Reads OUT/eval.json of eval.py.
"""

import argparse
import json
from pathlib import Path
from statistics import mean, stdev


def shares(folder):
    """{(model, steps): right}, at temperature 1."""
    rows = json.loads((Path(folder) / "eval.json").read_text())["rows"]
    return {(row["model"], row["steps"]): row["right"] for row in rows if row["temperature"] == 1}


def summary(values):
    """Mean ± standard error over runs, and the range: 0.812 ± 0.014 (0.77 to 0.86)."""
    error = f" ± {stdev(values) / len(values) ** 0.5:.3f}" if len(values) > 1 else ""
    return f"{mean(values):.3f}{error} ({min(values):.2f} to {max(values):.2f})"


def main():
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
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

"""The flags of sample.py that show a race, and what they do.

    --race     on the terminal (race.py)
    --html     a page for a browser (page.py); with --live the network runs in it
    --gif      a moving picture (picture.py)

All three show the same runs (run.py). The modules are imported when they are asked for: `sample.py`
alone starts faster without them.
"""

import os
import shlex
import sys
from pathlib import Path

from tqdm import tqdm

from common.checkpoint import LABELS, find_network, load_model, versions
from common.command import UserError, number
from common.device import pick_device

RUNNERS = ["dfm:1024", "fsdfm:8", "dfm:8"]
PACE = 0.5  # seconds of a step of the fastest runner
WATCH_SECONDS = 8  # that --watch shows a run for, at most, unless --pace says so
ONLY_ALONE = (  # flags of sample.py that have no meaning for a race
    "model", "checkpoint", "n_head", "steps", "num_samples", "prompt", "infill", "check",
    "watch", "json", "compile",
)


def add_show_flags(parser):
    group = parser.add_argument_group("the race: several runs of the same noise")
    add = group.add_argument
    add("--race", nargs="*", metavar="MODEL:STEPS",
        help=f"side by side on the terminal (default: {' '.join(RUNNERS)})")
    add("--html", type=Path, metavar="FILE", help="the race as a page for a browser")
    add("--live", action="store_true",
        help="with --html: the first student's weights are in the page, and it writes there")
    add("--gif", type=Path, metavar="FILE", help="the race as a moving picture")
    add("--pace", type=number(float, 0, 60), metavar="X",
        help="of --race: seconds in which a step of the fastest runner is shown; of --watch: the "
             f"least for each step; 0 is the true speed (default: {PACE}, and of many steps "
             f"less, so that they take {WATCH_SECONDS} s; where there is no terminal 0)")


def pace_of(arguments, steps):
    """Seconds that --watch shows each of so many steps for, at least."""
    if arguments.pace is not None:
        return arguments.pace
    return min(PACE, WATCH_SECONDS / steps) if sys.stdout.isatty() else 0


def is_asked_for(arguments):
    return arguments.race is not None or bool(arguments.html or arguments.gif)


def must_fit_together(arguments, parser):
    """UserError for flags that a race would ignore."""
    if arguments.live and not arguments.html:
        raise UserError("--live is a part of the page: name its file with --html")
    if arguments.pace is not None and arguments.race is None and not arguments.watch:
        raise UserError("--pace is for --race and --watch: leave it out, or add one of them")
    if not is_asked_for(arguments):
        return
    for name in ONLY_ALONE:
        if getattr(arguments, name) != parser.get_default(name):
            raise UserError(
                f"--{name.replace('_', '-')} has no meaning for a race: leave it out, or name "
                "runners, such as --race dfm:1024 fsdfm:8"
            )
    for path in filter(None, (arguments.html, arguments.gif)):
        folder = path.parent
        if path.is_dir() or not os.access(folder, os.W_OK):
            raise UserError(f"{path} cannot be written: name a file in a folder of yours")


def record_all(arguments, sampler):
    """The runs that were asked for, {model: network}, and their tokenizer."""
    from show.run import parse_runner, record

    runners = [parse_runner(text) for text in arguments.race or RUNNERS]
    device = pick_device(arguments.device)
    networks, tokenizer = {}, None
    for model, _ in runners:
        if model in networks:
            continue
        path = find_network(arguments.out, model)
        networks[model], own = load_model(path, device)
        if tokenizer and own.description != tokenizer.description:
            raise UserError(f"{path} has other tokens than the runners before it")
        tokenizer = own
    masked = any(network.config.source == "mask" for network in networks.values())
    if arguments.live and (masked or sampler.leave_one_out):
        raise UserError("--live writes with the uniform source and the ordinary temperature alone")
    judge, judge_path = None, find_network(arguments.out, "judge")
    if versions(judge_path):
        judge, own = load_model(judge_path, device)
        if own.description != tokenizer.description:
            judge = None
    length = arguments.length or max(network.config.block_size for network in networks.values())
    runs = []
    with tqdm(total=sum(n for _, n in runners), desc="running", unit="step", leave=False) as bar:
        for model, steps in runners:
            runs.append(record(
                model, networks[model], tokenizer, steps, arguments.seed, length, sampler, judge,
                probabilities=bool(arguments.html), on_step=bar.update,
            ))
    return runs, networks, tokenizer


def run_show(arguments, sampler):
    """Records the runs, and shows them in every way that was asked for."""
    runs, networks, tokenizer = record_all(arguments, sampler)
    config = next(iter(networks.values())).config
    if arguments.html:
        from show.page import page_data, write_page

        students = [run.model for run in runs if run.model != "dfm"]
        name = (students or [runs[0].model])[0]
        live = networks[name] if arguments.live else None
        command = f"python sample.py {shlex.join(sys.argv[1:])}"
        data = page_data(runs, tokenizer, command, live, LABELS[name])
        write_page(arguments.html, data)
        print(f"{arguments.html}: open it in a browser")
    if arguments.gif:
        from show.picture import write_gif

        write_gif(arguments.gif, runs, tokenizer, config.mask_id)
        print(arguments.gif)
    if arguments.race is not None:
        from show.race import race

        pace = PACE if arguments.pace is None else arguments.pace
        race(runs, tokenizer, config.mask_id, pace)

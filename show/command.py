"""The race: several runs of the same noise, shown in three ways.

    python sample.py --race                  on the terminal (race.py)
    python sample.py --html FILE --live      a page for a browser (page.py)
    python sample.py --gif FILE              a moving picture (picture.py)

All three show the same runs (run.py). Runners are named as MODEL:STEPS, as in
`--race dfm:256 dmd:8`, with or without --html and --gif.
"""

from config.command import parser_of, pick_device, stop  # before torch

import os
import shlex
import sys

from tqdm import tqdm

from extras.samplers import renoise
from flow import generate
from sample import WEIGHTS, find_network, load_model, spare_threads
from show.race import on_terminal, print_end, show_race
from show.run import LABELS, count_right, record


def parse_arguments():
    parser = parser_of(__doc__, prog="sample.py")
    add = parser.add_argument
    add("--race", nargs="*", metavar="MODEL:STEPS",
        help="the runners, side by side on the terminal (default: dfm:1024 dfm:4 dmd:4; of 100 "
        "seeds 65 show the student right and the hurried teacher wrong, 6 the reverse; of 64 "
        "stories the student has more right ones with each)")
    add("--html", metavar="FILE", help="the race as a page for a browser")
    add("--live", action="store_true",
        help="the DFM and the first student write in the page: it has their weights")
    add("--gif", metavar="FILE", help="the race as a moving picture")
    add("--seed", type=int, default=1, help="of the noise (default: 1)")
    add("--out", default="out", help="folder of the checkpoints (default: out)")
    add("--device", help="cpu, cuda or cuda:N (default: a GPU if there is one)")
    arguments = parser.parse_args()
    if arguments.live and not arguments.html:
        stop("--live is a part of the page: name its file with --html")
    for path in filter(None, (arguments.html, arguments.gif)):
        if os.path.isdir(path) or not os.path.isdir(os.path.dirname(path) or "."):
            stop(f"{path} cannot be written: name a file in a folder that is there")
    return arguments


def parse_runner(text):
    """"dfm:1024" -> ("dfm", 1024). stop() if it is neither."""
    name, _, steps = text.partition(":")
    if name not in LABELS or not steps.isdecimal() or not 1 <= int(steps) <= 4096:
        stop(f"{text} is no runner: write MODEL:STEPS, such as dfm:1024, with "
             f"{', '.join(LABELS)} and 1 to 4,096 steps")
    return name, int(steps)


def default_race(out):
    """(runners, folder): the contrast that is seen best, among networks of one folder. It is
    weights/ while the default one has no student. FS-DFM as the student is right where the teacher
    in as many steps is wrong with 27 of 100 seeds, and the reverse with 10."""
    def students(folder):
        return [n for n in ("dmd", "fsdfm") if os.path.exists(os.path.join(folder, f"{n}.pt"))]

    if os.path.normpath(out) == "out" and not students(out):
        out = WEIGHTS
    return ["dfm:1024", "dfm:4", f"{[*students(out), 'fsdfm'][0]}:4"], out


def load_networks(names, out, device):
    """({name: network}, the tokenizer of all, their files)."""
    paths = {name: find_network(out, name) for name in names}
    networks, tokenizer = {}, None
    for name, path in paths.items():
        networks[name], own = load_model(path, device)
        if networks[name].sampler not in (generate, renoise):
            stop(f"{path} writes in another way than by jumps or renoise: it cannot race")
        first = networks[names[0]]
        if tokenizer and (own.description != tokenizer.description
                          or first.config.block_size != networks[name].config.block_size):
            stop(f"{path} has other tokens than {paths[names[0]]}, or not as many: "
                 "name runners that have the same")
        tokenizer = own
        spare_threads(networks[name])
    files = ", ".join(map(os.path.relpath, paths.values()))
    print("networks:", files)
    return networks, tokenizer, files


def main():
    """Records the runs, and shows them in every way that was asked for."""
    arguments = parse_arguments()
    terminal = arguments.race is not None and on_terminal()
    texts, out = arguments.race, arguments.out
    if not texts:
        texts, out = default_race(out)
    runners = [parse_runner(text) for text in texts]
    names = [name for name, _ in runners]
    student = next((name for name in names if name != "dfm"), "fsdfm")
    if arguments.live:
        names += ["dfm", student]
    networks, tokenizer, files = load_networks(names, out, pick_device(arguments.device))

    def run(runner, seed, on_step=lambda run: None):
        name, steps = runner
        return record(name, networks[name], tokenizer, steps, seed, on_step)

    def count(runs, seed):
        return count_right(runs, networks, tokenizer, seed)

    runs = []
    if arguments.html or arguments.gif or not terminal:
        total = sum(steps for _, steps in runners)
        with tqdm(total=total, desc="running", unit="step", leave=False) as bar:
            runs = [run(runner, arguments.seed, lambda run: bar.update()) for runner in runners]
        list(count(runs, arguments.seed))
    if arguments.html:
        from show.page import page_data, write_page

        live = {name: networks[name] for name in ("dfm", student)} if arguments.live else None
        command = f"python sample.py {shlex.join(sys.argv[1:])}"
        rules = ", ".join(f"{name} by {'jump' if network.sampler is generate else 'renoise'}"
                          for name, network in networks.items())
        command += f" (seed {arguments.seed}; {files}; {rules})"
        write_page(arguments.html, page_data(runs, tokenizer, command), live)
        print(f"{arguments.html}: open it in a browser")
    if arguments.gif:
        from show.picture import write_gif

        write_gif(arguments.gif, runs, tokenizer)
        print(arguments.gif)
    if terminal:
        runs = show_race(runners, run, count, tokenizer, arguments.seed)
    if arguments.race is not None:
        print_end(runs, tokenizer, terminal)

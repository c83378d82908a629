"""What the commands share: settings from the command line, the device, one-line errors.

Plumbing, to be skipped on a first reading. Importing it (before torch) makes an error that a user
can repair one line instead of a traceback, with exit status 2, and Ctrl-C a quiet end.
"""

import argparse
import ast
import contextlib
import difflib
import errno
import importlib
import math
import os
import re
import sys
import time
import traceback
from pathlib import Path

# Threads that wait for one another spin at first. With fewer spins 30 iterations on two cores that
# other trainings keep busy take 42 s instead of 198 (docs/speed.md), on idle ones 4% more. Read
# when PyTorch is imported.
os.environ.setdefault("GOMP_SPINCOUNT", "20000")

ROOT = Path(__file__).resolve().parent.parent


def stop(message):
    """Ends the command: one line that says what is wrong and what to do, exit status 2."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def explain(kind, error):
    """The line for an error that is expected now and then; None for one that is a bug of ours."""
    text = (str(error).strip() or kind.__name__).splitlines()[0]
    if "Memory" in kind.__name__ or "allocate memory" in text:
        return "there is not enough memory: try a smaller batch_size (or fewer texts), or dim"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES):
        return f"{error.strerror}: {error.filename or 'a file'}; what was there before is as it was"
    if re.search("file write failed|iostream error|inline_container", text):  # of torch.save
        return "a file cannot be written, is the disk full? What was there before is as it was"
    return None


def report(kind, error, trace):
    """sys.excepthook: quiet for Ctrl-C and a closed pipe, one line for what `explain` knows."""
    line = explain(kind, error)
    if kind is KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
    elif kind is not BrokenPipeError and line is None:
        traceback.print_exception(kind, error, trace)
    elif line:
        print(f"error: {line}", file=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # a closed pipe
            stream.flush()
    status = {KeyboardInterrupt: 130, BrokenPipeError: 141}.get(kind, 2 if line else 1)
    os._exit(status)  # sys.exit would lose the status here


if not hasattr(sys, "ps1"):  # at a prompt of Python an error is not the end
    sys.excepthook = report


def parser_of(doc, **options):
    """A parser of arguments whose --help begins with the docstring of the script."""
    form = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(description=doc, formatter_class=form, **options)


# ------------------------------------------------------------------------------------------------
# settings, as in nanoGPT: assignments in a script, overridden by files and by --name=value


def read_settings(settings, stages, default):
    """Overrides the assignments of a script, whose globals() are `settings`, in the order given:

        python train.py STAGE config/gpu.py --seed=2 --resume

    The first argument is one of the `stages`, if there are any. A .py file is run among the others,
    so it may also compute a setting from `stage`, or import a function in the place of another.
    Without one the file `default` is run first. Returns the names of the settings. stop() if there
    is no such stage, file or setting, or if a value is of another type.
    """
    arguments = sys.argv[1:]
    # capitals are constants
    known = [name for name, value in settings.items()
             if isinstance(value, (bool, int, float, str)) and re.match("(?!stage$)[a-z]", name)]
    if {"-h", "--help"} & set(arguments):
        print_help(settings, known)
    if stages:
        settings["stage"] = arguments.pop(0) if arguments else ""
        if settings["stage"] not in stages:
            stop(f"{sys.argv[0]} needs a stage first: {', '.join(stages)} (see --help)")
    if default and not any(argument.endswith(".py") for argument in arguments):
        arguments.insert(0, str(ROOT / default))
    for argument in arguments:
        name, equals, value = argument.removeprefix("--").partition("=")
        name = name.replace("-", "_")
        if not argument.startswith("--"):
            run_file(settings, known, argument)
        elif name not in known:
            stop(f"there is no setting {name}{near(name, known)} (see --help)")
        elif not equals and not isinstance(settings[name], bool):
            stop(f"{argument} needs a value: {argument}=VALUE (see --help)")
        else:
            set_value(settings, name, value if equals else "True")
    return known


def near(name, known):
    """What a misspelt name may have meant."""
    names = difflib.get_close_matches(name, known)
    return f"; did you mean {' or '.join(names)}?" if names else ""


def run_file(settings, known, path):
    if not os.path.isfile(path):
        stop(f"there is no file {path}: settings are FILE.py or --NAME=VALUE (see --help)")
    before = dict(settings)
    exec(compile(Path(path).read_text(), path, "exec"), settings)
    for name, value in settings.items():
        plain = isinstance(value, (bool, int, float, str)) and name[0].islower()
        if name in known:
            settings[name] = of_the_same_type(value, before[name], f"{path}: {name}")
        elif plain and name not in before:
            stop(f"{path} sets {name}, which is no setting{near(name, known)}")


def set_value(settings, name, text):
    old = settings[name]
    try:
        value = text if isinstance(old, str) else ast.literal_eval(text)
    except (SyntaxError, ValueError):
        value = text
    settings[name] = of_the_same_type(value, old, f"--{name}")


def of_the_same_type(value, old, name):
    if isinstance(old, float) and type(value) is int:
        value = float(value)
    if type(value) is not type(old):
        stop(f"{name} takes a value like {old!r}, not {value!r}")
    return value


def print_help(settings, known):
    """The docstring of the script, and the lines in which it assigns its settings."""
    print(settings["__doc__"].strip() + "\n\nSettings, and their values unless a file says so:\n")
    for line in Path(settings["__file__"]).read_text().splitlines():
        if "read_settings(globals()" in line:
            break
        if match := re.match(r"(\w+)(, \w+)* = ", line):
            if match[1] in known:
                print(f"    --{line}")
    sys.exit(0)


# ------------------------------------------------------------------------------------------------
# device


def idle_seconds():
    """Seconds that the machine's cores have been idle, added up (Linux; elsewhere infinite)."""
    try:
        fields = Path("/proc/stat").read_text().split(maxsplit=6)  # cpu, user, nice, system, idle
    except OSError:
        return math.inf
    return (int(fields[4]) + int(fields[5])) / os.sysconf("SC_CLK_TCK")


BEFORE_TORCH = time.monotonic(), time.process_time(), idle_seconds()


def leave_busy_cores():
    """As many threads as cores were free while torch was imported. Threads wait for one another:
    beside two other trainings two take twice as long as one (docs/speed.md)."""
    import torch

    wall, own, idle = BEFORE_TORCH
    free = (idle_seconds() - idle + time.process_time() - own) / (time.monotonic() - wall)
    if free < torch.get_num_threads() - 0.5:
        torch.set_num_threads(max(1, round(free)))


def pick_device(name=None):
    """The torch.device of that name, by default a CUDA GPU if there is one. stop() if it is not
    there. Products of float32 may be in TF32."""
    import torch

    leave_busy_cores()
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    there = ["cpu", "cuda", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if name not in there or (name == "cuda" and len(there) == 2):
        stop(f"this machine has no {name} that PyTorch can use: leave --device out, or say cpu")
    if ":" in name:
        torch.cuda.set_device(name)  # the current GPU is asked for bfloat16, and timed
    torch.set_float32_matmul_precision("high")
    return torch.device(name)


def autocast(device):
    """Matrix products in bfloat16 where the hardware is faster at them, in float16 on older GPUs.
    Weights stay float32. With AMX a training step on a CPU takes 40 ms instead of 104; with the
    bfloat16 products of AVX-512 alone 190 instead of 155, so there it is float32."""
    import torch

    if device.type == "cuda":
        bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.autocast("cuda", torch.bfloat16 if bfloat16 else torch.float16)
    amx = getattr(torch.cpu, "get_capabilities", dict)().get("amx_bf16", False)
    return torch.autocast("cpu", torch.bfloat16, enabled=amx)


def named(text, default):
    """"extras.samplers.euler" -> that function: how a command is given one. stop() if there is
    none."""
    module, _, name = (text or default).rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        stop(f"there is no function {text} ({error}): write MODULE.NAME, such as {default}")

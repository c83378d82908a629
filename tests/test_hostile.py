"""Things that nobody should do to the commands, and that somebody does: each ends in one line that
says what is wrong, with nothing lost. Every case here went wrong once."""

import base64
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import fields

import pytest
import torch

from command import ROOT, TINY, copy_project, error_line, run, run_python
from common.checkpoint import LARGEST, WORDS, check_config
from data.tokenizer import Tokenizer, describe_words
from sample import infill_template
from train import NETWORK, Config

BYTES = [base64.b64encode(bytes([i])).decode() for i in range(256)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = copy_project(tmp_path_factory.mktemp("hostile"))
    run(folder, "data/prepare.py", "pydocs")
    for stage in ("judge", "dfm", "fsdfm"):
        run(folder, "train.py", stage, *TINY, "--iterations", 2)
    run(folder, "eval.py", "--data", "pydocs", "--steps", 1, "--num-samples", 2)
    return folder


# ------------------------------------------------------------------------------------------------
# texts


def test_a_prepared_text_is_not_replaced(trained):
    meta = (trained / "data/pydocs/meta.json").read_bytes()
    (trained / "t.txt").write_text("Another text. " * 400)
    for flags in (["pydocs"], ["pydocs", "--text", "t.txt"]):
        line = error_line(trained, "data/prepare.py", *flags)
        assert "is prepared already, from documentation of Python" in line and "--overwrite" in line
    assert (trained / "data/pydocs/meta.json").read_bytes() == meta
    run(trained, "data/prepare.py", "mine", "--text", "t.txt")
    run(trained, "data/prepare.py", "mine", "--text", "t.txt", "--overwrite")


def test_a_text_that_was_replaced(trained, tmp_path):
    """Networks of the text before say so, also those whose tokens are the same."""
    project = shutil.copytree(trained, tmp_path / "project")
    flags = ["--tokenizer", "char", "--text", "t.txt"]
    short = [*map(str, TINY[TINY.index("--preset") :]), "--data", "mine", "--iterations", 2]
    (project / "t.txt").write_text("Some text to read. " * 400)
    run(project, "data/prepare.py", "mine", *flags, "--overwrite")
    for stage in ("judge", "dfm"):
        run(project, "train.py", stage, *short, "--overwrite")
    for text in ("daer ot txet Some. ", "Entirely new letters: xyz. "):
        (project / "t.txt").write_text(text * 400)
        run(project, "data/prepare.py", "mine", *flags, "--overwrite")
        for line in (["train.py", "judge", *short, "--iterations", 4, "--resume"],
                     ["train.py", "fsdfm", *short, "--overwrite"],
                     ["eval.py", "--data", "mine", "--models", "dfm", "--steps", 1]):
            assert "data/mine has been replaced since" in error_line(project, *line)


HURT_META = {
    "header_bytes": (-2, None, "2"),
    "files": ({}, [], {"train": [], "val": ["val.bin"]}, {"train": ["train.bin"], "val": "val.bin"},
              {"train": ["../x"], "val": ["val.bin"]}),
    "tokens": ({}, {"train": 5, "val": -1}, 7),
    "text_sha256": (None, 3),
    "source": (None, []),
    "vocab_size": (0, "x", 17),
    "row": (0, -1, "x"),
    "tokenizer": (None, {"kind": "none"}, {"kind": "bpe"}, {"kind": "bpe", "tokens": [1]}),
}


@pytest.mark.parametrize("key", HURT_META)
def test_a_damaged_meta_json_names_the_key(trained, key):
    path = trained / "data/pydocs/meta.json"
    before = path.read_text()
    try:
        for value in HURT_META[key]:
            path.write_text(json.dumps(json.loads(before) | {key: value}))
            line = error_line(trained, "train.py", "judge", *TINY, "--out", "elsewhere")
            word = "tokenizer" if key in ("vocab_size", "tokenizer") else key
            assert "damaged" in line and word in line or f"{key} of" in line, (value, line)
    finally:
        path.write_text(before)


def test_a_tokenizer_that_lacks_its_last_token(trained):
    path = trained / "data/pydocs/meta.json"
    before = path.read_text()
    meta = json.loads(before)
    meta["tokenizer"]["tokens"].pop()
    path.write_text(json.dumps(meta))
    try:
        assert "its tokenizer has" in error_line(trained, "train.py", "judge", *TINY, "--out", "x")
    finally:
        path.write_text(before)
    assert base64.b64decode(json.loads(before)["tokenizer"]["tokens"][-1])


# ------------------------------------------------------------------------------------------------
# reports


def hurt(report, change):
    """A copy of a report after change(copy)."""
    copy = json.loads(json.dumps(report))
    change(copy)
    return copy


CHANGES = {
    "perplexity": lambda r: r["rows"][0].pop("perplexity"),
    "steps": lambda r: r["rows"][0].update(steps="8"),
    "row 1": lambda r: r["rows"].insert(0, "a row"),
    "speed": lambda r: r.pop("speed"),
    "entropy": lambda r: r["rows"][0].update(entropy=-1),
    "temperature": lambda r: r["rows"][0].update(temperature=True),
    "model": lambda r: r["rows"][0].update(model="gpt"),
    "real": lambda r: r.update(real=[]),
    "rows": lambda r: r.update(rows={}),
    "key": lambda r: r.pop("key"),
    "seconds": lambda r: r["speed"][0].update(seconds=None),
}


@pytest.mark.parametrize("word", CHANGES)
def test_a_damaged_report_names_the_field(trained, tmp_path, word):
    report = json.loads((trained / "out/eval.json").read_text())
    (tmp_path / "eval.json").write_text(json.dumps(hurt(report, CHANGES[word])))
    line = error_line(trained, "plot.py", "--out", tmp_path)
    assert "damaged" in line and word in line, line
    assert [path.name for path in tmp_path.iterdir()] == ["eval.json"]  # where it was


def test_numbers_that_are_none_in_a_report(trained, tmp_path):
    text = (trained / "out/eval.json").read_text()
    for bad in ("NaN", "Infinity", "[" * 5000):
        (tmp_path / "eval.json").write_text(text.replace('"samples": 2', f'"samples": {bad}'))
        assert "damaged" in error_line(trained, "plot.py", "--out", tmp_path)


def test_eval_leaves_a_damaged_report_where_it_is(trained):
    path = trained / "out/eval.json"
    before = path.read_text()
    path.write_text(json.dumps(hurt(json.loads(before), CHANGES["perplexity"])))
    flags = ["--data", "pydocs", "--steps", 1, "--num-samples", 2]
    assert "perplexity" in error_line(trained, "eval.py", *flags, "--seed", 5)
    assert sorted(trained.glob("out/eval*.json")) == [path]
    path.write_text(before)


# ------------------------------------------------------------------------------------------------
# kinds of files, folders


def test_a_link_stays_a_link(trained, tmp_path):
    """Checkpoints and reports that are links to another folder: the target is written, and the
    checkpoint before it is beside the target."""
    out, disk = tmp_path / "out", tmp_path / "disk"
    out.mkdir()
    disk.mkdir()
    for name in ("judge.pt", "eval.json"):
        (out / name).symlink_to(disk / name)
    run(trained, "train.py", "judge", *TINY, "--iterations", 4, "--validate-every", 2, "--out", out)
    assert (out / "judge.pt").is_symlink() and (disk / "judge.pt").stat().st_size > 1000
    assert (disk / "judge.previous.pt").exists()
    flags = ["--dfm", trained / "out/dfm.pt", "--models", "dfm", "--num-samples", 2, "--steps", 1]
    run(trained, "eval.py", "--data", "pydocs", "--out", out, *flags)
    assert (out / "eval.json").is_symlink() and (disk / "eval.json").exists()
    (disk / "judge.pt").write_bytes(b"damaged")
    assert "using" in run_python(trained, "train.py", "judge", *TINY, "--iterations", 4,
                                 "--validate-every", 2, "--out", out, "--resume").stderr


@pytest.mark.parametrize("name", ["dfm.pt", "judge.pt", "eval.json"])
def test_pipes_and_devices_are_not_read(trained, tmp_path, name):
    os.mkfifo(tmp_path / name)
    command = ["plot.py"] if name == "eval.json" else ["sample.py", "--checkpoint", tmp_path / name]
    flags = ["--out", tmp_path] if name == "eval.json" else []
    assert "not an ordinary file" in error_line(trained, *command, *flags)
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to("/dev/zero")
    assert "not an ordinary file" in error_line(trained, *command, *flags)


def test_another_folder(trained, tmp_path):
    """Data and networks are those of the project, wherever a command is run."""
    here = ["--steps", "1", "--model", "dfm"]
    for folder in (trained, tmp_path):
        result = subprocess.run([sys.executable, trained / "sample.py", *here], cwd=folder,
                                capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
    (trained / "out/fsdfm.pt").rename(trained / "out/away.pt")
    result = subprocess.run([sys.executable, trained / "sample.py"], cwd=tmp_path,
                            capture_output=True, text=True)
    (trained / "out/away.pt").rename(trained / "out/fsdfm.pt")
    assert f"there is no {trained}/out/fsdfm.pt" in result.stderr
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------------
# environment, streams, keys


@pytest.mark.parametrize("variables", [
    {"RANK": "1"}, {"RANK": "abc", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}, {"WORLD_SIZE": "2"},
    {"RANK": "0", "WORLD_SIZE": "0", "LOCAL_RANK": "0"},
    {"RANK": "2", "WORLD_SIZE": "2", "LOCAL_RANK": "0"},
])
def test_half_of_torchruns_variables(trained, tmp_path, variables):
    flags = ["train.py", "judge", *TINY, "--out", tmp_path / "out"]
    result = run_python(trained, *flags, **variables)
    assert result.returncode == 2 and result.stderr.count("\n") == 1
    assert "use torchrun" in result.stderr and not (tmp_path / "out").exists()


def test_a_closed_standard_output(trained):
    command = f"{sys.executable} sample.py --steps 1 >&-"
    result = subprocess.run(["bash", "-c", command], cwd=trained, capture_output=True, text=True)
    assert result.returncode != 0 and "standard output is closed" in result.stderr


def test_a_line_break_in_a_path_is_shown(trained):
    assert "no a\\nb/fsdfm.pt" in error_line(trained, "sample.py", "--out", "a\nb")


@pytest.mark.parametrize("seconds", [0.1, 0.3, 0.6, 1.2])
def test_ctrl_c_while_pytorch_is_imported(trained, seconds):
    """Quiet, with status 130. (Before the first line of the script Python itself is at work.)"""
    process = subprocess.Popen([sys.executable, "sample.py", "--steps", "9999"], cwd=trained,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in errors, errors


# ------------------------------------------------------------------------------------------------
# flags, shell


def test_leading_zeros_of_a_blank():
    tokenizer = Tokenizer(describe_words({"a", "b"}))
    for blank in ("_12_", "_0000012_"):
        assert infill_template(f"a {blank} b", tokenizer).count(-1) == 12


def test_the_shell_commands_and_their_flags():
    def shell(*words):
        return subprocess.run(words, cwd=ROOT, capture_output=True, text=True)

    for script in ("speedrun.sh", "demo.sh", "test.sh"):
        result = shell("sh", script)
        if os.path.realpath("/bin/sh").endswith("bash"):
            continue
        assert result.returncode == 2 and f"bash {script}" in result.stderr
    assert shell("bash", "speedrun.sh", "--help").stdout.startswith("usage: bash speedrun.sh")
    for flags in (["--seed", "2", "extra"], ["--seed"], ["--seed", "x"], ["--seed", "9" * 11]):
        result = shell("bash", "speedrun.sh", *flags)
        assert result.returncode == 2 and result.stderr.startswith("error: usage:")


SYSTEM_PYTHON = """#!/bin/sh
case "$*" in
    *"-m venv"*) rm -rf .venv; mkdir -p .venv/bin; cp good .venv/bin/python ;;
    *) exec {python} "$@" ;;
esac
"""
GOOD = """#!/bin/sh
case "$*" in
    *"-m pip"*) echo "$*" >> installed ;;
    *) exec {python} "$@" ;;
esac
"""
BROKEN = {
    "without packages": '#!/bin/sh\nexec {python} -I -S "$@"\n',
    "a failing Python": "#!/bin/sh\nexit 3\n",
    "another machine's Python": "#!/nowhere/python\n",
}


@pytest.mark.parametrize("kind", BROKEN)
def test_an_environment_that_broke_is_set_up_anew_once(tmp_path, kind):
    """With a `python3` whose environments and packages cost nothing."""
    def script(path, text):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.replace("{python}", sys.executable))
        path.chmod(0o755)

    shutil.copy(ROOT / "requirements.txt", tmp_path)
    script(tmp_path / "bin/python3", SYSTEM_PYTHON)
    script(tmp_path / "good", GOOD)
    script(tmp_path / ".venv/bin/python", BROKEN[kind])
    shutil.copy(ROOT / "requirements.txt", tmp_path / ".venv/installed")
    command = f"set -euo pipefail; source '{ROOT}/common/setup.sh'; command -v python"
    path = {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
    for message in ("setting up .venv", ""):
        result = subprocess.run(["bash", "-c", command], cwd=tmp_path, env=os.environ | path,
                                capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        assert result.stdout.strip().endswith(f"{tmp_path}/.venv/bin/python")
        assert result.stdout.startswith(message or str(tmp_path))
    assert (tmp_path / "installed").read_text().count("-r requirements.txt") == 1


@pytest.mark.parametrize("name, value", [
    ("n_head", 0), ("n_head", 3), ("n_layer", 10**12), ("block_size", 0), ("dim", 7),
    ("dropout", 5.0), ("given_share", -0.5), ("source", "x"), ("update", "x"), ("causal", 1),
])
def test_a_config_that_no_network_has(name, value):
    good = {"vocab_size": 300, "n_head": 4}
    check_config(good)
    with pytest.raises(ValueError, match=name):
        check_config(good | {name: value})


def test_a_config_has_the_ranges_of_the_flags():
    """What train.py can make can be loaded."""
    for item in (item for item in fields(Config) if item.name in (*NETWORK, "dropout")):
        choices, (_, highest) = item.metadata["choices"], item.metadata["range"]
        if choices:
            assert set(choices) == set(WORDS[item.name])
        else:
            assert highest <= LARGEST[item.name]


@pytest.mark.parametrize("key, value, words", [
    ("config", {"n_head": 0}, "n_head of its config is 0"),
    ("tokenizer", {"kind": "bpe", "tokens": BYTES}, "other tokens than its network"),
])
def test_a_checkpoint_that_was_edited(trained, tmp_path, key, value, words):
    checkpoint = torch.load(trained / "out/fsdfm.pt", weights_only=True)
    checkpoint[key] |= value
    torch.save(checkpoint, tmp_path / "edited.pt")
    line = error_line(trained, "sample.py", "--steps", 1, "--checkpoint", tmp_path / "edited.pt")
    assert words in line


def test_no_warning_is_left(trained, tmp_path):
    """With warnings as errors: every file is closed. (torch 2.6 leaves a folder to the exit.)"""
    flags = ["-W", "error", "-W", "ignore:Implicitly cleaning up <TemporaryDirectory"]
    for line in (["train.py", "judge", *map(str, TINY), "--iterations", "2", "--out", tmp_path],
                 ["sample.py", "--steps", "1"]):
        result = subprocess.run([sys.executable, *flags, *line], cwd=trained,
                                capture_output=True, text=True)
        assert result.returncode == 0 and "Warning" not in result.stderr, result.stderr

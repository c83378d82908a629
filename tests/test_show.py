"""Checks what is shown: runs and what happened to each token, the race in a terminal, the page (its
network, sampler and checker in node, the whole in a browser), the picture, weights as int8."""

import contextlib
import html
import json
import os
import pty
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from config.command import autocast
from data.stories import Mistake, check, make_story, vocabulary
from data.tokenizer import Tokenizer, describe_words, join_words, learn_bpe, split_words
from extras.samplers import renoise
from flow import generate
from model import Config, Transformer
from sample import WEIGHTS, load_model, network_of, write
from show.command import default_race, main
from show.page import grammar_data, network_data, page_data, pieces_of, quantize, write_page
from show.race import Clock, paint, pane, picture
from show.run import Run, conclusion, likelier_noise, record, statuses

L = 32
ROOT = Path(__file__).resolve().parent.parent
TOKENIZER = Tokenizer(describe_words(vocabulary()))
V = TOKENIZER.vocab_size


def make_network(sampler=generate, **changes):
    torch.manual_seed(1)
    network = Transformer(Config(V, L, n_layer=2, n_head=2, dim=32, cond_dim=16, **changes))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    network.sampler = sampler
    return network.eval()


def make_run(sampler=generate, steps=8):
    return record("dfm", make_network(sampler), TOKENIZER, steps, seed=3)


@pytest.mark.parametrize("sampler", [generate, renoise])
def test_a_run_is_what_sample_py_writes(sampler):
    """And its probabilities are those of the posterior before each step."""
    network = make_network(sampler)
    run, [text] = make_run(sampler, steps=2), write(network, TOKENIZER, steps=2, seed=3)
    assert TOKENIZER.decode(run.states[-1].tolist()) == text
    assert (run.states[0] == make_run().states[0]).all()  # one seed, one noise
    for k, t in enumerate((0.0, 0.75)):  # power 2
        x_t = torch.tensor(run.states[k : k + 1])
        with torch.no_grad(), autocast(x_t.device):
            p = network(x_t, torch.tensor([t])).float().softmax(-1)
        expected = p[0, range(L), run.states[k + 1]]
        torch.testing.assert_close(torch.tensor(run.p[k]), expected, rtol=1e-4, atol=1e-6)


def test_each_status():
    """Token 0 stays noise until the end, 1 is drawn and changes, 2 is drawn and stays, 3 is wrong
    at the end."""
    states = np.array([[5, 5, 5, 5], [5, 6, 7, 8], [5, 9, 7, 8], [5, 9, 7, 8]])
    is_noise = np.array([[1, 1, 1, 1], [1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]], dtype=bool)
    wrong = [Mistake("name", 3, 1, "another name")]
    run = Run("dfm", states, [0, 1, 2, 3], is_noise, states[1:], wrong)
    assert statuses(run, 0) == ["noise"] * 4
    assert statuses(run, 1) == ["noise", "new", "new", "new"]
    assert statuses(run, 2) == ["noise", "changed", "settled", "settled"]
    assert statuses(run, 3) == ["new", "settled", "settled", "wrong"]
    assert statuses(run, 2, since=0) == ["noise", "new", "new", "new"]  # marks are held
    clock = Clock([run], pace=0)
    clock.now = 3
    text = "".join(paint(row, colour=False) for row in pane(run, [run], clock, TOKENIZER, 40))
    assert f"!{TOKENIZER.pieces([8])[0]}!" in text and "1 mistake" in text and text.count("!") == 2
    assert "word 4: another name" in text
    # renoise, V = 4: at t = 3/4 a token is noise if 3/4 p < 1/4 * 1/4, by Bayes' rule
    assert likelier_noise(np.array([0.08, 0.09]), 0.75, 4).tolist() == [True, False]


def test_the_rows_fill_the_screen():
    run = make_run()
    clock = Clock([run] * 3, 0.5)
    for columns, n in [(75, 2), (80, 2), (120, 3)]:  # as many panes as fit
        for step in range(9):
            clock.now = run.seconds[step]
            rows = [[text for text, _ in row] for row in
                    picture([run] * 3, clock, TOKENIZER, columns, 24)]
            assert len(rows) == 24 and rows[6].count(" | ") == n - 1
            assert all(len("".join(row)) in (columns, columns - 1) for row in rows[3:20])
            body = "".join(map(paint, pane(run, [run], clock, TOKENIZER, 36)[3:]))
            text = re.sub(r"\[(pad|unk)\]", "", TOKENIZER.decode(run.states[step].tolist()))
            words = re.sub(r"\033.*?m|\[unk\]", "", body).split()
            assert words[: len(text.split())] == text.split()


def test_the_clock_slows_for_the_few_steps():
    x = np.zeros((101, 1))
    few = Run("fsdfm", x[:9], [0.01 * i for i in range(9)], x, x, [])
    twin = Run("dfm", x[:9], [0.02 * i for i in range(9)], x, x, [Mistake("name", 0, 1, "")] * 3)
    many = Run("dfm", x, [0.0, 0.8], x, x)  # still running
    clock = Clock([many, few, twin], pace=0.5)
    assert clock.speed() == pytest.approx(0.01 / 0.5) and "50 times slower" in clock.line()
    clock.advance(4.0, limit=0.8)
    assert clock.now == pytest.approx(0.08) and clock.end() == pytest.approx(80)
    assert clock.steps_of(few) == clock.steps_of(twin) == (8, 7)  # together
    clock.advance(100, limit=0.8)
    assert clock.now == pytest.approx(0.16) and "as fast" in clock.line()  # the speed changes here
    assert not clock.finished()
    many.seconds[:] = [0.8 * i for i in range(101)]
    clock.advance(100, limit=80)
    assert clock.finished() and "finished" in clock.line()
    assert conclusion([many, twin, few]) == (
        "The student wrote a right story in 8 steps, 1000 times faster than the teacher in 100; "
        "in 8 steps the teacher wrote a story with 3 mistakes.")
    for step in (7, 6):
        clock.back()
        assert clock.paused and clock.steps_of(twin)[0] == step


def test_a_character_of_several_tokens_on_the_page():
    tokenizer = Tokenizer(learn_bpe(["é 中国"], 256))
    pieces, ids = pieces_of(tokenizer)["pieces"], tokenizer.encode("中 é").tolist()
    assert "".join(pieces[i] for i in ids).encode("latin-1").decode() == "中 é"


def test_the_exact_world_of_the_page():
    world = page_data([], TOKENIZER, "")["world"]
    for n, distance in [(1, 0.561), (8, 0.028)]:  # toy.py's
        off = np.subtract(world["runs"][n][-1], world["truth"])
        assert np.abs(off).sum() / 2 == pytest.approx(distance, abs=1e-3)


def in_node(data, script):
    """What the script, which knows `data` and the page's parts, hands to report()."""
    if not shutil.which("node"):
        pytest.skip("needs node")
    names = ("network", "sampler", "checker")
    sources = [(ROOT / f"show/{name}.js").read_text() for name in names]
    lines = [*sources, f"const data = {json.dumps(data)};",
             "const report = (value) => console.log(JSON.stringify(value));", script]
    result = subprocess.run(["node", "-"], input="\n".join(lines), capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.parametrize("changes", [{}, {"step_aware": True, "position_scale": 0.0}])
def test_the_network_of_the_page_is_the_network(changes):
    """With weights as int8, none of which moves by more than half of its row's scale. With one time
    for all tokens, and where every third token is given, at t = 1."""
    network, x_t, t, h = make_network(**changes), torch.randint(V, (1, L)), 0.4375, 0.25
    times = [t if i % 3 else 1.0 for i in range(L)]
    logits = in_node(network_data(network), f"""const network = new Network(data);
        report([[{t}], {times}].map((at) => [...network.logits({x_t[0].tolist()}, at, {h})]));""")
    packed = quantize(network.state_dict())
    int8 = network_of({"config": vars(network.config), "model": packed, "settings": {}})
    for before, after in zip(network.parameters(), int8.parameters()):
        half_a_scale = before.abs().amax(-1, keepdim=True) / 254 + 1e-7
        assert ((after - before).abs() <= half_a_scale).all()
    with torch.no_grad():
        for got, own in zip(logits, ([t], [times])):
            expected = int8(x_t, torch.tensor(own), torch.tensor([h])).flatten()
            torch.testing.assert_close(torch.tensor(got), expected, rtol=0, atol=1e-4)


def test_the_steps_of_the_page_have_the_right_probabilities():
    """20,000 steps from t = 0.5 to 0.75 of tokens that stand at 1, with posterior (.1 .2 .3 .4).
    S = 1/2, so a token jumps with probability 1 - 0.5 ** 0.8. Renoise keeps 3/4 of x_1 ~ p, and the
    rest is any of 4 tokens; its last step takes the likeliest. Of 2/5 of the tokens, the others
    jump. Given tokens stay."""
    counts, texts = in_node(network_data(make_network()), """
        const n = 20000;
        const network = new Network(data);
        const given = new WebSampler(network, {seed: 5, template: [3, -1, 7]});
        const texts = [...given.steps(3)].map(({tokens}) => tokens);
        const p = Array.from({length: n}, () => [0.1, 0.2, 0.3, 0.4]);
        const sampler = new WebSampler(network, {seed: 5});
        network.config.vocab_size = 4;
        const cases = [["jump", false], ["jump", true], ["renoise", false], ["renoise", true],
                       ["renoise", false, 0.4]];
        report([cases.map(([step, ...options]) => {
          sampler.tokens = Array.from({length: n}, () => 1);
          sampler[step](p, 0.5, 0.25, ...options);
          return [0, 1, 2, 3].map((v) => sampler.tokens.filter((w) => w === v).length / n);
        }), texts]);""")
    assert len(texts) == 4 and all((text[0], text[2]) == (3, 7) for text in texts)
    p = torch.tensor([0.1, 0.2, 0.3, 0.4])
    jumped = (1 - 0.5**0.8) * p / 0.8
    jumped[1] = 0.5**0.8
    new = 0.75 * p + 0.25 / 4
    expectations = jumped, p, new, torch.eye(4)[3], 0.4 * new + 0.6 * jumped
    for shares, expected in zip(counts, expectations):
        error = (expected * (1 - expected) / 20_000).sqrt()
        assert ((torch.tensor(shares) - expected).abs() <= 4.5 * error).all()


def test_the_checker_of_the_page_is_the_checker():
    """On right stories, on these with words moved or replaced, and on what networks write."""
    rng = random.Random(1)
    texts = [""] + [make_story(rng) for _ in range(9)]
    for words in [split_words(text) for text in texts[1:]] * 3:
        i, j = sorted(rng.sample(range(len(words)), 2))
        texts += map(join_words, [words[j:] + words[i:j], words[:i] + [words[j]] + words[i + 1 :]])
    for name, steps in [("dfm", 1), ("dfm", 4), ("fsdfm", 2), ("fsdfm", 6)]:
        model, tokenizer = load_model(ROOT / f"weights/{name}.pt")
        texts += write(model, tokenizer, num_samples=4, steps=steps, seed=1)
    data = {"grammar": grammar_data(), "texts": list(map(split_words, texts))}
    found = in_node(data, """
        const checker = new Checker(data.grammar);
        report(data.texts.map((words) => checker.check(words).map(Object.values)));""")
    for text, mistakes in zip(texts, found, strict=True):
        for own, (kind, position, n, message) in zip(check(text), mistakes, strict=True):
            assert own[:3] == (kind, position, n) and own.message.startswith(message), text


IN_BROWSER = """<pre id="report"></pre><iframe></iframe><script>
const errors = [];
addEventListener("error", ({message}) => errors.push(message));
addEventListener("unhandledrejection", ({reason}) => errors.push(String(reason)));
const unfinished = document.querySelector("iframe").contentDocument;
unfinished.open(); // --dump-dom waits until it is closed
addEventListener("DOMContentLoaded", async () => {
  const seen = Array.from({length: 9}, (_, step) => race.panes.map((pane, i) => {
    const {states} = race.runs[i];
    pane.show(states[step], step === 8, statusesSince(states, Math.max(0, step - 2), step));
    const words = pane.cells.filter(({word}) => !word.hidden);
    return [words.map(({blank, word}) => blank.data + word.textContent).join(""),
      words.map(({word}) => word.className)];
  }));
  while (panes[0].texts < 2) await pause(50);
  panes[1].cells[5].word.click();
  while (!paused) await pause(50);
  panes[1].cells[0].word.focus();
  const counted = panes.map((pane) => [told(pane).split(",")[0], wordsOf(pane.state.tokens)[0]]);
  const address = location.hash;
  element("steps").value = 7;
  element("steps").dispatchEvent(new Event("input"));
  element("report").textContent = JSON.stringify([seen, address, counted, settings.steps, errors]);
  unfinished.close();
});</script><main>"""


def test_the_page_in_a_browser(tmp_path):
    """The text of every step, what happened to each token, and what both networks write."""
    if not (browser := shutil.which("chromium") or shutil.which("google-chrome")):
        pytest.skip("needs chromium or google-chrome")
    runs, page = [make_run(), make_run(renoise)], tmp_path / "race.html"
    live = {"dfm": make_network(), "dmd": make_network(renoise, step_aware=True)}
    write_page(page, page_data(runs, TOKENIZER, ""), live)
    page.write_text(page.read_text().replace("<main>", IN_BROWSER))
    address = f"{page.as_uri()}#steps=2&prompt=Mia&kept=9.4"
    command = [browser, "--headless", "--no-sandbox", "--dump-dom", address]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    report = re.search(r"<pre id=\"report\">(.+?)</pre>", dom, re.S)[1]
    seen, address, live, steps, errors = json.loads(html.unescape(report))
    assert steps == 7 and errors == [] and address.endswith("&kept=9.4")
    for step in range(9):
        for run, (text, classes) in zip(runs, seen[step]):
            pieces = TOKENIZER.pieces(run.states[step].tolist())
            assert text == "".join(pieces).replace("[pad]", "·")
            marks = statuses(run, step, max(0, step - 2))[: len(classes)]
            if step == 8:  # in a finished text only what is wrong is marked
                marks = ["wrong" if mark == "wrong" else "settled" for mark in marks]
            assert classes == marks
    assert live == [["right: 0 of 2", "Mia"]] * 2 and "steps=2&seed=2&prompt=Mia&" in address
    assert "What the network expected here, before this step" in dom


def sample(words, patch, capsys):
    """What `sample.py WORDS` prints, with the networks of weights/."""
    patch.setattr(sys, "argv", ["sample.py", *words.split()])
    with contextlib.suppress(SystemExit):
        main()
    return capsys.readouterr()


def test_texts_page_and_picture(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = "--race dfm:2 fsdfm:1 --html race.html --live --gif race.gif"
    printed = sample(words, monkeypatch, capsys).out
    assert "teacher, 2 steps" in printed and "student, 1 step\n" in printed
    assert "\033" not in printed and "of 64 right" in printed and "race.html: open it" in printed
    assert "weights/fsdfm.pt" in printed
    page = Path("race.html").read_text()
    assert words in page and page.count('id="network-') == 2 and len(page) < 4_000_000
    assert Path("race.gif").read_bytes()[:6] == b"GIF89a"


def test_the_default_race_is_of_one_folder(tmp_path, monkeypatch):
    """Texts of out/ can have another length than those of weights/."""
    monkeypatch.chdir(tmp_path)
    Path("out").mkdir()
    Path("out/dfm.pt").touch()
    assert default_race("out") == (["dfm:1024", "dfm:4", "dmd:4"], WEIGHTS)
    Path("out/fsdfm.pt").touch()
    assert default_race("out") == (["dfm:1024", "dfm:4", "fsdfm:4"], "out")


def test_bad_input(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    checkpoint = torch.load(ROOT / "weights/dfm.pt")
    torch.save(checkpoint | {"tokenizer": describe_words({"kite"})}, "fsdfm.pt")
    torch.save(checkpoint, "dfm.pt")
    checkpoint["settings"]["sampler"] = "extras.samplers.euler"
    torch.save(checkpoint, "dmd.pt")
    for words, message in [
        ("--race dfm", "MODEL:STEPS"),
        ("--race dfm:5000", "1 to 4,096 steps"),
        ("--race dfm:8 fsdfm:8 --out .", "fsdfm.pt has other tokens"),
        ("--race dmd:8 --out .", "it cannot race"),
        ("--html none/race.html", "cannot be written"),
        ("--race --live", "name its file with --html"),
    ]:
        error = sample(words, monkeypatch, capsys).err
        assert error.startswith("error: ") and message in error, words
    for stream in (sys.stdin, sys.stdout):
        monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "40")
    assert "the terminal has 40 x" in sample("--race", monkeypatch, capsys).err


def test_the_race_on_a_terminal(tmp_path):
    """Colour, keys, and the terminal as it was. The long run is shown while it runs."""
    process, master = pty.fork()
    if process == 0:
        os.chdir(tmp_path)
        os.environ |= {"COLUMNS": "80", "LINES": "24"}
        words = "--race dfm:40 fsdfm:2".split()
        os.execv(sys.executable, [sys.executable, ROOT / "sample.py", *words])
    written, keys = "", ["q", "r"]  # replay, then quit
    with open(master, "rb", buffering=0) as terminal, contextlib.suppress(OSError):  # its end
        while True:
            written += terminal.read(65536).decode(errors="replace")
            if keys and "r replay" in written[-3000:] and "of 64 right" in written[-3000:]:
                os.write(master, keys.pop().encode())
                written += "\n" * 3000
    assert os.waitpid(process, 0)[1] == 0
    assert "space pause" in written and "\033[1;30;46m" in written
    assert written.rindex("\033[?1049l") > written.rindex("\033[?1049h")
    assert "teacher in 40." in written and "seed 1: " in written
    assert "times slower" in written[written.index("r replay") :]  # from the first step

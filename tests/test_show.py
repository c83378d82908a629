"""Checks what is shown: runs and what happened to each token, the race in a terminal, the page in a
real browser, the moving picture, weights as int8."""

import html
import json
import os
import pty
import re
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from command import ROOT, copy_project, error_line, run
from common.checkpoint import FORMAT, load_model, save_checkpoint
from common.command import UserError
from common.device import autocast
from common.quantize import dequantize, quantize
from data.stories import vocabulary
from data.tokenizer import Tokenizer, describe_words
from flow import generate, sample_source
from model import ModelConfig, Transformer
from show.page import page_data, write_page
from show.picture import picture_times
from show.race import Clock, finished_text, pane, panes_that_fit, wrap
from show.run import Run, parse_runner, record, statuses

L = 32
TOKENIZER = Tokenizer(describe_words(vocabulary()))
NAMES = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason=f"needs a browser: {', '.join(NAMES)}")


def make_network(**changes):
    """A small network of random weights, which changes its mind often."""
    config = {"vocab_size": TOKENIZER.vocab_size, "block_size": L, "n_layer": 2, "n_head": 2}
    config |= {"dim": 32, "cond_dim": 16, "positions": "sinusoidal"} | changes
    torch.manual_seed(1)
    network = Transformer(ModelConfig(**config))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    return network.eval()


def make_run(name="dfm", steps=8, probabilities=True, **changes):
    return record(name, make_network(**changes), TOKENIZER, steps, 3, L,
                  probabilities=probabilities)


def fake_run(states, is_noise, wrong=(), seconds=None):
    """A Run of states that are written down by hand."""
    states, is_noise = np.array(states), np.array(is_noise, dtype=bool)
    seconds = seconds or [0.1 * i for i in range(len(states))]
    return Run("dfm", 1, states, seconds, is_noise, None, [], set(wrong), False, None)


# ------------------------------------------------------------------------------------------------
# runs


@pytest.mark.parametrize("update", ["cumulative", "renoise"])
def test_a_run_is_what_generate_writes(update):
    run = make_run(update=update)
    network = make_network(update=update)
    torch.manual_seed(3)
    x_0 = sample_source((1, L), network.config, "cpu")
    with autocast(x_0.device):
        x_1 = generate(network, x_0, 8)
    assert run.states[-1].tolist() == x_1[0].tolist()
    assert run.states.shape == (9, L) and len(run.seconds) == 9
    assert run.seconds == sorted(run.seconds)


def test_runs_of_one_seed_start_from_the_same_noise():
    assert (make_run(steps=4).states[0] == make_run("fsdfm", 8, step_aware=True).states[0]).all()


def test_the_probabilities_are_those_of_the_posterior_before_each_step():
    run = make_run(steps=2)
    network = make_network()
    for k, t in enumerate((0.0, 0.75)):  # power 2
        x_t = torch.tensor(run.states[k : k + 1])
        with torch.no_grad(), autocast(x_t.device):
            logits = network(x_t, torch.tensor([t])).float()
        p = logits.softmax(-1)[0, range(L), run.states[k + 1]]
        torch.testing.assert_close(torch.tensor(run.probabilities[k]), p, rtol=1e-4, atol=1e-6)


def test_each_status():
    """Token 0 stays noise until the end, 1 is drawn and changes, 2 is drawn and stays, 3 is wrong
    at the end."""
    states = [[5, 5, 5, 5], [5, 6, 7, 8], [5, 9, 7, 8], [5, 9, 7, 8]]
    is_noise = [[1, 1, 1, 1], [1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    run = fake_run(states, is_noise, wrong=[3])
    assert statuses(run, 0) == ["noise"] * 4
    assert statuses(run, 1) == ["noise", "new", "new", "new"]
    assert statuses(run, 2) == ["noise", "changed", "settled", "settled"]
    assert statuses(run, 3) == ["new", "settled", "settled", "wrong"]


def test_renoise_tells_noise_from_text():
    """A network that is sure of one token: whatever else stands there after a step is noise."""
    network = make_network(update="renoise")
    torch.nn.init.zeros_(network.output_layer.linear.weight)
    network.output_layer.linear.bias.data = 40.0 * (torch.arange(TOKENIZER.vocab_size) == 7)
    run = record("dmd", network, TOKENIZER, 8, 3, L)
    assert (run.is_noise[1:] == (run.states[1:] != 7)).all()
    assert run.is_noise[0].all() and not run.is_noise[-1].any()
    assert 0 < run.is_noise[4].mean() < 1


def test_runners():
    assert parse_runner("dfm:1024") == ("dfm", 1024)
    for text in ("dfm", "dfm:0", "dfm:4097", "judge:8", "dfm:8x", "dfm:-1", ":8"):
        with pytest.raises(UserError, match="MODEL:STEPS"):
            parse_runner(text)


# ------------------------------------------------------------------------------------------------
# the race


def test_lines_are_as_wide_as_the_pane_and_keep_every_word():
    run = make_run(steps=4)
    for width in (20, 36, 79):
        for step in range(5):
            lines = pane(run, step, TOKENIZER, -1, width, 20, colour=False)
            assert len(lines) == 20 and {len(line) for line in lines} == {width}
    words = [("Mia", "new"), (" had", "settled"), (" a", "noise"), (".", "noise")]
    assert wrap(words, 8) == [words[:2], [("a", "noise"), (".", "noise")]]


def test_as_many_panes_as_fit():
    assert [len(panes_that_fit([1, 2, 3], columns)) for columns in (60, 80, 120)] == [1, 2, 3]


def test_the_clock_slows_for_the_few_steps_and_speeds_up_for_the_rest():
    few = fake_run([[1]] * 9, [[0]] * 9, seconds=[0.01 * i for i in range(9)])
    many = fake_run([[1]] * 101, [[0]] * 101, seconds=[0.8 * i for i in range(101)])
    clock = Clock([many, few], pace=0.5)
    assert clock.speed() == pytest.approx(0.01 / 0.5)
    clock.advance(4.0)  # 8 steps of half a second
    assert clock.now == pytest.approx(0.08)
    assert clock.speed() == pytest.approx((80 - 0.08) / 8)
    clock.advance(100)
    assert clock.now == 80 and "finished" in clock.line()
    true = Clock([many, few], pace=0)
    assert true.speed() == 1 and "as fast as it ran" in true.line()
    true.one_step()
    assert true.paused and true.now == pytest.approx(0.01)


def test_wrong_words_are_marked_without_colour():
    run = fake_run([[5, 6], [7, 8]], [[1, 1], [0, 0]], wrong=[1])
    words = TOKENIZER.pieces([7, 8])
    assert f"{words[0]} !{words[1].strip()}!" in finished_text(run, TOKENIZER, -1)


# ------------------------------------------------------------------------------------------------
# weights as int8


def test_no_weight_moves_by_more_than_half_a_scale():
    network = make_network()
    packed = quantize(network.state_dict())
    for name, tensor in dequantize(packed).items():
        original = network.state_dict()[name]
        if original.ndim == 2:
            bound = original.abs().amax(1, keepdim=True) / 254 + 1e-7
            assert ((tensor - original).abs() <= bound).all(), name
            assert packed[name]["int8"].dtype == torch.int8
        else:
            assert torch.equal(tensor, original), name


# ------------------------------------------------------------------------------------------------
# the page


def replayed(run):
    """The states of a run of the page, played back in Python."""
    states = [list(run["noise"])]
    for flat in run["changes"]:
        states.append(list(states[-1]))
        for place, token, _ in zip(flat[::3], flat[1::3], flat[2::3]):
            states[-1][place] = token
    return states


@pytest.mark.parametrize("update", ["cumulative", "renoise"])
def test_the_changes_give_the_states(update):
    run = make_run(update=update)
    [data] = page_data([run], TOKENIZER, "")["runs"]
    assert replayed(data) == run.states.tolist()


def test_the_exact_world_ends_at_the_true_texts():
    world = page_data([make_run()], TOKENIZER, "")["world"]
    for n, states in world["runs"].items():
        assert len(states) == n + 1
        assert [sum(p) for p in states] == pytest.approx([1] * (n + 1), abs=1e-3)
    distances = [np.abs(np.subtract(world["runs"][n][-1], world["truth"])).sum() / 2
                 for n in (1, 8)]
    assert distances == pytest.approx([0.561, 0.028], abs=1e-3)  # the README's table


def test_a_page_of_many_steps_is_small(tmp_path):
    runs = [make_run(steps=1024), make_run(steps=8), make_run("fsdfm", 8, step_aware=True)]
    write_page(tmp_path / "race.html", page_data(runs, TOKENIZER, "python sample.py --html"))
    assert (tmp_path / "race.html").stat().st_size < 200_000


def in_browser(path, script):
    """What the script, run in the page, hands to report(), and the page's console errors."""
    page = path.read_text()
    # errors are collected from the first line on
    page = page.replace("<title>", "<script>window.errors = []; window.onerror = (message) => "
                        "errors.push(message);</script><title>", 1)
    page = page.replace("</body>", "<pre id='report'></pre><script>const report = (value) => {"
                        "element('report').textContent = JSON.stringify({value, errors}); };"
                        f"{script}</script></body>")
    path.with_suffix(".test.html").write_text(page)
    command = [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom",
               "--virtual-time-budget=30000", path.with_suffix(".test.html").as_uri()]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = re.search(r"<pre id=\"report\">(.*?)</pre>", result.stdout, re.S)
    assert found and found[1], result.stderr[-500:]
    told = json.loads(html.unescape(found[1]))
    assert told["errors"] == []
    return told["value"]


@needs_browser
def test_the_page_shows_what_python_wrote(tmp_path):
    """At every step of the slider: the text, and what happened to each token."""
    runs = [make_run(steps=8), make_run("dmd", 8, update="renoise")]
    path = tmp_path / "race.html"
    write_page(path, page_data(runs, TOKENIZER, "python sample.py --html race.html"))
    shown = in_browser(path, """
        element("clock").value = "share";
        const all = [];
        for (let step = 0; step <= 8; step++) {
          element("slider").value = 125 * step;
          element("slider").oninput({target: element("slider")});
          all.push(panes.map((pane) => [
            pane.text.textContent, [...pane.text.children].map((span) => span.className),
          ]));
        }
        report(all);""")
    for step in range(9):
        for run, (text, classes) in zip(runs, shown[step]):
            ids = run.states[step].tolist()
            assert text == "".join(TOKENIZER.pieces(ids)).replace("[pad]", "\u00b7")
            assert classes == statuses(run, step)[: len(classes)]


@needs_browser
def test_play_goes_to_the_end_and_keys_step(tmp_path):
    path = tmp_path / "race.html"
    write_page(path, page_data([make_run(steps=8)], TOKENIZER, ""))
    at = in_browser(path, """
        const steps = [];
        for (const key of ["ArrowRight", "End", "Home"]) {
          document.body.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
          steps.push(panes[0].shown);
        }
        element("play").click();
        setTimeout(() => { steps.push(panes[0].shown, clock.playing); report(steps); }, 15000);""")
    assert at == [1, 8, 0, 8, False]


@needs_browser
@pytest.mark.parametrize("changes", [
    {"step_aware": True}, {"positions": "rotary"}, {"update": "renoise", "shared_noise": True},
])
def test_the_network_in_the_browser_is_the_network(tmp_path, changes):
    network = make_network(**changes)
    path = tmp_path / "race.html"
    data = page_data([make_run(**changes)], TOKENIZER, "", network, "FS-DFM")
    write_page(path, data)
    x_t, t, h = torch.randint(TOKENIZER.vocab_size, (1, L)), 0.4375, 0.25
    logits, text, other = in_browser(path, f"""
        const logits = [...network.logits({x_t[0].tolist()}, {t}, {h})];
        const texts = [];
        (async () => {{
          for (const seed of [1, 2]) {{
            element("live-seed").value = seed;
            await write(0);
            texts.push(element("live-text").textContent);
          }}
          report([logits, ...texts]);
        }})();""")
    network.load_state_dict(dequantize(quantize(network.state_dict())))
    with torch.no_grad():
        expected = network(x_t, torch.tensor([t]), torch.tensor([h])).flatten()
    torch.testing.assert_close(torch.tensor(logits), expected, rtol=0, atol=1e-2)
    assert text != other and len(text.split()) > 5


@needs_browser
def test_the_jumps_in_the_browser_have_the_right_probabilities(tmp_path):
    """20,000 steps from t = 0.5 to 0.75 of tokens that stand at 1, with posterior (.1 .2 .3 .4):
    S = 1/2, so a token jumps with probability 1 - 0.5 ** 0.8; and as many last steps."""
    path = tmp_path / "race.html"
    write_page(path, page_data([make_run()], TOKENIZER, "", make_network(), "DFM"))
    counts = in_browser(path, """
        const n = 20000;
        const p = Array.from({length: n}, () => [0.1, 0.2, 0.3, 0.4]);
        const sampler = new WebSampler(network, 1, 5);
        const count = (last) => {
          sampler.tokens = Array.from({length: n}, () => 1);
          sampler.noise = Array.from({length: n}, () => true);
          const race = () => exponentials(4, sampler.random);
          sampler.jump(p, 0.5, 0.25, last, race);
          return [0, 1, 2, 3].map((v) => sampler.tokens.filter((w) => w === v).length / n);
        };
        report([count(false), count(true)]);""")
    p = torch.tensor([0.1, 0.2, 0.3, 0.4])
    p_jump = 1 - 0.5**0.8
    jumped = p_jump * p / 0.8
    jumped[1] = 1 - p_jump
    for shares, expected in zip(counts, (jumped, p)):
        error = (expected * (1 - expected) / 20_000).sqrt()
        assert ((torch.tensor(shares) - expected).abs() < 4.5 * error).all()


# ------------------------------------------------------------------------------------------------
# the commands


def save_network(folder, stage, tokenizer=TOKENIZER):
    """A checkpoint with int8 weights."""
    network = make_network(step_aware=stage == "fsdfm", vocab_size=tokenizer.vocab_size)
    checkpoint = {
        "stage": stage, "iteration": 1, "seconds": 1.0, "config": vars(network.config),
        "settings": {"iterations": 1}, "tokenizer": tokenizer.description,
        "ema": None, "optimizers": [],
        "model": quantize(network.state_dict()), "dfm": None, "passes": 1, "format": FORMAT,
    }
    save_checkpoint(folder / f"{stage}.pt", checkpoint, first=True)


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """A project with networks in weights/ and none in out/."""
    project = copy_project(tmp_path_factory.mktemp("shown"))
    for stage in ("dfm", "fsdfm"):
        save_network(project / "weights", stage)
    return project


def test_runners_of_different_tokens(shown):
    save_network(shown / "mixed", "dfm")
    save_network(shown / "mixed", "fsdfm", Tokenizer(describe_words(vocabulary() - {"kite"})))
    message = error_line(shown, "sample.py", "--race", "dfm:4", "fsdfm:4", "--out", "mixed")
    assert "mixed/fsdfm.pt has other tokens" in message


def test_networks_that_come_with_the_project_are_used_until_there_are_others(shown):
    result = run(shown, "sample.py")
    assert "weights/fsdfm.pt, 8 steps" in result.stderr
    (shown / "out").mkdir()
    shutil.copy(shown / "weights/dfm.pt", shown / "out/dfm.pt")
    assert "out/fsdfm.pt" in error_line(shown, "sample.py")
    assert "[out/dfm.pt" in run(shown, "sample.py", "--model", "dfm").stderr
    shutil.rmtree(shown / "out")


def test_the_race_is_plain_text_where_there_is_no_terminal(shown):
    printed = run(shown, "sample.py", "--race", "dfm:16", "fsdfm:4").stdout
    assert "DFM, 16 steps" in printed and "FS-DFM, 4 steps" in printed
    assert "16 network calls against 4" in printed and "\033" not in printed
    alone = run(shown, "sample.py", "--steps", 4, "--num-samples", 1).stdout
    shown_words = printed.replace("!", "").split()  # it marks wrong words
    words = alone.replace("[pad]", "·").split()
    assert " ".join(words) in " ".join(shown_words)


def test_page_and_picture_are_written(shown):
    printed = run(shown, "sample.py", "--html", "race.html", "--live", "--gif", "race.gif",
                  "--race", "dfm:32", "fsdfm:4").stdout
    assert "race.html: open it in a browser" in printed
    page = (shown / "race.html").read_text()
    assert "--race dfm:32 fsdfm:4" in page and '"seed":1' in page and '"network":' in page
    assert (shown / "race.gif").read_bytes()[:6] == b"GIF89a"
    assert not list(shown.glob("*.tmp*"))


def test_pictures_are_of_every_step_of_the_fastest():
    few = fake_run([[1]] * 9, [[0]] * 9, seconds=[0.01 * i for i in range(9)])
    many = fake_run([[1]] * 101, [[0]] * 101, seconds=[0.08 * i for i in range(101)])
    times = picture_times([many, few])
    assert set(few.seconds) <= set(times) and times[-1] == many.seconds[-1]
    assert times == sorted(times)


def test_bad_input(shown):
    for words, message in [
        (["--race", "dfm"], "MODEL:STEPS"),
        (["--race", "dfm:5000"], "1 to 4,096 steps"),
        (["--race", "dmd:8"], "there is no out/dmd.pt"),
        (["--race", "--prompt", "Mia"], "--prompt has no meaning for a race"),
        (["--html", "none/race.html"], "cannot be written"),
        (["--gif", "."], "cannot be written"),
        (["--live"], "name its file with --html"),
        (["--pace", "1"], "--pace is for --race and --watch"),
        (["--html", "race.html", "--live", "--leave-one-out"], "ordinary temperature"),
    ]:
        assert message in error_line(shown, "sample.py", *words), words


def on_terminal(folder, columns, lines, keys, *arguments):
    """What a command writes to a terminal of that size while the keys are typed."""
    process, master = pty.fork()
    if process == 0:
        os.chdir(folder)
        os.execve(sys.executable, [sys.executable, *arguments],
                  os.environ | {"COLUMNS": str(columns), "LINES": str(lines)})
    written, end = b"", time.monotonic() + 60
    while time.monotonic() < end:
        try:
            written += os.read(master, 65536)
        except OSError:  # the command has ended
            break
        if keys and b"of the network's time" in written:
            os.write(master, keys.encode())
            keys = ""
    return written.decode(errors="replace"), os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def test_the_race_on_a_terminal(shown):
    """Colour, a key, and the terminal as it was."""
    words = ["sample.py", "--race", "dfm:16", "fsdfm:4", "--pace", "0.1"]
    written, status = on_terminal(shown, 80, 24, "q", *words)
    assert status == 0 and "space pause" in written and "\033[1;30;46m" in written
    assert written.rindex("\033[?1049l") > written.rindex("\033[?1049h")
    assert "16 network calls against 4" in written
    with pytest.MonkeyPatch.context() as patch:  # a notebook's `!` has no keys to end it with
        patch.setenv("JPY_PARENT_PID", "1")
        written, status = on_terminal(shown, 80, 24, "", *words)
    assert status == 0 and "space pause" not in written and "16 network calls" in written
    written, status = on_terminal(shown, 40, 10, "", *words)
    assert status == 2 and "40 x 10 characters" in written and "Traceback" not in written

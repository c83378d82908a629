"""Checks extras/: samplers, mask, infill and prompts, matching, paper, gpt2, in this order.
published.py is checked in test_reference.py."""

import sys
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import distill
import flow
from data.tokenizer import Tokenizer, describe_words, learn_bpe
from eval import perplexities
from exact import ExactNetwork, Recorder, exact_bound, have_distribution, texts_of
from extras import gpt2, infill, mask, matching, paper, samplers
from model import student_from
from sample import conditioned_on, fill, load_model
from test_model import random_network
from test_training import run, same, train, trained
from toy import ENTROPY, TEXT, L, V, path, posterior, sampled_distribution


def refused(capsys, function, *arguments):
    with pytest.raises(SystemExit, match="2"):
        function(*arguments)
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize("steps, power", [(1, 1.0), (4, 1.0), (8, 2.0)])
@pytest.mark.parametrize("rule", ["averaged", "euler"])
def test_other_rules_draw_from_the_exact_distribution(rule, steps, power):
    texts = texts_of(ExactNetwork(), getattr(samplers, rule), steps, power=power)
    assert have_distribution(texts, sampled_distribution("uniform", steps, rule, power).flatten())


def test_the_papers_grid_is_uniform():
    texts = texts_of(ExactNetwork(), samplers.uniform_grid, 4)
    assert have_distribution(texts, sampled_distribution("uniform", 4).flatten())


@pytest.mark.parametrize("steps", [2, 4])
def test_renoise_draws_from_its_own_chain(steps):
    """x_1 ~ p at every step, then the path to the next time. `renoise` ends with the likeliest."""
    times, now = flow.time_grid(steps), np.full(16, 1 / 16)
    for t, after in zip(times, times[1:]):
        p = posterior("uniform", t)  # (states, L, V)
        now = now @ (p[:, 0, :, None] * p[:, 1, None, :]).reshape(16, 16)  # x_1
        now = now @ path("uniform", after)  # at t = 1 it is x_1 itself
    sampler = partial(flow.generate, step=samplers.renoise_step)
    assert have_distribution(texts_of(ExactNetwork(), sampler, steps), now)
    assert (texts_of(ExactNetwork(), samplers.renoise, 1, 9) == 4 * 3 + 2).all()


def test_tokens_that_are_renoised_a_few_at_a_time_keep_the_distribution(monkeypatch):
    exact = torch.from_numpy(TEXT.flatten())
    monkeypatch.setattr(samplers, "REDRAWS", 2)
    assert have_distribution(texts_of(ExactNetwork(), samplers.renoise, 64), exact)
    monkeypatch.setattr(samplers, "REDRAWS", 64)
    assert not have_distribution(texts_of(ExactNetwork(), samplers.renoise, 64), exact)


def test_draws_by_blocks(monkeypatch):
    """Of 70 tokens, which are more than a block and no multiple of it."""
    monkeypatch.setattr(flow, "draw", flow.draw)  # importing extras/fast.py replaces it
    from extras import fast

    p = torch.rand(70) + 0.1
    assert have_distribution(fast.draw(p.expand(50_000, 70)), p / p.sum())


@pytest.mark.parametrize("steps, options", [(1, {}), (2, {}), (8, {}), (8, {"power": 2.0})])
def test_the_mask_sampler_draws_from_the_exact_distribution(steps, options):
    texts = texts_of(ExactNetwork("mask"), mask.generate, steps, **options)
    assert have_distribution(texts, sampled_distribution("mask", steps, **options).flatten())


def test_the_loss_is_the_weighted_cross_entropy_of_masked_tokens():
    """Shown tokens and MASK itself have no gradient. Summed over t it is the likelihood."""
    network, x_1 = Recorder(), torch.randint(5, (8, 16))
    assert mask.Config(5, block_size=16) == network.config
    loss = mask.dfm_loss(network, x_1, largest_weight=3.0)
    ((x_t, t, _),) = network.calls
    assert torch.equal(x_t, torch.where(x_t == 5, 5, x_1))
    nll = F.cross_entropy(network(x_t, t)[..., :5].mT, x_1, reduction="none")
    weight = flow.rate(t).clamp(max=3)[:, None]
    torch.testing.assert_close(loss, (weight * nll * (x_t == 5)).mean())
    loss.backward()
    assert torch.equal(network.table.grad != 0, torch.arange(36).view(6, 6) // 5 == 6)  # row MASK
    bound = exact_bound(ExactNetwork("mask"), lambda *of: mask.masked_cross_entropy(*of, V, 1e9))
    assert TEXT.flatten() @ bound == pytest.approx(ENTROPY, rel=1e-4)


def test_a_masked_token_is_shown_with_probability_1_minus_S():
    """It is y ~ p then, whatever the logit of MASK. A shown token stays."""
    p, x_t = torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.tensor([[4] * 50_000 + [2] * 500])
    logits = torch.cat([p.log(), torch.tensor([9.0])]).expand(1, 50_500, 5)
    (x,) = mask.unmask(x_t, logits, t=torch.tensor([0.5]), h=torch.tensor([0.25]))  # S = 1/2
    assert have_distribution(x[:-500], torch.cat([p, torch.ones(1)]) / 2) and (x[-500:] == 2).all()


def test_a_token_that_was_just_shown_keeps_its_prediction(monkeypatch):
    """Jump k shows token k, so call k is its last. Token 0 was shown before, token 4 never is."""
    jumps = []

    def unmask(x_t, logits, t, h, last=None):
        jumps.append((t.item(), h.item(), last))
        return x_t.index_fill(1, torch.tensor(len(jumps)), 1)

    monkeypatch.setattr(mask, "unmask", unmask)
    teacher, half, last = Recorder(), torch.tensor([0.5]), torch.tensor([True])
    target = mask.shortcut_target(teacher, torch.tensor([[3, 5, 5, 5, 5]]), half, half, last)
    assert jumps == [(0.5, 0.25, None), (0.75, 0.25, last), (0.75, 0.25, last)]
    logits = torch.cat([teacher(*call) for call in list(teacher.calls)])  # (4, L, V)
    weights = torch.tensor([[6, 0, 0, 0], [6, 0, 0, 0], [1, 5, 0, 0], [1, 2, 3, 0], [1, 2, 2, 1]])
    torch.testing.assert_close(target[0], torch.einsum("lc,clv->lv", weights / 6, logits))


def test_the_student_of_the_mask_source(monkeypatch):
    """KL(teacher || student) over text tokens, or the weighted cross entropy, of masked tokens."""
    monkeypatch.setattr(distill, "SHARES", torch.ones(11))
    monkeypatch.setattr(mask, "shortcut_target", lambda teacher, *of: teacher(*of[:3]))
    student, teacher, x_1 = Recorder(), Recorder(), torch.randint(5, (88, 16))
    loss = mask.distillation_loss(student, teacher, x_1, 3.0)
    ((x_t, t, h),) = student.calls
    q, p = (network(x_t, t, h)[..., :5].softmax(-1) for network in (teacher, student))
    nll = -p.log().gather(-1, x_1[..., None]).squeeze(-1)
    losses = torch.where((h > 2 / 16)[:, None], (q * (q / p).log()).sum(-1),
                         flow.rate(t).clamp(max=3)[:, None] * nll)
    torch.testing.assert_close(loss, (losses * (x_t == 5)).mean())


def test_how_many_tokens_are_given():
    """In a quarter of the texts a share that is uniform on [0, 1]: of 16 tokens none in 1/17."""
    given, p = infill.given_tokens(torch.zeros(20_000, 16).long()), 16 / 17 / 4
    assert have_distribution(given.any(1).long(), torch.tensor([1 - p, p]))
    assert given.float().mean() == pytest.approx(1 / 8, abs=4 * 0.27 / 20_000**0.5)


def test_the_network_is_told_and_is_sure():
    """It reads given tokens at t = 1; their posterior is certain, without loss or gradient."""
    network, text, x = Recorder(), torch.randint(6, (3, 16)), torch.randint(6, (3, 16))
    given, t = torch.rand(3, 16) < 0.5, torch.tensor([0.1, 0.4, 0.8])
    network.table.data *= 30  # the network may be sure of something else
    logits = conditioned_on(network, given, text)(x, t)
    ((x_t, times, _),) = network.calls
    assert torch.equal(x_t, torch.where(given, text, x))
    assert torch.equal(times, torch.where(given, 1.0, t[:, None]))
    assert torch.equal(logits[~given], network(x_t, times)[~given])
    loss = flow.generalized_kl(logits, text, x, t)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    for part in (loss, gradient.norm(dim=-1)):
        assert part[given].abs().max() < 1e-15 and part[~given].abs().max() > 1


def test_training_with_all_tokens_given_and_with_none(monkeypatch):
    """None: the losses of the core. All: 0, and student and teacher read their rows at t = 1."""
    monkeypatch.setattr(distill, "SHARES", torch.ones(11))
    student, teacher, x_1 = Recorder(), Recorder(), torch.randint(6, (44, 16))

    def losses(dfm_loss, distillation_loss, given=False):
        monkeypatch.setattr(infill, "given_tokens", lambda x_1: torch.full(x_1.shape, given))
        torch.manual_seed(1)
        return dfm_loss(student, x_1, 3.0), distillation_loss(student, teacher, x_1, 3.0)

    core = losses(flow.dfm_loss, distill.distillation_loss)
    assert core == losses(infill.dfm_loss, infill.distillation_loss) and min(core) > 0.1
    student.calls, teacher.calls = [], []
    assert max(losses(infill.dfm_loss, infill.distillation_loss, given=True)) < 1e-15
    for x_t, t, _ in student.calls + teacher.calls:
        assert torch.equal(x_t, x_1[: len(x_t)]) and (t == 1).all()


@pytest.mark.parametrize("steps", [1, 2, 8])
def test_a_given_token(steps):
    """The network is told that its time is 1. The rule "averaged" then draws the other token from
    the exact conditional, in any number of steps."""
    network = ExactNetwork(text=np.diag([0, 0, 1, 0]) @ TEXT)  # knows that the first one is a 2

    def told(x_t, t, h):
        assert (t[:, 0] == 1).all()
        return network(x_t, t[:, 1])

    told.config = network.config
    x_1 = fill(told, torch.tensor([[2, -1]]).expand(50_000, L), steps, samplers.averaged)
    assert (x_1[:, 0] == 2).all() and have_distribution(x_1[:, 1], TEXT[2] / TEXT[2].sum())


@pytest.mark.parametrize("sampler", [flow.generate, samplers.renoise, mask.generate])
def test_given_tokens_stay_and_no_mask_is_left(sampler):
    template = torch.randint(-1, 5, (50, 16))
    text = fill(random_network(vocab_size=6), template, 4, sampler, temperature=0.7)
    assert torch.equal(torch.where(template < 0, -1, text), template)
    assert text.min() >= 0 and text.max() <= (4 if sampler is mask.generate else 5)


def test_blanks_of_a_template(capsys):
    template, words = infill.infill_template, Tokenizer(describe_words({"a", "b"}))
    assert template("a ___ b _12_ a", words, length=18) == [2, -1, -1, -1, 3] + 12 * [-1] + [2]
    for text, message in (("a b", "no blank"), ("a ___ b _14_", "19 tokens"), ("c ___", "'c'")):
        assert message in refused(capsys, template, text, words, 18)
    assert not infill.BLANK.search("layer_0_weight, a___b, __init__")
    pairs = Tokenizer(learn_bpe(["a cat"], 256))
    assert template("a ___ b", pairs, 18) == [97, -1, -1, -1, 32, 98]  # its blank is written, too


def test_the_gradient_of_the_matching_loss(monkeypatch):
    """By hand: that of -sum p score is -p (score - its mean under p). The score is log f - log a,
    the frequency term and the anchor. The auxiliary has the gradient of its cross entropy."""
    logits, x = torch.randn(300, 16, 6, requires_grad=True), torch.randint(6, (300, 16)) ** 2 // 6
    t, n, own = torch.arange(300) / 330, torch.full((300,), 8), torch.arange(300) < 200
    monkeypatch.setattr(matching, "training_states", lambda ema, x_1: (x, t, t, n, own))
    monkeypatch.setattr(matching.flow, "draw", lambda p: x)
    dfm, other, student = Recorder(), Recorder(), Recorder()
    student.forward = lambda x_t, t, h: logits
    dfm.table.data *= 3
    places = matching.token_frequency(x, 6, by_place=True)  # (L, V)
    torch.testing.assert_close(places, F.one_hot(x, 6).float().mean(0))
    true, p = matching.token_frequency(x, 6, by_place=False), logits.softmax(-1).detach()
    torch.testing.assert_close(true, places.mean(0, keepdim=True))
    auxiliary = matching.Auxiliary(other, true)
    matching.matching_loss(student, None, dfm, auxiliary, x).backward()
    z, s, _ = dfm.calls[0]
    assert (s >= t).all() and dfm.table.grad is None
    assert (z == x).float().mean() == pytest.approx((s + (1 - s) / 6).mean().item(), abs=0.03)
    log_f, log_a = (network(z, s).log_softmax(-1) for network in (dfm, auxiliary.network))
    frequency = 0.97 * true + 0.03 * p[own].mean((0, 1))  # of steps of 1/8, a running mean
    torch.testing.assert_close(auxiliary.frequency, torch.stack([true, frequency]))
    of_frequency = (true / frequency).log().clamp(-2, 2) * own[:, None, None]
    score = (log_f - log_a).clamp(-5, 5) + 8.0 * of_frequency
    anchor = torch.where(t == 0, 2.0, 0.15 * (8 / 4) ** 2)[:, None, None]
    score -= anchor * (p.log() - dfm(x, t).log_softmax(-1))
    by_hand = -p * (score - (p * score).sum(-1, keepdim=True)) / x.numel()
    torch.testing.assert_close(logits.grad, by_hand, rtol=1e-4, atol=1e-9)
    (of_a,) = torch.autograd.grad(F.cross_entropy(log_a.mT, x), auxiliary.network.table)
    torch.testing.assert_close(auxiliary.network.table.grad, of_a)


def test_nothing_moves_when_the_texts_are_distributed_alike(monkeypatch):
    """a = f, the frequencies are equal, and no anchor. A too frequent token moves the student."""
    monkeypatch.setattr(matching, "anchor", lambda *_: torch.zeros(()))
    dfm, x_1, largest = random_network(vocab_size=6), torch.ones(9, 16).long(), []
    student, auxiliary = student_from(dfm), matching.Auxiliary(dfm, torch.ones(16, 6) / 6).eval()
    for share in (1 / 6, 0.5):
        auxiliary.frequency[..., 0] = share
        matching.matching_loss(student, student, dfm, auxiliary, x_1).backward()
        largest.append(max(p.grad.abs().max() for p in student.parameters()))
    assert largest[0] < 1e-5 and largest[1] > 1e-3


def test_the_states_of_training(monkeypatch):
    """Steps of flow.time_grid. A student that is sure of token 3 has states with kappa + (1 -
    kappa) / V of it, which at k = 0 is noise. The others are texts on the path."""
    monkeypatch.setattr(matching, "text_share", 0.4)
    student, size = Recorder(), 20_000
    student.table.data[:, 3] = 99
    x_t, t, h, n, own = matching.training_states(student, torch.full((size, 16), 5))
    path = torch.arange(size) >= 0.6 * size
    assert torch.equal(own, ~path & (t > 0))
    for steps in matching.STEP_COUNTS:
        grid = torch.tensor(flow.time_grid(steps))
        k = (t[n == steps][:, None] - grid[:-1]).abs().argmin(1)
        torch.testing.assert_close(t[n == steps], grid[k])
        torch.testing.assert_close((t + h)[n == steps], grid[k + 1])
        assert have_distribution(k, torch.full((steps,), 1 / steps))
    for rows, token in ((~path, 3), (path, 5)):
        for time in t.unique():
            found, p = (x_t[rows & (t == time)] == token).float(), time + (1 - time) / 6
            assert abs(found.mean() - p) < 5 * (p * (1 - p) / found.numel()) ** 0.5


def test_a_killed_run_of_matching_resumes_to_the_same_weights(tmp_path, monkeypatch, capsys):
    """kill -9 after the first of three savings."""
    kill = ("import os, runpy; replace = os.replace; os.replace = lambda *names: (replace(*names), "
            "os.kill(os.getpid(), 9)); runpy.run_module('extras.matching', run_name='__main__')")
    monkeypatch.setattr(matching, "out", str(tmp_path))
    train("dfm", tmp_path, "--iterations=4")

    def matched(*command, status=0):
        run(*command, f"--out={tmp_path}", "--iterations=6", "--save_every=2", "--batch_size=4",
            "--resume", status=status)
        return trained(tmp_path / "dmd.pt")

    whole = matched("-m", "extras.matching")
    assert "--overwrite" in refused(capsys, matching.start, torch.device("cpu"))
    with monkeypatch.context() as other:
        other.setattr(matching, "resume", True)
        other.setattr(matching, "data", "pydocs")
        assert "another text" in refused(capsys, matching.start, torch.device("cpu"))
    (tmp_path / "dmd.pt").unlink()
    assert matched("-c", kill, status=-9)["iteration"] == 2
    assert same(whole, matched("-m", "extras.matching")) and whole["iteration"] == 6
    assert load_model(tmp_path / "dmd.pt")[0].sampler is samplers.renoise


def test_the_papers_recipe(monkeypatch):
    """The data loss for h = 1/1024 alone, half of the texts; no step is a last one. The learning
    rate ends at a tenth, AdamW has all weights, and of the student the fusers alone differ."""
    monkeypatch.setattr(paper, "shortcut_target", lambda network, x_t, t, h, last: (
        network.table[x_t].detach() if last is None else None))
    student, teacher, x_1 = Recorder(), Recorder(), torch.randint(6, (400, 16))
    loss = paper.distillation_loss(student, teacher, x_1, 3.0)
    ((x_t, t, h),) = student.calls
    logits, finest = student(x_t, t, h), (h == 1 / 1024)[:, None]
    kl = distill.forward_kl(teacher.table[x_t], logits)
    data_loss = flow.generalized_kl(logits, x_1, x_t, t, 3.0)
    torch.testing.assert_close(loss, torch.where(finest, data_loss, kl).mean())
    assert finest.float().mean() == pytest.approx(0.5, abs=0.1)
    shares = [paper.learning_rate_share(i, 1010, 10) for i in (10, 510, 1010)]
    assert shares == pytest.approx([1, 0.55, 0.1])
    dfm = random_network(vocab_size=6)
    ((group,),) = (o.param_groups for o in paper.make_optimizers(dfm, weight_decay=0.03))
    assert len(group["params"]) == len(list(dfm.parameters())) and group["weight_decay"] == 0.03
    ours, papers = student_from(dfm).state_dict(), paper.student_from(dfm).state_dict()
    names = [name for name in ours if "step_embedding" not in name]  # random in both
    differ = [name for name in names if not torch.equal(ours[name], papers[name])]
    assert differ == [name for name in names if name.endswith("fuser.weight")]


def test_gpt2_as_the_judge(monkeypatch, capsys):
    """Ids beyond its vocabulary become its last one. Without the library: one line."""
    network = Recorder()
    network.forward = lambda x: SimpleNamespace(logits=network.table[x])
    auto = SimpleNamespace(from_pretrained={"gpt2-large": network}.__getitem__)
    monkeypatch.setitem(sys.modules, "transformers", SimpleNamespace(AutoModelForCausalLM=auto))
    judge = gpt2.large("cpu", {"kind": "gpt2"})
    filled, last = torch.tensor([[0, 5, 6, 63]]), torch.tensor([[0, 5, 5, 5]])
    nll = F.cross_entropy(network.table[last[0, :-1]], last[0, 1:])
    assert perplexities(filled, judge).item() == pytest.approx(nll.exp().item())
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert "pip install transformers" in refused(capsys, gpt2.large, "cpu", {"kind": "gpt2"})

"""Iterative distillation: its schedule, its loss, exact resume after SIGKILL, two processes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from distill_program import SMALL, pixels, small_swin, trainer
from timm.models import VisionTransformer
from torch import nn
from torch.nn import functional as F

from intswin.models.activation import mlp_activation, mlps
from intswin.models.augment import normalize
from intswin.models.distill import accuracy
from intswin.models.distill_data import Batches
from intswin.models.distill_loss import (
    BlockDistillation,
    LossWeights,
    feature_distance,
    outputs_of,
)
from intswin.models.distill_schedule import TrainOptions
from intswin.models.errors import IntswinError
from intswin.models.reconstruct import ReconstructOptions, reconstruct
from intswin.models.replacement import replacement_steps

PROGRAM = Path(__file__).with_name("distill_program.py")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROGRAM.parent)}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def losses(folder):
    lines = [json.loads(line) for line in (folder / "state.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"], line["replaced"]) for line in lines if "loss" in line]


def test_orders_of_replacement():
    from intswin.models.swin import create_model

    model = create_model()
    block = replacement_steps(model, "block", "shallow-to-deep")
    assert [len(step) for step in block] == [1] * 12
    assert block[0] == ["layers.0.blocks.0"]
    assert block[-1] == ["layers.3.blocks.1"]
    assert replacement_steps(model, "block", "deep-to-shallow") == block[::-1]
    stage = replacement_steps(model, "stage", "deep-to-shallow")
    assert [len(step) for step in stage] == [2, 6, 2, 2]
    assert stage[0] == ["layers.3.blocks.0", "layers.3.blocks.1"]
    assert [len(s) for s in replacement_steps(model, "all-at-once", "deep-to-shallow")] == [12]
    with pytest.raises(IntswinError, match="unknown schedule"):
        replacement_steps(model, "random", "shallow-to-deep")
    with pytest.raises(IntswinError, match="unknown order"):
        replacement_steps(model, "block", "random")


def test_replacements_come_when_they_are_due(tmp_path):
    run = trainer(tmp_path, order="deep-to-shallow", steps=20, finish_share=0.5)
    seen = []
    step = run._step

    def watched(rate):
        active = [type(mlp.act) is nn.ReLU for mlp in mlps(run.network)]
        seen.append("".join("R" if a else "G" for a in active))
        return step(rate)

    run._step = watched
    network = run.run()
    # half of 20 steps for 4 replacements: at 0, 2.5, 5 and 7.5
    expected = ["GGGR"] * 3 + ["GGRR"] * 2 + ["GRRR"] * 3 + ["RRRR"] * 12
    assert seen == expected
    assert mlp_activation(network) == "relu"
    assert mlp_activation(run.objective.teacher) == "gelu"


def test_a_plateau_replaces_early(tmp_path):
    options = {"steps": 75, "finish_share": 0.01, "plateau_steps": 10, "report_every": 5}
    run = trainer(tmp_path, learning_rate=1e-12, **options)
    run.progress.step = 20  # of 75: two blocks are due
    run.run()
    at = {replaced: step for step, _, replaced in reversed(losses(tmp_path))}
    # the first mean loss is of step 30, that of 40 is no better: the third block (due at 38
    # anyway); and that of 50 is no better than that of 40, while the fourth is due at 56
    assert at[4] == 50


def test_learning_rate_warms_up_stays_and_anneals():
    options = TrainOptions(steps=100, learning_rate=1.0, finish_share=0.5)
    assert options.learning_rate_at(0.015) == pytest.approx(0.5)
    assert options.learning_rate_at(0.1) == options.learning_rate_at(0.49) == 1
    assert options.learning_rate_at(0.75) == pytest.approx((1 + 1 / 200) / 2)
    assert options.learning_rate_at(1.0) == pytest.approx(1 / 200)


@pytest.mark.parametrize("budget", [{}, {"steps": 3, "minutes": 1.0}, {"steps": 0}])
def test_a_budget_is_needed(budget):
    with pytest.raises(IntswinError, match="budget"):
        TrainOptions(**budget)


def test_loss_terms():
    student, teacher = small_swin(1), small_swin(2)
    weights = LossWeights(logits=2, blocks=3, stages=5, labels=7, temperature=4)
    objective = BlockDistillation(student, teacher, weights).eval()
    images, targets = torch.randn(4, 3, 64, 64), torch.eye(3)[[0, 1, 2, 0]]
    loss, parts = objective(images, targets)
    own, taught = student(images), teacher(images)
    p, q = (taught / 4).softmax(1), (own / 4).softmax(1)
    kl = 16 * (p * (p.log() - q.log())).sum(1).mean()
    torch.testing.assert_close(parts[0], kl)
    assert parts[1] == 0  # nothing is replaced yet
    assert parts[2] > 0
    torch.testing.assert_close(parts[3], F.cross_entropy(own, targets))
    torch.testing.assert_close(loss, 2 * parts[0] + 5 * parts[2] + 7 * parts[3])
    objective.replaced.append("layers.1.blocks.0")
    unlabeled, parts = objective(images, None)
    assert parts[1] > 0
    assert parts[3] == 0
    assert unlabeled.requires_grad
    assert not any(m._forward_hooks for m in student.modules())


def test_feature_distances():
    taught = torch.tensor([[1.0, 0.0], [0.0, 3.0]])
    own = torch.tensor([[0.0, 2.0], [0.0, 1.0]])
    # squares 1, 4 by a variance of 1/2; 0, 4 by one of 9/2
    assert feature_distance(own, taught, "mse") == pytest.approx((2.5 / 0.5 + 2 / 4.5) / 2)
    assert feature_distance(own, taught, "cosine") == pytest.approx(1 - 0.5)


@pytest.mark.parametrize("feature", ["mse", "cosine"])
def test_a_student_that_is_the_teacher_has_no_loss(feature):
    objective = BlockDistillation(small_swin(), small_swin(), LossWeights(feature=feature)).eval()
    objective.replaced.extend(["layers.0.blocks.0"])
    loss, _ = objective(torch.randn(2, 3, 64, 64), None)
    assert abs(loss.item()) < 1e-5


def test_batches_are_a_function_of_the_step():
    run_a, run_b = (trainer("/nowhere").batches for _ in range(2))
    first, targets = run_a.part(5, 0, 1)
    torch.manual_seed(99)
    again, _ = run_b.part(5, 0, 1)
    assert torch.equal(first, again)
    halves = [run_b.part(5, i, 2) for i in range(2)]
    assert torch.equal(first, torch.cat([h[0] for h in halves]))
    assert torch.equal(targets, torch.cat([h[1] for h in halves]))
    assert not torch.equal(first, run_b.part(6, 0, 1)[0])


def test_an_epoch_sees_each_image_once():
    batches = trainer("/nowhere").batches
    seen = torch.cat([batches._chosen(step) for step in range(3)])
    assert sorted(seen.tolist()) == list(range(24))
    other = torch.cat([batches._chosen(step) for step in range(3, 6)])
    assert sorted(other.tolist()) == list(range(24))
    assert not torch.equal(seen, other)


@pytest.mark.parametrize("size", [0, 7, 26])
def test_a_batch_that_cannot_be_made_is_refused(size):
    batches = trainer("/nowhere").batches
    with pytest.raises(IntswinError, match="from 2 to 24"):
        Batches(batches.pixels, batches.augment, size, 0)


def test_accumulated_parts_train_like_one_batch(tmp_path):
    states = []
    for accumulate in (1, 2):
        folder = tmp_path / str(accumulate)
        folder.mkdir()
        run = trainer(folder, accumulate=accumulate, steps=4, double=True)
        states.append(run.run().state_dict())
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-4, atol=1e-6, msg=name)


def test_distillation_lowers_the_loss_without_labels(tmp_path):
    data = pixels(labeled=False)
    run = trainer(tmp_path, data=data, steps=60, schedule="all-at-once", learning_rate=3e-3)
    run.run()
    values = [loss for _, loss, _ in losses(tmp_path)]
    assert sum(values[-10:]) < 0.6 * sum(values[:10])
    top1, agreement = accuracy(run.ema.module, run.teacher, data)
    assert top1 is None
    assert 0 <= agreement <= 100


def test_dropped_biases(tmp_path):
    network = trainer(tmp_path, drop=True, steps=8).run()
    assert all(mlp.fc1.bias is None for mlp in mlps(network))


def test_early_stop(tmp_path, capsys):
    run = trainer(
        tmp_path, steps=1000, finish_share=0.999, learning_rate=1e-12, validate_every=1,
        early_stop=3, schedule="all-at-once",
    )  # fmt: skip
    run.run()
    assert run.progress.step == 4
    assert "stopped early" in capsys.readouterr().out


def test_nan_keeps_the_last_good_state(tmp_path):
    run = trainer(tmp_path, steps=9, save_every=2, report_every=100)
    step = run._step

    def poisoned(rate):
        if run.progress.step == 4:
            with torch.no_grad():
                next(run.network.parameters()).fill_(float("nan"))
        return step(rate)

    run._step = poisoned
    with pytest.raises(IntswinError, match=r"not finite at step 5; the last good state is in .*st"):
        run.run()
    kept = torch.load(run.state_path)
    assert kept["progress"]["step"] == 4
    assert all(v.isfinite().all() for v in kept["network"].values() if v.is_floating_point())


def test_a_gradient_that_is_not_finite_is_not_saved(tmp_path):
    """The loss of the step is finite; the weights after it are not."""
    run = trainer(tmp_path, steps=9, save_every=1)
    weight = next(run.network.parameters())
    weight.register_hook(lambda g: g / 0 if run.progress.step == 4 else g)
    with pytest.raises(IntswinError, match="not finite at step 5; the last good state is in"):
        run.run()
    kept = torch.load(run.state_path)
    assert kept["progress"]["step"] == 4
    assert all(v.isfinite().all() for v in kept["network"].values() if v.is_floating_point())


def test_a_new_run_has_a_new_log(tmp_path):
    for steps in (3, 2):
        trainer(tmp_path, steps=steps).run()
    assert [step for step, _, _ in losses(tmp_path)] == [1, 2]


def test_another_runs_state_is_refused(tmp_path):
    trainer(tmp_path, steps=2).run()
    with pytest.raises(IntswinError, match="made with another steps, learning_rate"):
        trainer(tmp_path, steps=3, learning_rate=9.0).load_state()
    (tmp_path / "state.pth").write_bytes(b"damaged")
    with pytest.raises(IntswinError, match="is not the state"):
        trainer(tmp_path).load_state()
    (tmp_path / "state.pth").unlink()
    with pytest.raises(IntswinError, match="no state to resume"):
        trainer(tmp_path).load_state()


def test_tensorboard_gets_the_curve(tmp_path):
    pytest.importorskip("tensorboard")
    trainer(tmp_path, steps=2, log_folder=tmp_path / "board").run()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "board"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2]


def start(folder, *, together=1, **options):
    folder.mkdir(exist_ok=True)
    command = [sys.executable]
    if together > 1:
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", together]
    command += [PROGRAM, folder, json.dumps(options)]
    return subprocess.Popen(
        list(map(str, command)), env=ENVIRONMENT, stderr=subprocess.PIPE, stdout=subprocess.PIPE
    )


def finish(process):
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr.decode()


def test_a_killed_run_goes_on_with_the_same_losses(tmp_path):
    """24 images are 3 steps an epoch; the state is of step 6 (replacing), the kill after 7."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    undisturbed = start(whole, save_every=2)
    process = start(killed, save_every=2, slow=0.3)
    deadline = time.monotonic() + 60
    log = killed / "state.jsonl"
    while time.monotonic() < deadline:
        if log.exists() and '"step": 7' in log.read_text():
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert torch.load(killed / "state.pth")["progress"]["step"] == 6
    finish(start(killed, save_every=2, resume=True))
    finish(undisturbed)
    assert [step for step, _, _ in losses(whole)] == list(range(1, 13))
    assert losses(killed) == losses(whole)  # equal floats, not close ones
    expected = torch.load(whole / "network.pth")
    for name, value in torch.load(killed / "network.pth").items():
        assert torch.equal(value, expected[name]), name


def test_two_processes_train_like_one(tmp_path):
    one = start(tmp_path / "one", steps=6, double=True)
    two = start(tmp_path / "two", steps=6, double=True, together=2)
    finish(one)
    finish(two)
    for (step, loss, _), (_, other, _) in zip(
        losses(tmp_path / "one"), losses(tmp_path / "two"), strict=True
    ):
        assert loss == pytest.approx(other, rel=1e-5), step
    expected = torch.load(tmp_path / "one" / "network.pth")
    moved = 0.0
    for name, value in small_swin().state_dict().items():
        if value.is_floating_point():
            moved = max(moved, float((value - expected[name]).abs().max()))
    assert moved > 1e-3  # the comparison below means something
    for name, value in torch.load(tmp_path / "two" / "network.pth").items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-6, msg=name)


def test_reconstruction_lowers_each_blocks_error(tmp_path):
    data, state = pixels(labeled=False), tmp_path / "state.pth"
    options = ReconstructOptions(steps=40, batch_size=8, learning_rate=1e-3)
    teacher, student = small_swin(), small_swin()
    others = {n: v.clone() for n, v in student.state_dict().items() if ".attn." in n}
    errors = reconstruct(student, teacher, data, options, state_path=state)
    assert mlp_activation(student) == "relu"
    assert [e.block for e in errors] == [f"layers.{i}.blocks.0" for i in range(4)]
    assert all(e.after < e.before for e in errors)
    for name, value in others.items():
        assert torch.equal(student.state_dict()[name], value)

    # going on after two blocks gives the same network
    kept = torch.load(state)
    partial = small_swin()
    interrupted = {"n": 0}

    def stop(line):
        interrupted["n"] += 1
        if interrupted["n"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reconstruct(partial, teacher, data, options, state_path=state, report=stop)
    resumed = small_swin()
    reconstruct(resumed, teacher, data, options, state_path=state, resume=True)
    for name, value in resumed.state_dict().items():
        torch.testing.assert_close(value, kept["student"][name], rtol=0, atol=0)


def test_reconstructed_blocks_may_have_layer_scale():
    torch.manual_seed(0)
    teacher, student = (
        VisionTransformer(64, 16, embed_dim=16, depth=1, num_heads=1, init_values=0.3)
        for _ in range(2)
    )
    student.load_state_dict(teacher.state_dict())
    data = pixels(labeled=False)
    (error,) = reconstruct(student, teacher, data, ReconstructOptions(steps=1, learning_rate=0.0))
    images = normalize(data.images, SMALL)
    with torch.no_grad(), outputs_of(student, ["blocks.0"]) as own:
        student(images)
    with torch.no_grad(), outputs_of(teacher, ["blocks.0"]) as taught:
        teacher(images)
    exact = taught["blocks.0"]
    relative = (own["blocks.0"] - exact).square().mean() / exact.var()
    assert error.after == pytest.approx(relative.item(), rel=1e-4)


def test_preprocess_is_the_networks():
    assert pixels().described.preprocess == SMALL

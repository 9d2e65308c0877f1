"""`intswin distill` as a command: end to end in small, and what users get wrong."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from image_files import photo, write_pack
from test_failures import check_failure

from command import run_forked
from intswin.compile.distill import DistillOptions
from intswin.models.errors import IntswinError
from intswin.models.swin import create_model, embedded_checkpoint

SMALL = ("--steps", 2, "--batch-size", 2, "--report-every", 1, "--device", "cpu", "--no-amp")


@pytest.fixture
def pack(tmp_path):
    return write_pack(tmp_path / "pack.npz", count=4, classes=10)


def test_unlabeled_photos_to_a_relu_network(tmp_path):
    (tmp_path / "photos").mkdir()
    for i in range(2):
        photo((224, 224), seed=i).save(tmp_path / "photos" / f"{i}.png")
    arguments = ("--data", "photos", "--schedule", "all-at-once", "--drop-fc1-bias")
    result = run_forked("distill", *arguments, *SMALL, "-o", "s.safetensors", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "2 unlabeled images" in result.stdout
    assert "labels 0.0000" in result.stdout
    card = json.loads((tmp_path / "s.json").read_text())
    assert card["activation"] == "relu"
    assert card["drop_fc1_bias"]
    checkpoint = tmp_path / "s.safetensors"
    create_model(activation="relu", drop_fc1_bias=True, checkpoint=checkpoint)


def test_wrong_input(tmp_path, pack):
    data = ("distill", "--data", "pack.npz", *SMALL, "-o", "s.safetensors")
    relu = embedded_checkpoint("relu")
    check_failure(tmp_path, "distill", says="--data")
    check_failure(tmp_path, *data, "--teacher", relu, says="already ReLU")
    check_failure(tmp_path, *data, "--student", relu, says="pass --qat")
    check_failure(
        tmp_path, *data, "--network", "swin_tiny_patch4_window7_224", "--teacher",
        embedded_checkpoint("gelu"), says="does not fit the network",
    )  # fmt: skip


@pytest.mark.parametrize("field", ["method", "schedule", "order"])
def test_unknown_choices_are_refused_before_anything_is_read(field):
    given = {"data": (Path("absent"),), "output": Path("s.safetensors"), field: "random"}
    with pytest.raises(IntswinError, match=f"unknown {field} 'random'; use one of: "):
        DistillOptions(**given)


def test_data_that_does_not_fit(tmp_path, pack):
    (tmp_path / "empty").mkdir()
    (tmp_path / "flat").mkdir()
    photo((224, 224)).save(tmp_path / "flat" / "a.png")
    write_pack(tmp_path / "three.npz", count=4, classes=3)
    data = ("distill", *SMALL, "-o", "s.safetensors", "--data")
    check_failure(tmp_path, *data, "empty", says="holds no photo")
    result = run_forked(*data, "three.npz", cwd=tmp_path)
    assert result.returncode == 2
    assert "3 classes and the network 10" in result.stderr
    result = run_forked(*data, "pack.npz", "--validation", "flat", cwd=tmp_path)
    assert result.returncode == 2
    assert "has no labels" in result.stderr


def test_a_loss_that_is_not_finite(tmp_path, pack):
    arguments = ("--learning-rate", 1e30, "--save-every", 1, "--steps", 6, "--batch-size", 2)
    result = run_forked(
        "distill", "--data", "pack.npz", *arguments, "--device", "cpu", cwd=tmp_path
    )
    assert result.returncode == 2, result.stderr
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert "not finite at step" in result.stderr
    assert "the last good state is in" in result.stderr


def test_too_little_memory(tmp_path):
    """A limit on private memory stands in for a small machine."""
    write_pack(tmp_path / "big.npz", count=64, classes=10)
    result = run_forked(
        "distill", "--data", "big.npz", "--steps", 1, "--batch-size", 64, "--device", "cpu",
        "--no-amp", cwd=tmp_path,
        limit=("RLIMIT_DATA", 3 << 30),
    )  # fmt: skip
    assert result.returncode == 2, result.stderr[-500:]
    assert "out of memory with 64 images a step; pass --batch-size 32" in result.stderr


@pytest.mark.slow
def test_the_experiment_writes_its_results(tmp_path, pack):
    script = Path(__file__).parents[2] / "scripts" / "experiment_distill.py"
    command = [
        sys.executable, script, "--data", pack, "--validation", pack, "--limit", "4", "--device",
        "cpu", "--steps", "2", "--batch-size", "2", "--qat-steps", "1", "--qat-rows", "one-shot",
        "--seeds", "0", "--rows", "GELU teacher", "one-shot",
        "--work", tmp_path / "work", "--results", tmp_path / "results",
    ]  # fmt: skip
    command = [str(argument) for argument in command]
    # out of time at once: nothing is lost, and nothing is made up
    stopped = subprocess.run(
        [*command, "--minutes", "0"], capture_output=True, text=True, check=False
    )
    assert stopped.returncode == 0, stopped.stderr
    assert "out of time" in stopped.stdout
    assert not (tmp_path / "results").exists()
    trained = subprocess.run(
        [*command, "--train-only"], capture_output=True, text=True, check=False
    )
    assert trained.returncode == 0, trained.stderr
    weights = (tmp_path / "work" / "one-shot_0.safetensors").read_bytes()
    assert not (tmp_path / "work" / "one-shot_0.json").exists()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "work" / "one-shot_0.safetensors").read_bytes() == weights
    # What was trained is not trained again: the only steps are those of the finish for integers.
    steps = [line for line in done.stdout.splitlines() if " step 1 " in line]
    assert len(steps) == 1
    assert "replaced 0/0" in steps[0]
    stem = tmp_path / "results" / "distill_swin_micro"
    rows = {r["row"]: r for r in json.loads(stem.with_suffix(".json").read_text())}
    assert set(rows) == {"GELU teacher", "one-shot"}
    assert {"float_top1", "int8_top1", "qat_int8_top1", "seconds"} <= set(rows["one-shot"])
    assert "| one-shot | 1 |" in stem.with_suffix(".md").read_text()
    assert stem.with_suffix(".png").stat().st_size > 5000

"""A few steps on synthetic photos: that it runs, learns, pauses and reloads, not how well."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from distill_program import SMALL, pixels, small_swin
from image_files import photo, write_pack
from timm import create_model as create_timm_model

from intswin.models.augment import Augment, random_resized_crop
from intswin.models.card import measure_card
from intswin.models.checkpoint import save_checkpoint
from intswin.models.distill_maps import Distillation, SwinStages, map_loss
from intswin.models.errors import IntswinError
from intswin.models.swin import create_model
from intswin.models.training import Photos, Recipe, Trainer, accuracy, load_photos

ROOT = Path(__file__).parents[2]


def photos(count):
    data = pixels(count)
    return Photos(data.images, data.labels)


def trainer(teacher, recipe):
    distillation = Distillation(
        small_swin(1),
        SwinStages(teacher),  # in MobileNetV2's place
        [0, 1, 2],
        label_weight=1.0,
        map_weight=1.0,
        temperature=1.0,
    )
    augment = Augment(SMALL, num_classes=3, crop_scale=0.5, magnitude=0, mix_probability=0.0)
    return Trainer(distillation, recipe, augment, "python train.py")


def recipe(**changes):
    fields = {
        "minutes": 0.05,
        "batch_size": 12,
        "learning_rate": 5e-3,
        "weight_decay": 0.01,
        "ema_decay": 0.9,
        "seed": 0,
        "compile": False,
        "report_every_s": 1.0,
    }
    return Recipe(**{**fields, **changes})


def test_the_student_learns_and_the_teacher_stays(tmp_path, capsys):
    teacher = small_swin(2)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    run = trainer(teacher, recipe(minutes=0.1))
    run.run(photos(36), photos(12), tmp_path / "state.pth")
    assert run.finished
    for name, value in teacher.state_dict().items():
        assert torch.equal(value, before[name]), name
    top1, top5 = accuracy(run.ema.module, photos(30), SMALL)
    assert top1 > 60  # a guess is right once in three
    assert top5 == 100  # of three classes
    assert "validation top-1" in capsys.readouterr().out


def test_a_paused_run_goes_on_from_its_state(tmp_path):
    state = tmp_path / "state.pth"
    first = trainer(small_swin(2), recipe(minutes=0.1, pause_after_minutes=0.02))
    first.run(photos(36), photos(12), state)
    assert not first.finished
    second = trainer(small_swin(2), recipe(minutes=0.1))
    second.load_state(state)
    assert (second.step, second.elapsed_s) == (first.step, first.elapsed_s)
    assert second.commands == ["python train.py"] * 2
    for name, value in first.ema.module.state_dict().items():
        assert torch.equal(second.ema.module.state_dict()[name], value), name
    second.run(photos(36), photos(12), state)
    assert second.finished
    assert second.step > first.step


def test_weights_that_are_not_finite_are_not_kept(tmp_path):
    path = tmp_path / "state.pth"
    first = trainer(small_swin(2), recipe(pause_after_minutes=0.0))
    first.run(photos(36), photos(12), path)
    kept = path.read_bytes()
    second = trainer(small_swin(2), recipe(learning_rate=1e30, pause_after_minutes=0.005))
    with pytest.raises(IntswinError, match=r"not finite .* \(the last good state is in .*state"):
        second.run(photos(36), photos(12), path)
    assert path.read_bytes() == kept


def test_a_foreign_state_is_refused(tmp_path):
    path = tmp_path / "state.pth"
    torch.save({"student": {}}, path)
    with pytest.raises(IntswinError, match="is not a state of this run"):
        trainer(small_swin(2), recipe()).load_state(path)


@pytest.mark.parametrize("batch_size", [7, 40])
def test_a_batch_that_cannot_be_made_is_refused(tmp_path, batch_size):
    run = trainer(small_swin(2), recipe(batch_size=batch_size))
    with pytest.raises(IntswinError, match="at most 36"):
        run.run(photos(36), photos(12), tmp_path / "state.pth")


def test_augmentation_keeps_shapes_and_mixes_labels():
    data = photos(36)
    inputs, targets = Augment(SMALL, num_classes=3, mix_probability=1.0)(data.images, data.labels)
    assert inputs.shape == (36, 3, 64, 64)
    assert inputs.dtype == torch.float32
    assert inputs.abs().max() <= 1 + 1e-6
    torch.testing.assert_close(targets.sum(1), torch.ones(36))
    assert (targets.max(1).values < 1).any()


def test_the_whole_image_is_cropped_or_flipped_exactly():
    images = photos(16).images
    torch.manual_seed(0)
    cropped = random_resized_crop(images, 64, smallest=1.0)
    # The aspect still varies, so only boxes clamped to the whole image come back exactly.
    same = [
        torch.equal(a, b) or torch.equal(a, b.flip(-1))
        for a, b in zip(cropped, images, strict=True)
    ]
    assert cropped.shape == images.shape
    assert not all(same)
    assert cropped.float().mean() == pytest.approx(images.float().mean().item(), abs=3)


def test_map_loss_is_one_minus_the_correlation():
    torch.manual_seed(0)
    own, taught = torch.randn(2, 5, 64), torch.randn(2, 5, 64)
    stacked = [
        torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(own[0], taught[0], strict=True)
    ]
    expected = 1 - torch.stack(stacked).mean()
    torch.testing.assert_close(map_loss(own[:1], taught[:1]), expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(map_loss(own, own * 3 + 1), torch.tensor(0.0), rtol=0, atol=1e-4)


def test_swin_stages_give_the_networks_own_logits():
    model = small_swin(1).eval()
    images = torch.randn(2, 3, 64, 64)
    logits, maps = SwinStages(model)(images)
    torch.testing.assert_close(logits, model(images))
    assert [tuple(m.shape) for m in maps] == [(2, 8, 8, 16), (2, 4, 4, 32), (2, 2, 2, 64)]


def test_photos_without_labels_or_of_other_classes_are_refused(tmp_path):
    flat = tmp_path / "flat"
    flat.mkdir()
    photo((64, 64)).save(flat / "a.png")
    with pytest.raises(IntswinError, match="has no labels"):
        load_photos([flat], SMALL, "cpu", None)
    packs = [write_pack(tmp_path / f"{n}.npz", classes=n, size=64) for n in (2, 3)]
    with pytest.raises(IntswinError, match="has other classes than"):
        load_photos(packs, SMALL, "cpu", None)


def script(name, *arguments):
    command = [sys.executable, ROOT / "scripts" / name, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_teacher_from_pack_to_card(tmp_path):
    pack = write_pack(tmp_path / "pack.npz", count=6, classes=3, index=[5, 9, 700])
    mobilenet = tmp_path / "mobilenet.safetensors"
    save_checkpoint(create_timm_model("mobilenetv2_100"), mobilenet)
    gelu = tmp_path / "gelu.safetensors"
    arguments = ["--training-packs", pack, "--validation-pack", pack, "--state", tmp_path / "s.pth"]
    arguments += ["--minutes", 0.02, "--batch-size", 4, "--device", "cpu", "--no-compile"]
    done = script("train_teacher.py", *arguments, "--teacher", mobilenet, "--output", gelu)
    assert done.returncode == 0, done.stderr
    assert "nan" not in done.stdout
    card = json.loads(gelu.with_suffix(".json").read_text())
    assert card["activation"] == "gelu"
    assert card["imagenet1k_index"] == [5, 9, 700]
    assert card["accuracy"]["images"] == 6
    assert 0 <= card["accuracy"]["top1_percent"] <= 100
    create_model(activation="gelu", num_classes=3, checkpoint=gelu)


def test_a_missing_card_is_refused(tmp_path):
    with pytest.raises(IntswinError, match=r"no card of none\.pth can be read there"):
        measure_card(tmp_path / "none.pth", tmp_path / "pack.npz")


def test_a_missing_teacher_is_one_line_and_exit_code_2(tmp_path):
    pack = write_pack(tmp_path / "pack.npz", count=4, classes=2, index=[1, 2])
    arguments = ["--training-packs", pack, "--validation-pack", pack, "--teacher", "none.pth"]
    arguments += ["--output", tmp_path / "o.safetensors", "--state", tmp_path / "s.pth"]
    done = script("train_teacher.py", *arguments, "--device", "cpu")
    assert done.returncode == 2
    assert done.stderr == (
        "error: none.pth: no such checkpoint; give a .safetensors or .pth file\n"
    )

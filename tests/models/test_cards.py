"""The embedded checkpoints are what their cards say."""

import json
import os
from pathlib import Path

import pytest
import torch

from intswin.models.data import open_images
from intswin.models.preprocess import Preprocess, load_image
from intswin.models.swin import ASSETS, create_model, embedded_checkpoint, model_preprocess

PHOTOS = ASSETS / "photos"


CHECKPOINTS = sorted(ASSETS.glob("*.safetensors"))


@pytest.fixture(params=CHECKPOINTS, ids=lambda path: path.stem)
def checkpoint(request):
    return request.param


@pytest.fixture
def card(checkpoint):
    return json.loads(checkpoint.with_suffix(".json").read_text())


@pytest.fixture
def model(checkpoint, card):
    return create_model(
        card["network"],
        activation=card["activation"],
        num_classes=len(card["classes"]),
        checkpoint=checkpoint,
    )


def test_all_are_there():
    assert {embedded_checkpoint("gelu"), embedded_checkpoint("relu")} < set(CHECKPOINTS)
    assert all(path.stat().st_size < 30_000_000 for path in CHECKPOINTS)


def test_the_card_describes_the_network(card, model):
    assert sum(p.numel() for p in model.parameters()) == card["parameters"]
    assert model.head.fc.out_features == len(card["classes"]) == len(card["wordnet_ids"])
    assert Preprocess.from_json(card["preprocess"]) == model_preprocess(model)
    assert "non-commercial" in card["provenance"]


@pytest.mark.data
def test_accuracy_on_a_part_of_the_validation_pack(card, model):
    folder = os.environ.get("INTSWIN_DATA")
    if not folder:
        pytest.skip("INTSWIN_DATA names no folder with the Imagenette packs")
    preprocess = Preprocess.from_json(card["preprocess"])
    images = open_images(Path(folder) / card["accuracy"]["pack"], preprocess, 200)
    with torch.inference_mode():
        logits = model(torch.from_numpy(preprocess.normalize(images.decode())))
    top1 = 100 * (logits.argmax(1).numpy() == images.labels).mean()
    # 200 of 1959 images: three standard deviations of the difference are under 4 points.
    assert abs(top1 - card["accuracy"]["top1_percent"]) < 4


@pytest.mark.parametrize("checkpoint", [*map(embedded_checkpoint, ("gelu", "relu"))], indirect=True)
@pytest.mark.parametrize("photo", sorted(PHOTOS.glob("*.jpg")), ids=lambda path: path.stem)
def test_demo_photos_are_licensed_small_and_recognized(card, model, photo):
    assert f"`{photo.name}`" in (PHOTOS / "LICENSES.md").read_text()
    assert photo.stat().st_size < 200_000
    preprocess = Preprocess.from_json(card["preprocess"])
    pixels = load_image(photo, preprocess)
    with torch.inference_mode():
        logits = model(torch.from_numpy(preprocess.normalize(pixels[None])))
    if not photo.stem.startswith("temple"):  # none of the network's classes
        expected = "garbage truck" if photo.stem == "garbage_truck" else "church"
        assert card["classes"][logits.argmax()] == expected

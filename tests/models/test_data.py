import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from image_files import photo, write_pack
from PIL import Image

from intswin.models.data import open_images
from intswin.models.errors import IntswinError
from intswin.models.preprocess import Preprocess, load_image

SMALL = Preprocess(image_size=32, crop_pct=0.8)


def test_an_image_of_the_networks_size_is_used_as_it_is(tmp_path):
    original = photo((32, 32))
    original.save(tmp_path / "a.png")
    np.testing.assert_array_equal(load_image(tmp_path / "a.png", SMALL), np.asarray(original))


@pytest.mark.parametrize("size", [(100, 50), (50, 100), (33, 32), (8, 9), (1000, 20)])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "CMYK"])
def test_any_size_and_mode_become_rgb_of_the_networks_size(tmp_path, size, mode):
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    photo(size, mode=mode).save(path)
    pixels = load_image(path, SMALL)
    assert pixels.shape == (32, 32, 3)
    assert pixels.dtype == np.uint8


def test_resize_keeps_the_aspect_and_crops_the_center(tmp_path):
    # 80 x 40: the shortest side becomes 32 / 0.8 = 40, so nothing is resized and the center 32 is
    # columns 24 to 55 and rows 4 to 35.
    original = np.asarray(photo((80, 40)))
    Image.fromarray(original).save(tmp_path / "a.png")
    pixels = load_image(tmp_path / "a.png", SMALL)
    np.testing.assert_array_equal(pixels, original[4:36, 24:56])


def test_what_is_no_image_is_refused(tmp_path):
    text, cut = tmp_path / "a.jpg", tmp_path / "b.jpg"
    text.write_text("not an image")
    photo((64, 64)).save(cut)
    cut.write_bytes(cut.read_bytes()[:800])
    for path, message in [
        (text, "is not an image"),
        (cut, "is not an image"),
        (tmp_path / "none.jpg", "no such file"),
        (tmp_path, "is a folder"),
    ]:
        with pytest.raises(IntswinError, match=message) as caught:
            load_image(path, SMALL)
        assert str(path) in str(caught.value)


def test_preprocess_survives_json_and_refuses_nonsense():
    assert Preprocess.from_json(SMALL.to_json()) == SMALL
    for wrong in ({"mean": [1, 2]}, {"interpolation": "magic"}, {"image_size": None}):
        with pytest.raises(IntswinError):
            Preprocess.from_json({**SMALL.to_json(), **wrong})
    with pytest.raises(IntswinError, match="image_size"):
        Preprocess.from_json({})


def test_normalize_is_the_formula():
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), np.uint8)
    expected = (images / 255 - SMALL.mean) / SMALL.std
    normalized = SMALL.normalize(images)
    assert normalized.dtype == np.float32
    np.testing.assert_allclose(normalized, expected.transpose(0, 3, 1, 2), rtol=1e-5, atol=1e-6)


def test_a_pack_is_read_in_order(tmp_path):
    images = open_images(write_pack(tmp_path / "p.npz", count=7, size=32, index=[3, 1, 2]), SMALL)
    assert len(images) == 7
    assert images.classes == ["class 0", "class 1", "class 2"]
    assert images.wordnet_ids == ["n00000000", "n00000001", "n00000002"]
    assert images.imagenet1k_index == [3, 1, 2]
    assert images.labels.dtype == np.int64
    batches = list(images.batches(3))
    assert [len(batch) for batch in batches] == [3, 3, 1]
    np.testing.assert_array_equal(np.concatenate(batches), images.decode())
    np.testing.assert_array_equal(images.decode([5])[0], images.decode()[5])


def test_a_limit_is_spread_over_the_classes(tmp_path):
    path = write_pack(tmp_path / "p.npz", count=12, size=32)
    few, again = open_images(path, SMALL, 3), open_images(path, SMALL, 3)
    assert few.labels.tolist() == [0, 1, 2]
    np.testing.assert_array_equal(few.decode(), again.decode())
    assert len(open_images(path, SMALL, 100)) == 12
    with pytest.raises(IntswinError, match="at least 1"):
        open_images(path, SMALL, 0)


def test_class_folders_are_read_as_torchvision_does(tmp_path):
    from torchvision.datasets import ImageFolder

    for i, name in enumerate(["b/1.jpg", "b/2.PNG", "a/deep/3.jpg", "a/1.jpeg", "c/0.jpg"]):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        photo((40, 40), seed=i).save(path)
    (tmp_path / "a" / "notes.txt").write_text("no photo")
    images, expected = open_images(tmp_path, SMALL), ImageFolder(tmp_path)
    assert images.classes == expected.classes
    assert sorted(zip(map(str, images.files), images.labels.tolist(), strict=True)) == sorted(
        expected.samples
    )


def test_a_flat_folder_has_no_labels(tmp_path):
    photo((40, 40)).save(tmp_path / "a.jpg")
    images = open_images(tmp_path, SMALL)
    assert images.labels is None
    assert images.classes == []
    assert images.decode().shape == (1, 32, 32, 3)


def test_nothing_to_read_is_refused(tmp_path):
    for path, message in [(tmp_path, "holds no photo"), (tmp_path / "x.npz", "no such file")]:
        with pytest.raises(IntswinError, match=message):
            open_images(path, SMALL)


def test_a_corrupt_pack_is_refused(tmp_path):
    whole = write_pack(tmp_path / "p.npz", size=32)
    arrays = dict(np.load(whole))
    broken = tmp_path / "broken.npz"
    changes = [
        {"offsets": arrays["offsets"][:-1]},
        {"labels": arrays["labels"] + 2},
        {"labels": arrays["labels"][:-1]},
        {"data": arrays["data"][:-1]},
        {"meta": np.array(b"{")},
    ]
    for change in changes:
        np.savez(broken, **{**arrays, **change})
        with pytest.raises(IntswinError, match=r"broken\.npz"):
            open_images(broken, SMALL)
    broken.write_bytes(whole.read_bytes()[:-200])
    with pytest.raises(IntswinError, match=r"broken\.npz"):
        open_images(broken, SMALL)
    broken.write_text("text")
    with pytest.raises(IntswinError, match=r"broken\.npz"):
        open_images(broken, SMALL)
    noise = np.zeros_like(arrays["data"])
    np.savez(broken, **{**arrays, "data": noise})
    with pytest.raises(IntswinError, match="image 0 cannot be decoded"):
        open_images(broken, SMALL).decode()


def test_reading_images_does_not_import_torch():
    code = "import sys, intswin.models.data; assert not {'torch', 'timm'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.data
def test_the_validation_pack():
    folder = os.environ.get("INTSWIN_DATA")
    if not folder:
        pytest.skip("INTSWIN_DATA names no folder with the Imagenette packs")
    images = open_images(Path(folder) / "imagenette2_224_val.npz", Preprocess(), 20)
    assert images.labels.tolist() == [i // 2 for i in range(20)] or len(set(images.labels)) == 10
    assert images.classes[4] == "church"
    assert images.decode().shape == (20, 224, 224, 3)

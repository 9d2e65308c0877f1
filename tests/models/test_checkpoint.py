from pathlib import Path

import pytest
import torch
from timm.models import SwinTransformer

from intswin.models.checkpoint import load_checkpoint, save_checkpoint
from intswin.models.errors import IntswinError
from intswin.models.swin import create_model


def tiny(num_classes=4, window_size=4, embed_dim=8):
    """A Swin of two stages, quick to build."""
    torch.manual_seed(0)
    return SwinTransformer(
        img_size=32,
        num_classes=num_classes,
        embed_dim=embed_dim,
        depths=(2, 1),
        num_heads=(1, 2),
        window_size=window_size,
    )


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_what_is_saved_is_loaded(tmp_path, suffix):
    model, path = tiny(), tmp_path / f"net{suffix}"
    save_checkpoint(model, path)
    other = tiny()
    torch.nn.init.zeros_(other.head.fc.weight)
    load_checkpoint(other, path)
    for name, value in model.state_dict().items():
        loaded = other.state_dict()[name]
        assert loaded.dtype == value.dtype
        torch.testing.assert_close(loaded, value.half().to(value.dtype), rtol=0, atol=0)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_eight_bit_weights(tmp_path, suffix):
    model, path = tiny(embed_dim=32), tmp_path / f"net{suffix}"
    save_checkpoint(model, path, torch.int8)
    half = tmp_path / f"half{suffix}"
    save_checkpoint(model, half)
    assert path.stat().st_size < 0.65 * half.stat().st_size
    other = load_checkpoint(tiny(embed_dim=32), path)
    for name, value in model.state_dict().items():
        loaded = other.state_dict()[name]
        if name.endswith("weight") and value.ndim > 1:
            step = value.flatten(1).abs().amax(1, keepdim=True) / 127
            assert ((loaded - value).flatten(1).abs() <= 0.501 * step).all(), name
        else:
            torch.testing.assert_close(loaded, value.half().to(value.dtype), rtol=0, atol=0)
    # what was stored in 8 bits is stored the same way again
    again = tmp_path / f"again{suffix}"
    save_checkpoint(other, again, torch.int8)
    for first, second in zip(
        load_checkpoint(tiny(embed_dim=32), again).parameters(), other.parameters(), strict=True
    ):
        torch.testing.assert_close(first, second, rtol=1e-6, atol=0)


@pytest.mark.parametrize("nested", ["model", "state_dict"])
def test_nested_and_prefixed_state_dicts_are_read(tmp_path, nested):
    model, path = tiny(), tmp_path / "net.pth"
    state = {f"module.{name}": value + 1 for name, value in model.state_dict().items()}
    torch.save({nested: state, "epoch": 3}, path)
    other = load_checkpoint(tiny(), path)
    torch.testing.assert_close(other.norm.weight, model.norm.weight + 1)


def save(tmp_path, model):
    path = tmp_path / "net.safetensors"
    save_checkpoint(model, path)
    return path


def refused(model, path):
    with pytest.raises(IntswinError) as caught:
        load_checkpoint(model, path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def test_wrong_class_count_names_both_and_the_flag(tmp_path):
    message = refused(tiny(num_classes=4), save(tmp_path, tiny(num_classes=6)))
    assert "head.fc.weight has 6 classes, the network has 4; pass --num-classes 6" in message


def test_another_width_and_another_network(tmp_path):
    path = save(tmp_path, tiny(embed_dim=16))
    assert "patch_embed.proj.weight is (16, 3, 4, 4)" in refused(tiny(), path)
    assert "it has no cls_token" in refused(create_model("deit_tiny_patch16_224"), path)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("keep", [0, 5, 2000, -100])
def test_truncated_file(tmp_path, suffix, keep):
    path = tmp_path / f"net{suffix}"
    save_checkpoint(tiny(), path)
    path.write_bytes(path.read_bytes()[:keep])
    assert "truncated" in refused(tiny(), path)


def test_missing_file_unknown_suffix_and_no_state_dict(tmp_path):
    assert "no such checkpoint" in refused(tiny(), tmp_path / "none.pth")
    other = tmp_path / "net.h5"
    other.write_bytes(b"x")
    assert "suffix" in refused(tiny(), other)
    scalar = tmp_path / "net.pth"
    torch.save([1, 2], scalar)
    assert "holds no state dict" in refused(tiny(), scalar)


def test_pickled_code_is_not_run(tmp_path):
    path, victim = tmp_path / "net.pth", tmp_path / "victim"

    class Evil:
        def __reduce__(self):
            return (victim.touch, ())

    torch.save({"weight": Evil()}, path)
    refused(tiny(), path)
    assert not victim.exists()


def test_fc1_biases_are_left_out_but_not_invented(tmp_path):
    options = {"activation": "relu", "drop_fc1_bias": True}
    full = tmp_path / "full.safetensors"
    save_checkpoint(create_model(activation="relu", seed=1), full)
    dropped = create_model(checkpoint=full, **options)
    path = save(tmp_path, dropped)
    assert "pass --drop-fc1-bias" in refused(create_model(activation="relu"), path)
    create_model(checkpoint=path, **options)


def test_an_unwritable_place_is_one_line_and_leaves_nothing(tmp_path):
    with pytest.raises(IntswinError, match="suffix"):
        save_checkpoint(tiny(), tmp_path / "net.h5")
    occupied = tmp_path / "net.safetensors"
    occupied.mkdir()
    with pytest.raises(IntswinError, match="cannot write"):
        save_checkpoint(tiny(), occupied)
    with pytest.raises(IntswinError, match="cannot write"):
        save_checkpoint(tiny(), Path("/proc/net.safetensors"))
    assert list(tmp_path.iterdir()) == [occupied]

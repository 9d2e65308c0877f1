"""Build a network by its timm name, or our own ``swin_micro``.

``swin_micro`` is Swin in small: the four stages, shifted windows of 7 and relative position bias of
Swin-T at a third of its width, so that training, compiling and testing take minutes. It is built
from timm's SwinTransformer; no network code is ours.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import resolve_model_data_config
from timm.models import SwinTransformer
from torch import nn

from intswin.models.activation import replace_activation
from intswin.models.checkpoint import load_checkpoint
from intswin.models.errors import IntswinError
from intswin.models.preprocess import Preprocess

SWIN_MICRO = "swin_micro"
# Mean and std of 0.5 map pixels to [-1, 1], the input that the MobileNetV2 teacher reads too, and
# nearly fill a symmetric int8.
MICRO_PREPROCESS = Preprocess(
    image_size=224,
    crop_pct=0.95,
    interpolation="bicubic",
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
)
ASSETS = Path(__file__).parent / "assets"


def embedded_checkpoint(activation: str) -> Path:
    """The packaged ``swin_micro`` trained with ``"gelu"`` or ``"relu"`` MLPs (10 classes)."""
    return ASSETS / f"swin_micro_{activation}.safetensors"


def create_model(
    name: str = SWIN_MICRO,
    *,
    activation: str = "gelu",
    num_classes: int | None = None,
    checkpoint: str | Path | None = None,
    pretrained: bool = False,
    drop_fc1_bias: bool = False,
    drop_path_rate: float = 0.0,
    seed: int = 0,
) -> nn.Module:
    """Build a network in eval mode: float32 (N, 3, S, S) -> float32 (N, num_classes) logits.

    ``name`` is ``swin_micro`` or any timm Swin, ViT or DeiT. Weights come from ``checkpoint`` (a
    file, or ``"embedded"`` for the packaged swin_micro of this activation), from timm's hub with
    ``pretrained``, or else from ``seed``, the same ones each time. Raises IntswinError when the
    name is unknown, the checkpoint does not fit, or the hub does not answer.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _build(name, num_classes, pretrained, drop_path_rate)
    # timm's fused attention would hide the matmuls and the softmax that we quantize.
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            setattr(module, "fused_attn", False)  # noqa: B010 - nn.Module's types allow no bool
    replace_activation(model, activation, drop_fc1_bias)
    if checkpoint == "embedded":
        if name != SWIN_MICRO:
            raise IntswinError(f"the embedded checkpoint is a {SWIN_MICRO}, not a {name}")
        checkpoint = embedded_checkpoint(activation)
    if checkpoint is not None:
        load_checkpoint(model, checkpoint)
    return model.eval()


def with_fused_attention(model: nn.Module) -> nn.Module:
    """The same network with scaled dot product attention, timm's default: for speed in PyTorch."""
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            setattr(module, "fused_attn", True)  # noqa: B010 - nn.Module's types allow no bool
    return model


def model_preprocess(model: nn.Module) -> Preprocess:
    """The preprocessing that the network was trained with, as timm's configuration gives it."""
    config = resolve_model_data_config(model)
    return Preprocess(
        image_size=config["input_size"][-1],
        crop_pct=config["crop_pct"],
        interpolation=config["interpolation"],
        mean=config["mean"],
        std=config["std"],
    )


def _build(
    name: str, num_classes: int | None, pretrained: bool, drop_path_rate: float
) -> nn.Module:
    if name == SWIN_MICRO:
        if pretrained:
            raise IntswinError(f"no hub has a {SWIN_MICRO}; pass --checkpoint embedded")
        return _swin_micro(10 if num_classes is None else num_classes, drop_path_rate)
    if not timm.is_model(name):
        close = ", ".join(timm.list_models(f"{name.split('_', 1)[0]}_*")[:3]) or SWIN_MICRO
        raise IntswinError(f"unknown network {name!r}; use {SWIN_MICRO} or a timm name: {close}")
    options: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
    try:
        return timm.create_model(
            name, pretrained=pretrained, drop_path_rate=drop_path_rate, **options
        )
    except Exception as error:
        if not pretrained:
            raise
        # The hub client raises a dozen unrelated types when there is no network.
        raise IntswinError(
            f"timm's pretrained weights of {name} cannot be had ({type(error).__name__}); "
            "pass --checkpoint with a file"
        ) from error


def _swin_micro(num_classes: int, drop_path_rate: float) -> nn.Module:
    model = SwinTransformer(
        img_size=MICRO_PREPROCESS.image_size,
        patch_size=4,
        num_classes=num_classes,
        embed_dim=32,
        depths=(2, 2, 6, 2),
        num_heads=(1, 2, 4, 8),
        window_size=7,
        drop_path_rate=drop_path_rate,
    )
    config = {
        "input_size": (3, MICRO_PREPROCESS.image_size, MICRO_PREPROCESS.image_size),
        "crop_pct": MICRO_PREPROCESS.crop_pct,
        "interpolation": MICRO_PREPROCESS.interpolation,
        "mean": MICRO_PREPROCESS.mean,
        "std": MICRO_PREPROCESS.std,
    }
    setattr(model, "pretrained_cfg", config)  # noqa: B010 - where timm looks for it
    return model

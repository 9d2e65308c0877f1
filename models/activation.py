"""Swap the activation of a network's MLPs, and nothing else.

The paper's point: GELU in every Swin MLP becomes ReLU, which an integer GEMM does for free in its
epilogue. The swap alone costs accuracy; ``distill.py`` wins it back. Only timm's ``Mlp`` is looked
for, which Swin, ViT and DeiT share.
"""

from __future__ import annotations

from typing import Literal

from timm.layers import Mlp
from torch import nn

from intswin.models.errors import IntswinError

Activation = Literal["gelu", "relu"]
ACTIVATIONS: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "relu": nn.ReLU}


def mlps(model: nn.Module) -> list[Mlp]:
    """The network's MLPs in the order in which they run; IntswinError when it has none."""
    found = [module for module in model.modules() if isinstance(module, Mlp)]
    if not found:
        raise IntswinError(f"{type(model).__name__} has no timm Mlp; give a Swin, ViT or DeiT")
    return found


def replace_activation(model: nn.Module, activation: str, drop_fc1_bias: bool = False) -> nn.Module:
    """Set the activation of every MLP to ``"relu"`` or ``"gelu"``, in place; returns the model.

    ``drop_fc1_bias`` removes the bias before the activation as well: the paper fuses it with GELU
    and removes both. It is offered with ReLU alone. Raises IntswinError on an unknown activation.
    """
    if activation not in ACTIVATIONS:
        raise IntswinError(f"unknown activation {activation!r}; use gelu or relu")
    if drop_fc1_bias and activation != "relu":
        raise IntswinError("the fc1 bias can be dropped with ReLU only; use the activation relu")
    for mlp in mlps(model):
        mlp.act = ACTIVATIONS[activation]()
        if drop_fc1_bias:
            mlp.fc1.bias = None
    return model


def mlp_activation(model: nn.Module) -> str:
    """``"relu"`` or ``"gelu"``, or IntswinError when the MLPs have another, or not all the same."""
    kinds = {type(mlp.act) for mlp in mlps(model)}
    for name, kind in ACTIVATIONS.items():
        if kinds == {kind}:
            return name
    found = ", ".join(sorted(kind.__name__ for kind in kinds))
    raise IntswinError(f"the MLPs' activation is {found}; use replace_activation first")

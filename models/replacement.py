"""Which activations are replaced when: the order of iterative distillation.

The paper replaces GELU by ReLU iteratively and does not publish its order, so the order is a
parameter here: block by block or stage by stage, from either end, or everything at once (the
one-shot that iterative distillation is compared with).
"""

from __future__ import annotations

from timm.layers import Mlp
from torch import nn

from intswin.models.errors import IntswinError

SCHEDULES = ("block", "stage", "all-at-once")
ORDERS = ("shallow-to-deep", "deep-to-shallow")


def blocks(model: nn.Module) -> list[str]:
    """Names of the modules that own an MLP, shallow first, such as "layers.2.blocks.5"."""
    found = [
        name.removesuffix(".mlp")
        for name, module in model.named_modules()
        if isinstance(module, Mlp) and name.endswith(".mlp")
    ]
    if not found:
        raise IntswinError(f"{type(model).__name__} has no transformer block; give a Swin or ViT")
    return found


def check_schedule(schedule: str, order: str) -> None:
    """Raise IntswinError when they are not of SCHEDULES and ORDERS."""
    if schedule not in SCHEDULES:
        raise IntswinError(f"unknown schedule {schedule!r}; use one of: {', '.join(SCHEDULES)}")
    if order not in ORDERS:
        raise IntswinError(f"unknown order {order!r}; use one of: {', '.join(ORDERS)}")


def replacement_steps(model: nn.Module, schedule: str, order: str) -> list[list[str]]:
    """Blocks to replace together, in the order of replacement.

    Args:
        model: a network whose blocks all have GELU.
        schedule: one of SCHEDULES; a stage is what shares a parent, such as "layers.2".
        order: one of ORDERS; of no effect on "all-at-once".

    Raises:
        IntswinError: unknown schedule or order.
    """
    check_schedule(schedule, order)
    names = blocks(model)
    if schedule == "all-at-once":
        return [names]
    steps = [[name] for name in names]
    if schedule == "stage":
        stages = dict.fromkeys(name.rsplit(".blocks", 1)[0] for name in names)
        steps = [[n for n in names if n.rsplit(".blocks", 1)[0] == stage] for stage in stages]
    return steps if order == "shallow-to-deep" else steps[::-1]


def replace_blocks(model: nn.Module, names: list[str], drop_fc1_bias: bool) -> None:
    """Set the activation of these blocks to ReLU, in place, and drop fc1's bias if asked."""
    for name in names:
        mlp = model.get_submodule(f"{name}.mlp")
        assert isinstance(mlp, Mlp)
        mlp.act = nn.ReLU()
        if drop_fc1_bias:
            mlp.fc1.bias = None

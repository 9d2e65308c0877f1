"""Label-free reconstruction of one block after the other, for users without a training set.

After APHQ-ViT's MLP reconstruction (arXiv 2504.02508): on about 1024 unlabeled images, fc1, fc2 and
norm2 of a block with ReLU are trained to give the original block's output, by Adam on a cosine.
Different from it: a block reads what the already reconstructed blocks give, so that it corrects
their error too, and ReLU's output is not clamped at a percentile.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from intswin.models.augment import normalize
from intswin.models.distill_data import Pixels
from intswin.models.errors import IntswinError
from intswin.models.files import write_atomically
from intswin.models.memory import too_little_memory
from intswin.models.replacement import blocks, replace_blocks

FORWARD_BATCH = 64


@dataclass(frozen=True)
class ReconstructOptions:
    """How each block is trained; `steps` are those of one block."""

    steps: int = 1000
    batch_size: int = 32
    learning_rate: float = 4e-4
    seed: int = 0


@dataclass(frozen=True)
class BlockError:
    """Squared error of a block's output relative to its variance, before and after training."""

    block: str
    before: float
    after: float


def reconstruct(
    student: nn.Module,
    teacher: nn.Module,
    pixels: Pixels,
    options: ReconstructOptions,
    *,
    drop_fc1_bias: bool = False,
    state_path: Path | None = None,
    resume: bool = False,
    report: Callable[[str], None] = print,
) -> list[BlockError]:
    """Replace every activation of the student by ReLU and reconstruct its blocks, in place.

    Args:
        student: a copy of the teacher.
        teacher: the network with GELU.
        pixels: images; labels are not looked at.
        options: how each block is trained.
        drop_fc1_bias: remove the bias before each ReLU.
        state_path: is written after each block.
        resume: go on from `state_path`.
        report: is given a line for each block.

    Raises:
        IntswinError: the error is not finite, the memory too small, or the state not this run's.
    """
    names = blocks(student)
    errors: list[BlockError] = []
    if resume:
        errors = _load(student, state_path, names, drop_fc1_bias)
    count = len(pixels.images)
    fewer = 1024 if count > 1024 else max(1, count // 2)
    advice = f"out of memory with {count} images; pass --limit {fewer}"
    for index, name in enumerate(names):
        if index < len(errors):
            continue
        with too_little_memory(advice):
            inputs, wanted = _block_data(student, teacher, pixels, name)
            replace_blocks(student, [name], drop_fc1_bias)
            error = _train_block(student.get_submodule(name), inputs, wanted, options, index)
        errors.append(BlockError(name, *error))
        report(f"{name}: relative error {error[0]:.5f} -> {error[1]:.5f}")
        if state_path is not None:
            state = {
                "student": student.state_dict(),
                "errors": [(e.block, e.before, e.after) for e in errors],
            }
            write_atomically(state_path, partial(torch.save, state))
    return errors


def _load(
    student: nn.Module, path: Path | None, names: list[str], drop_fc1_bias: bool
) -> list[BlockError]:
    if path is None or not path.exists():
        raise IntswinError(f"{path}: no state to resume; leave out --resume")
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        errors = [BlockError(*fields) for fields in state["errors"]]
        replace_blocks(student, names[: len(errors)], drop_fc1_bias)
        student.load_state_dict(state["student"])
    except Exception as error:  # torch.load raises a dozen types on damaged files
        raise IntswinError(f"{path} is not the state of this reconstruction; delete it") from error
    return errors


@torch.no_grad()
def _block_data(
    student: nn.Module, teacher: nn.Module, pixels: Pixels, name: str
) -> tuple[Tensor, Tensor]:
    """What the student's MLP branch reads, and what the teacher's block gives: (n, L, C) each."""
    inputs: list[Tensor] = []
    wanted: list[Tensor] = []
    norm = student.get_submodule(f"{name}.norm2")
    handles = [
        norm.register_forward_pre_hook(lambda module, args: inputs.append(args[0].flatten(1, -2))),
        teacher.get_submodule(name).register_forward_hook(
            lambda module, args, output: wanted.append(output.flatten(1, -2))
        ),
    ]
    student.eval()
    teacher.eval()
    try:
        for images in pixels.images.split(FORWARD_BATCH):
            normalized = normalize(images, pixels.described.preprocess)
            student(normalized)
            teacher(normalized)
    finally:
        for handle in handles:
            handle.remove()
    return torch.cat(inputs), torch.cat(wanted)


def _train_block(
    block: Any, inputs: Tensor, wanted: Tensor, options: ReconstructOptions, index: int
) -> tuple[float, float]:
    """Train norm2, fc1 and fc2; relative squared error before and after."""
    variance = wanted.var().clamp(min=1e-12)
    scaled = getattr(block, "ls2", nn.Identity())  # some ViTs have a LayerScale

    def distance(rows: Tensor | slice) -> Tensor:
        x = inputs[rows]
        return (x + scaled(block.mlp(block.norm2(x))) - wanted[rows]).square().mean() / variance

    def measured() -> float:
        with torch.no_grad():
            pieces = [distance(slice(i, i + 64)) for i in range(0, len(inputs), 64)]
        return float(torch.stack(pieces).mean())

    trained = [*block.norm2.parameters(), *block.mlp.parameters()]
    before = measured()
    optimizer = torch.optim.Adam(trained, lr=options.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.steps)
    generator = torch.Generator().manual_seed(options.seed * 1000 + index)
    for _ in range(options.steps):
        rows = torch.randint(len(inputs), (options.batch_size,), generator=generator)
        loss = distance(rows.to(inputs.device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    after = measured()
    if not math.isfinite(after):
        raise IntswinError("the reconstruction diverged; pass a lower --learning-rate")
    return before, after

"""Iterative distillation: replace, train, replace the next, and a finish that anneals.

`distill_schedule` says when; here it happens. A run is its state file plus its options: batches are
a function of the step (`distill_data`), so after a kill it goes on with the very losses that it
would have had. Under torchrun each process takes its part of every batch (DistributedDataParallel).
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from intswin.models.augment import normalize
from intswin.models.distill_data import Batches, Pixels, seed_step
from intswin.models.distill_loss import PARTS
from intswin.models.distill_schedule import TrainOptions
from intswin.models.errors import IntswinError
from intswin.models.files import write_atomically
from intswin.models.memory import too_little_memory
from intswin.models.processes import Processes
from intswin.models.replacement import replace_blocks
from intswin.models.training_log import TrainingLog

WINDOW = 10  # steps between looks at the loss on the host


@dataclass
class Progress:
    """Where a run is; part of its state."""

    step: int = 0
    elapsed_s: float = 0.0
    replaced: int = 0  # replacement steps done
    window_best: float = math.inf
    window_best_step: int = 0
    best_metric: float = -math.inf
    validations_since_best: int = 0
    stopped: bool = False


class DistillTrainer:
    """Trains `network` by `objective`, replacing its activations in the order of `groups`.

    Args:
        objective: module called with (images, soft labels or None) that gives the loss and its
            unweighted parts (4,); it holds `network`, and `replaced` when there are groups.
        network: what is trained and averaged.
        groups: from `replacement_steps`; empty when nothing is to be replaced.
        drop_fc1_bias: remove the bias before each ReLU.
        options: budget, learning rate and so on.
        batches: of the training images, by step.
        state_path: where the unfinished run is kept; its metrics go beside it, to .jsonl.
        validation: images to measure the averaged network on; None for none.
        teacher: what the network's answers are compared with in validation; None for nothing.
        evaluated: makes what is validated from the averaged network.
        log_folder: of TensorBoard's files; None for none.
        report: is given progress lines on the first process.
        processes: those that train together; None for all that torchrun started.

    Raises:
        IntswinError: --early-stop without validation, or TensorBoard is not installed.
    """

    def __init__(
        self,
        objective: nn.Module,
        network: nn.Module,
        groups: list[list[str]],
        drop_fc1_bias: bool,
        options: TrainOptions,
        batches: Batches,
        state_path: Path,
        *,
        validation: Pixels | None = None,
        teacher: nn.Module | None = None,
        evaluated: Callable[[nn.Module], nn.Module] = lambda network: network,
        log_folder: Path | None = None,
        report: Callable[[str], None] = print,
        processes: Processes | None = None,
    ) -> None:
        self.objective, self.network, self.groups = objective, network, groups
        self.drop_fc1_bias, self.options, self.batches = drop_fc1_bias, options, batches
        self.state_path, self.report = state_path, report
        self.validation, self.teacher, self.evaluated = validation, teacher, evaluated
        self.processes = processes or Processes()
        self.device = batches.pixels.images.device
        if options.early_stop and validation is None:
            raise IntswinError("--early-stop looks at validation images; pass --validation")
        self.ema = ModelEmaV3(network, decay=options.ema_decay, use_warmup=True)
        self.ema.eval()
        self.optimizer = create_optimizer_v2(
            network, opt="adamw", lr=options.learning_rate, weight_decay=options.weight_decay
        )
        self.progress = Progress()
        self.bad_step = torch.full((), 2**31, device=self.device)
        self.window_loss = torch.zeros((), device=self.device)
        self.log = None
        if self.processes.is_first:
            self.log = TrainingLog(state_path.with_suffix(".jsonl"), log_folder)
        self.wrapped: nn.Module = objective

    def run(self) -> nn.Module:
        """Train to the end of the budget (or an early stop); returns the averaged network.

        Raises:
            IntswinError: the loss or its gradient is not finite (the last good state is kept), or
                the memory is too small.
        """
        self._wrap()
        if self.log is not None and self.progress.step == 0:
            self.log.forget_after(0)  # another run's
        clock = time.monotonic()
        with too_little_memory(self._memory_advice()):
            while not self._finished():
                progress = self._share()
                self._replace_due(progress)
                loss, parts = self._step(self.options.learning_rate_at(progress))
                p = self.progress
                p.step += 1
                if self.options.minutes is not None and self.device.type == "cuda":
                    torch.cuda.synchronize()  # the clock measures work, not the queue
                now = time.monotonic()
                p.elapsed_s = self.processes.first(p.elapsed_s + now - clock, self.device)
                if p.step % WINDOW == 0:
                    self._look_at_window()
                if p.step % self.options.report_every == 0 or self._finished():
                    self._report_step(loss, parts)
                if p.step % self.options.validate_every == 0:
                    self._validate()
                if p.step % self.options.save_every == 0:
                    self.save_state()
                # validation and writing are not training time
                clock = now if self.options.minutes is None else time.monotonic()
        self._replace_due(1.0)
        self.save_state()
        return self.ema.module

    def _memory_advice(self) -> str:
        size, parts = self.options.batch_size, self.options.accumulate
        return (
            f"out of memory with {size} images a step; pass --batch-size {max(2, size // 4 * 2)}, "
            f"or --accumulate {parts * 2} for the same result in smaller parts"
        )

    def _share(self) -> float:
        """Part of the budget that is used up."""
        if self.options.steps is not None:
            return self.progress.step / self.options.steps
        assert self.options.minutes is not None
        return self.progress.elapsed_s / (60 * self.options.minutes)

    def _finished(self) -> bool:
        return self.progress.stopped or self._share() >= 1

    def _replace_due(self, progress: float) -> None:
        while self.progress.replaced < len(self.groups):
            if progress < self.options.replacement_at(self.progress.replaced, len(self.groups)):
                return
            self._replace_next()

    def _replace_next(self) -> None:
        names = self.groups[self.progress.replaced]
        self._apply(names)
        self.progress.replaced += 1
        self.progress.window_best, self.progress.window_best_step = math.inf, self.progress.step
        self._wrap()
        if self.processes.is_first:
            done, total = self.progress.replaced, len(self.groups)
            self.report(f"step {self.progress.step}: replaced {', '.join(names)} ({done}/{total})")

    def _apply(self, names: list[str]) -> None:
        for network in (self.network, self.ema.module):
            replace_blocks(network, names, self.drop_fc1_bias)
        self.objective.replaced.extend(names)  # type: ignore[operator,union-attr]

    def _wrap(self) -> None:
        """DDP's list of parameters is fixed when it is made, and dropping a bias changes it."""
        self.wrapped = self.objective
        if self.processes.count > 1:
            self.wrapped = DistributedDataParallel(self.objective)

    def _step(self, learning_rate: float) -> tuple[Tensor, Tensor]:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate * group.get("lr_scale", 1.0)
        self.objective.train()
        parts_count = self.options.accumulate
        total, parts = torch.zeros((), device=self.device), torch.zeros(4, device=self.device)
        for i in range(parts_count):
            index = self.processes.rank * parts_count + i
            images, targets = self.batches.part(
                self.progress.step, index, self.processes.count * parts_count
            )
            seed_step(self.options.seed, self.progress.step, -1 - index + 2**31)  # drop path
            last = i == parts_count - 1
            with self._synchronized_by(last):
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.options.amp):
                    loss, its_parts = self.wrapped(images, targets)
                (loss / parts_count).backward()
            total += loss.detach() / parts_count
            parts += its_parts / parts_count
        total = self.processes.mean(total)
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        # a finite loss can have a gradient that is not, which ruins the weights for the next step
        finite = total.isfinite() & norm.isfinite()
        bad = torch.where(finite, 2**31, self.progress.step + 1)
        self.bad_step = torch.minimum(self.bad_step, bad)
        self.window_loss += total / WINDOW
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.update(self.network, step=self.progress.step + 1)
        return total, parts

    def _synchronized_by(self, last: bool) -> contextlib.AbstractContextManager[None]:
        if isinstance(self.wrapped, DistributedDataParallel) and not last:
            return self.wrapped.no_sync()
        return contextlib.nullcontext()

    # --- looking ----------------------------------------------------------------------------

    def _check_finite(self) -> None:
        bad = int(self.bad_step)
        if bad <= self.progress.step:
            kept = f"the last good state is in {self.state_path}"
            if not self.state_path.exists():
                kept = "no state was written yet"
            raise IntswinError(
                f"the loss or its gradient is not finite at step {bad}; {kept}: pass a lower "
                "--learning-rate"
            )

    def _look_at_window(self) -> None:
        self._check_finite()
        p, loss = self.progress, float(self.window_loss)
        self.window_loss.zero_()
        if loss < 0.99 * p.window_best:
            p.window_best, p.window_best_step = loss, p.step
        waited = p.step - p.window_best_step
        if (
            self.options.plateau_steps
            and waited >= self.options.plateau_steps
            and p.replaced < len(self.groups)
        ):
            self._replace_next()

    def _report_step(self, loss: Tensor, parts: Tensor) -> None:
        self._check_finite()
        if self.log is None:
            return
        p, total = self.progress, loss.item()
        named = dict(zip(PARTS, parts.tolist(), strict=True))
        rate = self.optimizer.param_groups[0]["lr"]
        self.log.write(p.step, {"replaced": p.replaced, "loss": total, **named, "lr": rate})
        share = max(self._share(), 1e-9)
        speed = p.step * self.options.batch_size / max(p.elapsed_s, 1e-9)
        self.report(
            f"step {p.step} epoch {p.step / self.batches.per_epoch:.1f} "
            f"replaced {p.replaced}/{len(self.groups)} loss {total:.4f} "
            + " ".join(f"{name} {value:.4f}" for name, value in named.items())
            + f" lr {rate:.1e} {speed:.0f} images/s left {p.elapsed_s * (1 / share - 1):.0f} s"
        )

    def _validate(self) -> None:
        if self.validation is None:
            return
        self._check_finite()
        network = self.evaluated(self.ema.module)
        top1, agreement = accuracy(network, self.teacher, self.validation, self.processes)
        p = self.progress
        metric = top1 if top1 is not None else agreement
        assert metric is not None
        if self.log is not None:
            values = {"validation_top1": top1, "teacher_agreement": agreement}
            self.log.write(p.step, values)
            shown = [f"{name} {v:.2f} %" for name, v in values.items() if v is not None]
            self.report(f"step {p.step} " + " ".join(shown))
        if p.replaced < len(self.groups):
            return  # early stop is for the finish: later replacements change everything
        if metric > p.best_metric:
            p.best_metric, p.validations_since_best = metric, 0
        else:
            p.validations_since_best += 1
        p.stopped = 0 < self.options.early_stop <= p.validations_since_best
        if p.stopped and self.processes.is_first:
            self.report(f"step {p.step}: stopped early, the best validation was {metric:.2f} %")

    # --- state ------------------------------------------------------------------------------

    def _identity(self) -> dict[str, Any]:
        """What must be equal for a state to belong to this run."""
        fields = dataclasses.asdict(self.options)
        for free in ("save_every", "report_every", "minutes"):  # may change when going on
            del fields[free]
        fields["groups"], fields["drop_fc1_bias"] = self.groups, self.drop_fc1_bias
        fields["images"] = len(self.batches.pixels.images)
        return fields

    def save_state(self) -> None:
        """Write the state, whole or not at all, unless the loss went bad."""
        self._check_finite()
        if self.log is None:
            return
        self.log.flush()
        state = {
            "identity": self._identity(),
            "progress": dataclasses.asdict(self.progress),
            "network": self.network.state_dict(),
            "ema": self.ema.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "window_loss": self.window_loss,
        }
        write_atomically(self.state_path, lambda temporary: torch.save(state, temporary))

    def load_state(self) -> None:
        """Go on where `save_state` left.

        Raises:
            IntswinError: there is no such state, or it is another run's.
        """
        path = self.state_path
        if not path.exists():
            raise IntswinError(f"{path}: no state to resume; leave out --resume")
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
            theirs, ours = state["identity"], self._identity()
        except Exception as error:  # torch.load raises a dozen types on damaged files
            raise IntswinError(f"{path} is not the state of a distillation; delete it") from error
        different = [name for name in ours if theirs.get(name) != ours[name]]
        if different:
            raise IntswinError(
                f"{path} was made with another {', '.join(different)}; "
                "pass the options of the interrupted run"
            )
        self.progress = Progress(**state["progress"])
        for names in self.groups[: self.progress.replaced]:
            self._apply(names)
        self.network.load_state_dict(state["network"])
        self.ema.module.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.window_loss = state["window_loss"].to(self.device)
        if self.log is not None:
            self.log.forget_after(self.progress.step)


@torch.inference_mode()
def accuracy(
    model: nn.Module,
    teacher: nn.Module | None,
    pixels: Pixels,
    processes: Processes | None = None,
    batch_size: int = 128,
) -> tuple[float | None, float | None]:
    """Top-1 against labels (None without) and agreement with the teacher (None without), percent.

    Processes share the images.
    """
    processes = processes or Processes()
    model.eval()
    preprocess = pixels.described.preprocess
    hits = torch.zeros(2, device=pixels.images.device)
    batches = torch.arange(len(pixels.images), device=pixels.images.device).split(batch_size)
    for rows in batches[processes.rank :: processes.count]:
        images = normalize(pixels.images[rows], preprocess)
        best = model(images).argmax(1)
        if pixels.labels is not None:
            hits[0] += (best == pixels.labels[rows]).sum()
        if teacher is not None:
            hits[1] += (best == teacher(images).argmax(1)).sum()
    top1, agreement = (100 * processes.sum(hits) / len(pixels.images)).tolist()
    return (
        top1 if pixels.labels is not None else None,
        agreement if teacher is not None else None,
    )

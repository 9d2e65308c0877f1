"""Iterative distillation: replace, train, replace the next, and a finish that anneals.

Our own schedule, since the paper's is not published. With G replacement steps and a finish share f
of the budget, step g happens at (1 - f) * g / G of the budget, or earlier when the loss is on a
plateau; then the finish trains the whole student. The learning rate warms up, stays, and follows a
cosine during the finish: the same shape for every schedule and order, so that they can be compared.

A run is its state file plus its options: batches are a function of the step (`distill_data`), so
after a kill it goes on with the very losses that it would have had. Under torchrun each process
takes its part of every batch (DistributedDataParallel).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
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
from intswin.models.errors import IntswinError
from intswin.models.files import write_atomically
from intswin.models.processes import Processes
from intswin.models.replacement import replace_blocks

WINDOW = 10  # steps between looks at the loss on the host
WARMUP = 0.03  # of the budget
FINAL_LEARNING_RATE = 1 / 200  # of the peak


@dataclass(frozen=True)
class TrainOptions:
    """How a run trains.

    Attributes:
        steps: budget in optimizer steps; None when `minutes` is given.
        minutes: budget in minutes of training (validation and loading are not counted).
        batch_size: images of a step, over all processes and accumulated parts.
        accumulate: parts that one process cuts its share of a batch into.
        finish_share: of the budget, after the last replacement.
        plateau_steps: replace the next early when the loss did not fall by 1 % in so many steps;
            0 for never.
        early_stop: stop the finish after so many validations without a better one; 0 for never.
        validate_every: steps between validations.
        save_every: steps between writes of the state.
        report_every: steps between progress lines.
    """

    steps: int | None = None
    minutes: float | None = None
    batch_size: int = 128
    accumulate: int = 1
    learning_rate: float = 2e-4
    weight_decay: float = 0.05
    ema_decay: float = 0.999
    finish_share: float = 0.5
    plateau_steps: int = 0
    early_stop: int = 0
    validate_every: int = 200
    save_every: int = 200
    report_every: int = 20
    seed: int = 0
    amp: bool = True

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.minutes is None):
            raise IntswinError("give the budget either as --steps or as --minutes")
        if (self.steps or self.minutes or 0) <= 0 or self.accumulate < 1:
            raise IntswinError("the budget and --accumulate must be positive")
        if not 0 < self.finish_share <= 1:
            raise IntswinError("the finish takes a share of the budget between 0 and 1")

    def learning_rate_at(self, progress: float) -> float:
        """Learning rate at `progress` (0 to 1) of the budget."""
        peak, start = self.learning_rate, 1 - self.finish_share
        if progress < WARMUP:
            return peak * max(progress / WARMUP, 0.01)
        if progress < start:
            return peak
        last = peak * FINAL_LEARNING_RATE
        phase = (progress - max(start, WARMUP)) / (1 - max(start, WARMUP))
        return last + (peak - last) * (1 + math.cos(math.pi * min(phase, 1.0))) / 2


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
        state_path: where the unfinished run is kept.
        report: is given progress lines on the first process.
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
        self.metrics_path = state_path.with_suffix(".jsonl")
        self.writer = self._tensorboard(log_folder)
        self.wrapped: nn.Module = objective

    def run(self) -> nn.Module:
        """Train to the end of the budget (or an early stop); returns the averaged network.

        Raises:
            IntswinError: the loss is not finite (the last good state is kept), or the memory is
                too small.
        """
        self._wrap()
        clock = time.monotonic()
        try:
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
        except (torch.OutOfMemoryError, RuntimeError) as error:
            raise _memory_error(error, self.options) or error from error
        self._replace_due(1.0)
        self.save_state()
        return self.ema.module

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
            share = self.progress.replaced / len(self.groups)
            if progress < (1 - self.options.finish_share) * share:
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
        bad = torch.where(total.isfinite(), 2**31, self.progress.step + 1)
        self.bad_step = torch.minimum(self.bad_step, bad)
        self.window_loss += total / WINDOW
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
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
                f"the loss is not finite at step {bad}; {kept}: pass a lower --learning-rate"
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
        if not self.processes.is_first:
            return
        p, total = self.progress, loss.item()
        named = dict(zip(PARTS, parts.tolist(), strict=True))
        rate = self.optimizer.param_groups[0]["lr"]
        line = {"step": p.step, "replaced": p.replaced, "loss": total, **named, "lr": rate}
        self._log(line)
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
        if self.processes.is_first:
            values = {"validation_top1": top1, "teacher_agreement": agreement}
            self._log({"step": p.step, **values})
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

    def _log(self, line: dict[str, Any]) -> None:
        with open(self.metrics_path, "a") as file:
            file.write(json.dumps(line) + "\n")
        if self.writer is not None:
            for name, value in line.items():
                if name != "step" and value is not None:
                    self.writer.add_scalar(name, value, line["step"])

    def _tensorboard(self, folder: Path | None) -> Any:
        if folder is None or not self.processes.is_first:
            return None
        try:
            from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 - optional
        except ImportError as error:
            raise IntswinError(
                "tensorboard is not installed; pip install tensorboard, or leave out --tensorboard"
            ) from error
        return SummaryWriter(str(folder))

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
        if self.writer is not None:
            self.writer.flush()
        if not self.processes.is_first:
            return
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
        if self.processes.is_first and self.metrics_path.exists():
            # what was logged after the state was written will be logged again
            lines = self.metrics_path.read_text().splitlines()
            kept = [line for line in lines if _step_of(line) <= self.progress.step]
            text = "".join(f"{line}\n" for line in kept)
            write_atomically(self.metrics_path, lambda temporary: temporary.write_text(text))


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError):
        return math.inf  # a line cut short by the kill


def _memory_error(error: BaseException, options: TrainOptions) -> IntswinError | None:
    """An error that says what to do when memory ran out, None for other errors."""
    text = str(error)
    if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in text:
        return None
    smaller = max(2, options.batch_size // 4 * 2)
    return IntswinError(
        f"out of memory with {options.batch_size} images a step; pass --batch-size {smaller}, or "
        f"--accumulate {options.accumulate * 2} for the same result in smaller parts"
    )


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

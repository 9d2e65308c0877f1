"""The schedule of a distillation: its budget, when replacements come, and the learning rate.

Our own, since the paper's is not published. With G replacement steps and a finish share f of the
budget, step g happens at (1 - f) * g / G of the budget, or earlier when the loss is on a plateau;
then the finish trains the whole student. The learning rate warms up, stays, and follows a cosine
during the finish: the same shape for every schedule and order, so that they can be compared.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from intswin.models.errors import IntswinError

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
        learning_rate: AdamW's peak.
        weight_decay: AdamW's.
        ema_decay: a step, of the average of the weights that is the result.
        finish_share: of the budget, after the last replacement.
        plateau_steps: replace the next early when the loss did not fall by 1 % in so many steps;
            0 for never.
        early_stop: stop the finish after so many validations without a better one; 0 for never.
        validate_every: steps between validations.
        save_every: steps between writes of the state.
        report_every: steps between progress lines.
        seed: of everything random.
        amp: bfloat16 where autocast thinks it safe.
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

    def replacement_at(self, done: int, total: int) -> float:
        """Part of the budget at which the next replacement is due, after `done` of `total`."""
        return (1 - self.finish_share) * (done / total)

    def integer_finish(self, steps: int) -> TrainOptions:
        """For quantization-aware training of a network that these options have trained.

        It is near its end already: a small learning rate that only falls, and a short average.
        """
        return dataclasses.replace(
            self,
            steps=steps,
            minutes=None,
            learning_rate=self.learning_rate / 20,
            finish_share=1.0,
            ema_decay=0.99,
        )

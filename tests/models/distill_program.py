"""A small distillation as a program: killed by tests, and run in two processes by torchrun.

Arguments: folder, then options as JSON: steps, accumulate, resume, slow (seconds a step).
"""

import json
import os
import sys
import time
from pathlib import Path

import torch
from timm.models import SwinTransformer

from intswin.models.augment import Augment
from intswin.models.data import ImageSet
from intswin.models.distill import DistillTrainer
from intswin.models.distill_data import Batches, Pixels
from intswin.models.distill_loss import BlockDistillation, LossWeights
from intswin.models.distill_schedule import TrainOptions
from intswin.models.preprocess import Preprocess
from intswin.models.processes import join_processes
from intswin.models.replacement import replacement_steps

SMALL = Preprocess(image_size=64, crop_pct=1.0, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def small_swin(seed=2):
    torch.manual_seed(seed)
    return SwinTransformer(
        img_size=64,
        num_classes=3,
        embed_dim=8,
        depths=(1, 1, 1, 1),
        num_heads=(1, 1, 1, 1),
        window_size=2,
        drop_path_rate=0.0,  # its choices would depend on how a batch is shared
    )


def pixels(count=24, labeled=True):
    """Plain photos: the label is the brightest channel."""
    torch.manual_seed(0)
    labels = torch.arange(count) % 3
    images = torch.randint(0, 100, (count, 3, 64, 64), dtype=torch.uint8)
    images[torch.arange(count), labels] += 100
    described = ImageSet("test", [], SMALL, ["r", "g", "b"], labels.numpy() if labeled else None)
    return Pixels(images, labels if labeled else None, described)


class DoubleBatches(Batches):
    """Gradients that are zero but for rounding would become Adam steps in float32."""

    def part(self, step, index, count):
        inputs, targets = super().part(step, index, count)
        return inputs.double(), targets


def trainer(
    folder,
    *,
    data=None,
    schedule="block",
    order="shallow-to-deep",
    drop=False,
    double=False,
    log_folder=None,
    **changes,
):
    fields = {
        "steps": 12, "batch_size": 8, "learning_rate": 1e-3, "report_every": 1, "save_every": 3,
        "validate_every": 1000, "amp": False, "finish_share": 0.4,
    }  # fmt: skip
    options = TrainOptions(**{**fields, **changes})
    data = pixels() if data is None else data
    teacher, student = small_swin(), small_swin()
    if double:
        teacher, student = teacher.double(), student.double()
    augment = Augment(SMALL, num_classes=3, crop_scale=0.5, magnitude=3, chunk=4)
    return DistillTrainer(
        BlockDistillation(student, teacher, LossWeights()),
        student,
        replacement_steps(student, schedule, order),
        drop,
        options,
        (DoubleBatches if double else Batches)(data, augment, options.batch_size, options.seed),
        Path(folder) / "state.pth",
        validation=pixels(12),
        teacher=teacher,
        log_folder=log_folder,
    )


def main():
    folder, given = Path(sys.argv[1]), json.loads(sys.argv[2])
    torch.set_num_threads(1)
    slow, resume = given.pop("slow", 0), given.pop("resume", False)
    processes, _ = join_processes("cpu")
    run = trainer(folder, **given)
    run.processes = processes
    if resume:
        run.load_state()
    if slow:
        part = run.batches.part
        object.__setattr__(run.batches, "part", lambda *a: (time.sleep(slow), part(*a))[1])
    network = run.run()
    if processes.is_first:
        torch.save(network.state_dict(), folder / "network.pth")
    processes.leave()


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()

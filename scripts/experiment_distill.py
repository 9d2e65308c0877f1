"""Which way to ReLU keeps the accuracy: the experiment behind docs/distillation.md, unattended.

Trains nothing that it finds done: each row of each seed is a file in the work folder, and an
unfinished row goes on from its state. Stops before --minutes are over, so that it fits a machine
that is lent for a while; run the same command again to go on. Several processes may share a work
folder, each with its own rows or seeds. Writes JSON, a table and a plot of whatever is done
(experiment_distill_report.py).

Rows that train have the same budget of steps. Columns: float top-1 in float32; int8 top-1 of the
integer-only network after post-training quantization, computed by the fake-quantized network on a
GPU and by the compiled one on a CPU, which both equal the integer reference and are compared with
it here on a few images; the same after quantization-aware training; seconds of training.

With --train-only the integers are left for another call, perhaps on another machine: the work
folder holds the trained networks.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import datetime
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from experiment_distill_report import slug, write_results
from torch import nn

from intswin.compile import pipeline, runtime
from intswin.compile.distill import integer_network
from intswin.compile.targets import get_target
from intswin.models import integer_reference
from intswin.models.activation import replace_activation
from intswin.models.augment import Augment
from intswin.models.checkpoint import save_checkpoint
from intswin.models.distill import DistillTrainer, accuracy
from intswin.models.distill_data import Batches, Pixels, load_pixels
from intswin.models.distill_loss import BlockDistillation, LossWeights
from intswin.models.distill_schedule import TrainOptions
from intswin.models.errors import IntswinError, run_script
from intswin.models.fake_quantize import FakeQuantized, QuantizedDistillation
from intswin.models.files import write_file
from intswin.models.integer_graph import IntegerGraph
from intswin.models.reconstruct import ReconstructOptions, reconstruct
from intswin.models.replacement import replacement_steps
from intswin.models.swin import SWIN_MICRO, create_model, model_preprocess

# row -> how it is made
ROWS: dict[str, dict[str, Any]] = {
    "GELU teacher": {"method": "teacher"},
    "ReLU, no training": {"method": "swap"},
    "one-shot": {"method": "iterative", "schedule": "all-at-once"},
    "iterative by block": {"method": "iterative", "schedule": "block"},
    "iterative by stage": {"method": "iterative", "schedule": "stage"},
    "iterative by block, deep first": {
        "method": "iterative", "schedule": "block", "order": "deep-to-shallow",
    },
    "reconstruct-1024": {"method": "reconstruct"},
    "iterative by block, no fc1 bias": {
        "method": "iterative", "schedule": "block", "drop_fc1_bias": True,
    },
}  # fmt: skip
CHECKED_IMAGES = 4  # on which the integer reference is run as well


class OutOfTimeError(Exception):
    """The minutes of this call are over; everything is kept."""


@dataclasses.dataclass
class Experiment:
    """The networks, the data and the clock."""

    arguments: argparse.Namespace
    teacher: nn.Module
    training: Pixels
    validation: Pixels
    deadline: float

    def check_time(self) -> None:
        """Raise OutOfTimeError when the minutes are over."""
        if time.monotonic() > self.deadline:
            raise OutOfTimeError

    def report(self, line: str) -> None:
        """A progress line; also where a running row notices that the time is over."""
        print(f"{datetime.datetime.now():%H:%M:%S} {line}", flush=True)


def main() -> None:
    """Run the rows that are not done, then write the results."""
    arguments = _parser().parse_args()
    deadline = time.monotonic() + 60 * arguments.minutes
    folder: Path = arguments.work
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_float32_matmul_precision("high")
    teacher = create_model(
        arguments.network,
        num_classes=arguments.num_classes,
        checkpoint=arguments.teacher,
    ).to(arguments.device)
    preprocess = model_preprocess(teacher)
    experiment = Experiment(
        arguments,
        teacher,
        load_pixels(arguments.data, preprocess, arguments.device, arguments.limit),
        load_pixels([arguments.validation], preprocess, arguments.device, arguments.limit),
        deadline,
    )
    wanted = arguments.rows or list(ROWS)
    unknown = [row for row in wanted if row not in ROWS]
    if unknown:
        raise IntswinError(f"unknown row {unknown[0]!r}; use some of: {', '.join(ROWS)}")
    finished = True
    try:
        for seed in arguments.seeds:
            for row in wanted:
                if seed and ROWS[row]["method"] in ("teacher", "swap"):
                    continue  # nothing random
                result = folder / f"{slug(row)}_{seed}.json"
                if not result.exists():
                    experiment.check_time()
                    experiment.report(f"== {row}, seed {seed}")
                    fields = run_row(experiment, row, seed)
                    if fields is None:
                        experiment.report(f"trained {row}, seed {seed}")
                        continue
                    write_file(result, (json.dumps(fields, indent=1) + "\n").encode())
                    experiment.report(json.dumps(fields))
    except OutOfTimeError:
        finished = False
    print(write_results(folder, arguments.results, list(ROWS)))
    print("finished" if finished else "out of time; run the same command again to go on")


def run_row(experiment: Experiment, row: str, seed: int) -> dict[str, Any] | None:
    """Make one student, if it is not there, and measure it; None: the integers are left."""
    arguments = experiment.arguments
    checkpoint = arguments.work / f"{slug(row)}_{seed}.safetensors"
    trained = checkpoint.with_suffix(".trained")
    if not trained.exists():
        student, seconds = _student(experiment, row, seed)
        student.eval()
        save_checkpoint(student, checkpoint)
        fields = {"row": row, "seed": seed, "seconds": round(seconds, 1)}
        fields |= {"run": _described(arguments), "float_top1": _top1(student, experiment)}
        write_file(trained, json.dumps(fields).encode())
    fields = json.loads(trained.read_text())
    if ROWS[row]["method"] == "teacher":
        return fields  # GELU has its own integer forms: intswin evaluate --table
    if arguments.train_only:
        return None
    # quantize what was stored: float16 weights
    activation = {"activation": "relu", "drop_fc1_bias": ROWS[row].get("drop_fc1_bias", False)}
    student = create_model(
        arguments.network, num_classes=arguments.num_classes, checkpoint=checkpoint, **activation
    ).to(arguments.device)
    graph, _ = integer_network(student, experiment.training)
    fields["int8_top1"] = _int8_top1(student, graph, experiment)
    if row in arguments.qat_rows:
        state = checkpoint.with_suffix(".state.qat.pth")
        fields["qat_int8_top1"] = _qat(experiment, student, graph, seed, state)
    return fields


def _student(experiment: Experiment, row: str, seed: int) -> tuple[nn.Module, float]:
    """Make the student of a row; the second value is the seconds that it took."""
    how, arguments = ROWS[row], experiment.arguments
    state = arguments.work / f"{slug(row)}_{seed}.state.pth"
    student = copy.deepcopy(experiment.teacher).requires_grad_(True)
    seconds_file = state.with_suffix(".seconds")
    before = float(seconds_file.read_text()) if seconds_file.exists() else 0.0
    started = time.monotonic()
    try:
        if how["method"] == "swap":
            replace_activation(student, "relu")
        elif how["method"] == "reconstruct":
            count = min(1024, len(experiment.training.images))
            chosen = torch.arange(count) * len(experiment.training.images) // count
            images = experiment.training.images[chosen.to(arguments.device)]
            reconstruct(
                student,
                experiment.teacher,
                Pixels(images, None, experiment.training.described),
                ReconstructOptions(steps=arguments.reconstruct_steps, seed=seed),
                state_path=state,
                resume=state.exists(),
                report=_and_check_time(experiment),
            )
        elif how["method"] == "iterative":
            student = _iterate(experiment, student, how, seed, state)
    except OutOfTimeError:
        seconds_file.write_text(str(before + time.monotonic() - started))
        raise
    if how["method"] in ("teacher", "swap"):
        return student, 0.0
    return student, before + time.monotonic() - started


def _described(arguments: argparse.Namespace) -> dict[str, Any]:
    """What a row depends on, and where and when it was made."""
    ignored = ("work", "results", "minutes", "rows", "seeds", "train_only")
    given = {k: v for k, v in vars(arguments).items() if k not in ignored}
    given["data"] = [path.name for path in arguments.data]
    given["validation"] = arguments.validation.name
    return {
        "arguments": {
            k: v if isinstance(v, (int, float, list)) else str(v) for k, v in given.items()
        },
        "device": torch.cuda.get_device_name() if arguments.device.startswith("cuda") else "cpu",
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
    }


def _iterate(
    experiment: Experiment, student: nn.Module, how: dict[str, Any], seed: int, state: Path
) -> nn.Module:
    arguments = experiment.arguments
    order = how.get("order", "shallow-to-deep")
    trainer = DistillTrainer(
        BlockDistillation(student, experiment.teacher, _weights(arguments)),
        student,
        replacement_steps(student, how["schedule"], order),
        how.get("drop_fc1_bias", False),
        _train_options(arguments, seed, arguments.steps),
        _batches(experiment, seed),
        state,
        validation=experiment.validation,
        teacher=experiment.teacher,
        report=lambda line: None,
    )
    return _run(trainer, experiment)


def _run(trainer: DistillTrainer, experiment: Experiment) -> nn.Module:
    """Train, from its state if there is one; keeps the state when the time is over."""
    if trainer.state_path.exists():
        trainer.load_state()

    def report(line: str) -> None:
        experiment.report(line)
        if time.monotonic() > experiment.deadline:
            trainer.save_state()
            raise OutOfTimeError

    trainer.report = report
    return trainer.run()


def _qat(
    experiment: Experiment, student: nn.Module, graph: IntegerGraph, seed: int, state: Path
) -> float:
    """Integer top-1 after quantization-aware training."""
    arguments = experiment.arguments
    student = copy.deepcopy(student)
    fake = FakeQuantized(student, graph, experiment.training.described.preprocess)
    fake.freeze_constants()
    options = _train_options(arguments, seed, arguments.qat_steps)
    trainer = DistillTrainer(
        QuantizedDistillation(fake, experiment.teacher, _weights(arguments)),
        student,
        [],
        False,
        options.integer_finish(arguments.qat_steps),
        _batches(experiment, seed),
        state,
        report=lambda line: None,
    )
    return _top1(fake.of(_run(trainer, experiment)), experiment)


def _int8_top1(student: nn.Module, graph: IntegerGraph, experiment: Experiment) -> float:
    """Top-1 of the integer-only network, calibrated on training images."""
    validation = experiment.validation
    preprocess = validation.described.preprocess
    pixels = validation.images.permute(0, 2, 3, 1)
    reference = integer_reference.run(graph, pixels[:CHECKED_IMAGES].cpu().numpy())
    if experiment.arguments.device.startswith("cuda"):
        fake = FakeQuantized(student, graph, preprocess)
        with torch.no_grad():
            steps = fake.run_all(pixels[:CHECKED_IMAGES])[graph.nodes[-1].name][:, 0]
        same = torch.equal(steps.cpu().double(), torch.from_numpy(reference).double())
        top1 = _top1(fake, experiment)
    else:
        options = pipeline.CompileOptions(batch=8)
        network = pipeline.FloatNetwork(student, None, None, preprocess)
        built = pipeline.build_integer_network(options, network, graph, get_target("llvm"))
        logits = runtime.open_network(built.library, built.metadata).logits(pixels.numpy())
        same = np.array_equal(logits[:CHECKED_IMAGES], reference)
        assert validation.labels is not None
        top1 = round(100 * float(np.mean(logits.argmax(1) == validation.labels.numpy())), 3)
    if not same:
        raise RuntimeError("the measured network is not the integer network")
    return top1


def _top1(model: nn.Module, experiment: Experiment) -> float:
    torch.set_float32_matmul_precision("highest")
    top1, _ = accuracy(model, None, experiment.validation)
    torch.set_float32_matmul_precision("high")
    if top1 is None:
        raise IntswinError("the validation images have no labels")
    return round(top1, 3)


def _weights(arguments: argparse.Namespace) -> LossWeights:
    return LossWeights(
        logits=arguments.logit_weight,
        blocks=arguments.block_weight,
        stages=arguments.stage_weight,
        labels=arguments.label_weight,
        temperature=arguments.temperature,
        feature=arguments.feature_loss,
    )


def _train_options(arguments: argparse.Namespace, seed: int, steps: int) -> TrainOptions:
    return TrainOptions(
        steps=steps,
        batch_size=arguments.batch_size,
        learning_rate=arguments.learning_rate,
        finish_share=arguments.finish_share,
        validate_every=max(1, steps // 4),
        save_every=max(1, steps // 10),
        report_every=min(50, max(1, steps // 4)),
        seed=seed,
        amp=arguments.device.startswith("cuda"),
    )


def _batches(experiment: Experiment, seed: int) -> Batches:
    arguments = experiment.arguments
    described = experiment.training.described
    augment = Augment(
        described.preprocess,
        num_classes=len(described.classes),
        crop_scale=arguments.crop_scale,
        chunk=min(64, arguments.batch_size),
    )
    return Batches(experiment.training, augment, arguments.batch_size, seed)


def _and_check_time(experiment: Experiment) -> Callable[[str], None]:
    """Progress of the reconstruction, which writes its state after it reported a block."""
    lines = {"over": False}

    def report(line: str) -> None:
        if lines["over"]:
            raise OutOfTimeError
        experiment.report(line)
        lines["over"] = time.monotonic() > experiment.deadline

    return report


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--network", default=SWIN_MICRO, help="swin_micro or a timm Swin")
    add("--teacher", default="embedded", help="checkpoint with GELU, or embedded")
    add("--num-classes", type=int, help="the teacher's, if not the network's own")
    add("--data", type=Path, nargs="+", required=True, help="packs or folders to train on")
    add("--validation", type=Path, required=True, help="labeled images, never trained on")
    add("--limit", type=int, help="images of each pack")
    add("--minutes", type=float, default=1e9, help="stop after so many minutes of this call")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the rows that train")
    add("--rows", nargs="+", help=f"some of: {', '.join(ROWS)}")
    add("--train-only", action="store_true", help="leave the integers for another call")
    add("--steps", type=int, default=1500, help="training budget of each row that trains")
    add("--reconstruct-steps", type=int, default=1000, help="steps of each reconstructed block")
    add("--qat-rows", nargs="*", default=["iterative by block"], help="that are also finished so")
    add("--qat-steps", type=int, default=200, help="of the quantization-aware finish")
    add("--batch-size", type=int, default=256, help="images a step")
    add("--learning-rate", type=float, default=5e-4, help="peak")
    add("--finish-share", type=float, default=0.5, help="of the budget, all being replaced")
    add("--logit-weight", type=float, default=1.0, help="of the KL of the logits")
    add("--block-weight", type=float, default=1.0, help="of the replaced blocks' outputs")
    add("--stage-weight", type=float, default=1.0, help="of the stages' outputs")
    add("--label-weight", type=float, default=0.5, help="of the cross entropy")
    add("--temperature", type=float, default=2.0, help="of the KL")
    add("--feature-loss", default="mse", help="mse or cosine")
    add("--crop-scale", type=float, default=0.35, help="smallest crop, as a part of the area")
    add("--work", type=Path, default=Path("out/experiment_distill"), help="unfinished rows")
    add("--results", type=Path, default=Path("docs/results"), help="where the results go")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="torch device")
    return parser


if __name__ == "__main__":
    run_script(main)

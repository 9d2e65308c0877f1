"""`intswin distill`: a float GELU network becomes a ReLU network, as told on the command line.

Teacher and student are made here, trained by `models/distill.py` or `models/reconstruct.py`,
finished by quantization-aware training if asked, and stored with a card. The networks' activations,
the data and the files are checked before anything is computed.
"""

from __future__ import annotations

import copy
import dataclasses
import datetime
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from intswin.models.activation import mlps
from intswin.models.augment import Augment
from intswin.models.card import write_card
from intswin.models.checkpoint import load_checkpoint, save_checkpoint
from intswin.models.command import intswin_command
from intswin.models.distill import DistillTrainer, accuracy
from intswin.models.distill_data import Batches, Pixels, load_pixels
from intswin.models.distill_loss import BlockDistillation, LossWeights
from intswin.models.distill_schedule import TrainOptions
from intswin.models.errors import IntswinError
from intswin.models.fake_quantize import FakeQuantized, QuantizedDistillation
from intswin.models.files import check_writable
from intswin.models.integer_graph import IntegerGraph
from intswin.models.processes import Processes, join_processes
from intswin.models.reconstruct import ReconstructOptions, reconstruct
from intswin.models.replacement import check_schedule, replacement_steps
from intswin.models.swin import SWIN_MICRO, create_model, embedded_checkpoint, model_preprocess

if TYPE_CHECKING:
    from intswin.compile.calibrate import Calibration

METHODS = ("iterative", "reconstruct")
CALIBRATION_IMAGES = 64

Report = Callable[[str], None]


@dataclass(frozen=True)
class DistillOptions:
    """What to distill, from what, into what.

    Attributes:
        data: packs or folders to train on; labels are used when all have them.
        output: checkpoint to write; the card, the state and the calibration go beside it.
        teacher: checkpoint with GELU; None means the embedded one of swin_micro.
        student: checkpoint to start from; None means the teacher's.
        limit: images of each source.
        qat_steps: steps of the quantization-aware finish; 0 for none.
    """

    data: tuple[Path, ...]
    output: Path
    network: str = SWIN_MICRO
    teacher: Path | None = None
    student: Path | None = None
    num_classes: int | None = None
    validation: Path | None = None
    limit: int | None = None
    method: str = "iterative"
    schedule: str = "block"
    order: str = "shallow-to-deep"
    drop_fc1_bias: bool = False
    train: TrainOptions = field(default_factory=lambda: TrainOptions(steps=2000))
    weights: LossWeights = field(default_factory=LossWeights)
    reconstruct: ReconstructOptions = field(default_factory=ReconstructOptions)
    augment: dict[str, Any] = field(default_factory=dict)
    qat_steps: int = 0
    resume: bool = False
    tensorboard: Path | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise IntswinError(f"unknown method {self.method!r}; use one of: {', '.join(METHODS)}")
        check_schedule(self.schedule, self.order)
        if not self.data:
            raise IntswinError("give images to train on: --data PACK.npz or --data FOLDER")
        if self.output.suffix != ".safetensors":
            raise IntswinError(f"{self.output}: the output is a .safetensors file")

    def beside(self, suffix: str) -> Path:
        """A file beside the output."""
        return self.output.with_suffix(suffix)


@dataclass(frozen=True)
class Distilled:
    """The student, ready to store, and how it was measured (None without labels)."""

    student: nn.Module
    teacher_top1: float | None
    top1: float | None
    agreement: float | None


def distill(options: DistillOptions, report: Report = print) -> Distilled:
    """Make a ReLU student and write its checkpoint and card.

    Raises:
        IntswinError: networks, data or files that do not fit; a loss that is not finite; too little
            memory.
    """
    for path in (options.output, options.beside(".json"), options.beside(".state.pth")):
        check_writable(path)
    teacher, student, student_has_relu = _networks(options)
    processes, device = join_processes(options.device)
    if not processes.is_first:
        report = _silent
    preprocess = model_preprocess(teacher)
    pixels = load_pixels(options.data, preprocess, device, options.limit)
    validation = None
    if options.validation is not None:
        validation = load_pixels([options.validation], preprocess, device, options.limit)
    classes = _check_classes(teacher, pixels, validation)
    teacher, student = teacher.to(device), student.to(device)
    labeled = "labeled" if pixels.labels is not None else "unlabeled"
    report(f"{len(pixels.images)} {labeled} images on {device}")
    job = _Job(options, teacher, pixels, validation, classes, processes, report)

    if not student_has_relu:
        if options.method == "reconstruct":
            chosen = dataclasses.replace(pixels, labels=None)
            reconstruct(
                student, teacher, chosen, options.reconstruct,
                drop_fc1_bias=options.drop_fc1_bias, state_path=options.beside(".state.pth"),
                resume=options.resume, report=report,
            )  # fmt: skip
        else:
            student = _iterate(job, student)
    if options.qat_steps:
        student = _finish_in_integers(job, student)
    student.eval()
    result = Distilled(student, None, None, None)
    if validation is not None:
        taught, _ = accuracy(teacher, None, validation, processes)
        top1, agreement = accuracy(student, teacher, validation, processes)
        result = Distilled(student, taught, top1, agreement)
    if processes.is_first:
        _store(options, result, pixels, validation, report)
    processes.leave()
    return result


def integer_network(
    student: nn.Module, pixels: Pixels, images: int = CALIBRATION_IMAGES
) -> tuple[IntegerGraph, Calibration]:
    """Quantize a float network, calibrated on some of these images, evenly spread.

    Raises:
        IntswinError: the network cannot be quantized.
    """
    # TVM takes seconds to import, and distillation without integers does not need it
    from intswin.compile import pipeline  # noqa: PLC0415
    from intswin.compile.calibrate import calibrate  # noqa: PLC0415
    from intswin.compile.float_graph import read_float_graph  # noqa: PLC0415
    from intswin.compile.import_model import import_torch  # noqa: PLC0415
    from intswin.compile.simplify import simplify  # noqa: PLC0415

    preprocess = pixels.described.preprocess
    on_cpu = copy.deepcopy(student).cpu().eval()
    size = preprocess.image_size
    graph = simplify(read_float_graph(import_torch(on_cpu, (size, size))))
    count = min(images, len(pixels.images))
    chosen = torch.arange(count) * len(pixels.images) // count
    photos = pixels.images[chosen.to(pixels.images.device)].cpu().permute(0, 2, 3, 1).numpy()
    normalized = (torch.from_numpy(preprocess.normalize(photo[None])) for photo in photos)
    calibration = calibrate(graph, normalized)
    network = pipeline.FloatNetwork(on_cpu, None, graph, preprocess)  # type: ignore[arg-type]
    quantized = pipeline.quantize_network(pipeline.CompileOptions(), network, calibration)
    return quantized.graph, calibration


def _silent(line: str) -> None:
    pass


def _networks(options: DistillOptions) -> tuple[nn.Module, nn.Module, bool]:
    """Teacher, student, and whether the student has ReLU already."""
    checkpoint = options.teacher
    if checkpoint is None:
        if options.network != SWIN_MICRO:
            raise IntswinError(f"give the teacher of {options.network}: --teacher CHECKPOINT")
        checkpoint = embedded_checkpoint("gelu")
    if _card(checkpoint).get("activation") == "relu":
        raise IntswinError(f"{checkpoint} is already ReLU; give the network with GELU as --teacher")
    start = options.student or checkpoint
    card = _card(start)
    has_relu = card.get("activation") == "relu"
    if has_relu and not options.qat_steps:
        raise IntswinError(
            f"{start} is already ReLU: nothing is left to replace; "
            "pass --qat to train it for integers"
        )
    make = partial(create_model, options.network, num_classes=options.num_classes)
    teacher = make(checkpoint=checkpoint)
    dropped = bool(card.get("drop_fc1_bias")) if has_relu else False
    student = make(activation="relu" if has_relu else "gelu", drop_fc1_bias=dropped)
    try:
        load_checkpoint(student, start)
    except IntswinError as error:
        raise IntswinError(f"teacher and student do not match: {error}") from error
    return teacher, student, has_relu


def _card(checkpoint: Path) -> dict[str, Any]:
    """The card beside a checkpoint; nothing when there is none."""
    path = checkpoint.with_suffix(".json")
    try:
        card = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return card if isinstance(card, dict) else {}


def _check_classes(teacher: nn.Module, pixels: Pixels, validation: Pixels | None) -> int:
    """Number of the network's classes, after comparing it with that of labeled data."""
    count = int(teacher.num_classes)  # type: ignore[arg-type]
    for data, use in ((pixels, "train on"), (validation, "validate on")):
        if data is None or data.labels is None:
            continue
        if len(data.described.classes) != count:
            raise IntswinError(
                f"{data.described.source} has {len(data.described.classes)} classes and the "
                f"network {count}; {use} data of its own classes, or on photos without labels"
            )
    if validation is not None and validation.labels is None:
        raise IntswinError(
            f"{validation.described.source} has no labels; validate on a pack or class folders"
        )
    return count


@dataclass(frozen=True)
class _Job:
    """What both trainings work on."""

    options: DistillOptions
    teacher: nn.Module
    pixels: Pixels
    validation: Pixels | None
    classes: int
    processes: Processes
    report: Report

    def trainer(
        self,
        objective: nn.Module,
        student: nn.Module,
        groups: list[list[str]],
        train: TrainOptions,
        state: Path,
        evaluated: Callable[[nn.Module], nn.Module] = lambda network: network,
        log_folder: Path | None = None,
    ) -> DistillTrainer:
        """A trainer of `student` on the job's images."""
        preprocess, options = self.pixels.described.preprocess, self.options
        augment = Augment(preprocess, num_classes=self.classes, **options.augment)
        return DistillTrainer(
            objective,
            student,
            groups,
            options.drop_fc1_bias,
            train,
            Batches(self.pixels, augment, train.batch_size, train.seed),
            state,
            validation=self.validation,
            teacher=self.teacher,
            evaluated=evaluated,
            log_folder=log_folder,
            report=self.report,
            processes=self.processes,
        )


def _iterate(job: _Job, student: nn.Module) -> nn.Module:
    options = job.options
    trainer = job.trainer(
        BlockDistillation(student, job.teacher, options.weights),
        student,
        replacement_steps(student, options.schedule, options.order),
        options.train,
        options.beside(".state.pth"),
        log_folder=options.tensorboard,
    )
    if options.resume:
        trainer.load_state()
        job.report(f"going on from step {trainer.progress.step}")
    return trainer.run()


def _finish_in_integers(job: _Job, student: nn.Module) -> nn.Module:
    """Quantization-aware training; its calibration is stored, since its scales are trained for."""
    options = job.options
    student = copy.deepcopy(student)
    graph, calibration = integer_network(student, job.pixels)
    if job.processes.is_first:
        calibration.save(options.beside(".calibration.json"))
    fake = FakeQuantized(student, graph, job.pixels.described.preprocess)
    fake.freeze_constants()
    job.report(f"{options.qat_steps} steps with the integers' rounding")
    trainer = job.trainer(
        QuantizedDistillation(fake, job.teacher, options.weights),
        student,
        [],
        options.train.integer_finish(options.qat_steps),
        options.beside(".qat.pth"),
        evaluated=fake.of,
    )
    if options.resume and options.beside(".qat.pth").exists():
        trainer.load_state()
    return trainer.run()


def _store(
    options: DistillOptions,
    result: Distilled,
    pixels: Pixels,
    validation: Pixels | None,
    report: Report,
) -> None:
    # trained for integers: float16 would move weights across rounding boundaries
    dtype = torch.float32 if options.qat_steps else torch.float16
    save_checkpoint(result.student, options.output, dtype)
    card: dict[str, Any] = {
        "network": options.network,
        "activation": "relu",
        "drop_fc1_bias": all(mlp.fc1.bias is None for mlp in mlps(result.student)),
        "parameters": sum(p.numel() for p in result.student.parameters()),
        "classes": pixels.described.classes or (validation.described.classes if validation else []),
        "imagenet1k_index": pixels.described.imagenet1k_index,
        "preprocess": pixels.described.preprocess.to_json(),
        "training": {
            "command": intswin_command(),
            "method": options.method,
            "schedule": options.schedule,
            "order": options.order,
            "quantization_aware_steps": options.qat_steps,
            "images": len(pixels.images),
            "labels": pixels.labels is not None,
            "torch": torch.__version__,
            "date": datetime.date.today().isoformat(),
        },
    }
    if validation is not None and options.validation is not None:
        card["accuracy"] = {
            "top1_percent": result.top1,
            "teacher_top1_percent": result.teacher_top1,
            "teacher_agreement_percent": result.agreement,
            "images": len(validation.images),
            "pack": options.validation.name,
        }
    write_card(options.output, card)
    shown = ""
    if result.top1 is not None and math.isfinite(result.top1):
        shown = f"  top-1 {result.top1:.2f} %, teacher {result.teacher_top1:.2f} %"
    report(f"{options.output}{shown}")

"""Train a GELU Swin from scratch: the float network that everything is compared with.

A Swin from scratch overfits 9469 photos within minutes, so an ImageNet MobileNetV2 teaches it (see
``models/distill_maps.py``). The student learns all 1000 of its teacher's classes and keeps the
pack's at the end. Needs a pack whose classes are ImageNet-1k's.
"""

from __future__ import annotations

import argparse
import datetime
import platform
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from torch import nn

from intswin.models.augment import Augment
from intswin.models.card import measure_card, write_card
from intswin.models.checkpoint import save_checkpoint
from intswin.models.command import script_command
from intswin.models.data import ImageSet
from intswin.models.distill_maps import Distillation, MobileNetTeacher
from intswin.models.errors import IntswinError, run_script
from intswin.models.memory import too_little_memory
from intswin.models.swin import SWIN_MICRO, create_model, model_preprocess
from intswin.models.training import Recipe, Trainer, load_photos, seed_everything

PROVENANCE = (
    "Trained on Imagenette v2 (10 ImageNet classes): photos from ImageNet (image-net.org terms: "
    "non-commercial research), file list of fast.ai's Imagenette (Apache-2.0), 224x224 JPEG files "
    "from github.com/thunderInfy/imagenette@b850f030. Taught by a MobileNetV2 of ImageNet-1k from "
    "github.com/google-coral/test_data@104342d2 (Apache-2.0). No photo is part of this file."
)


def main() -> None:
    """Parse the flags, train, write checkpoint and card."""
    arguments = _parser().parse_args()
    seed_everything(arguments.seed)
    student = create_model(
        arguments.network,
        num_classes=1000,
        drop_path_rate=arguments.drop_path_rate,
        seed=arguments.seed,
    )
    preprocess = model_preprocess(student)
    teacher = MobileNetTeacher(arguments.teacher, preprocess)
    training, described = load_photos(
        arguments.training_packs, preprocess, arguments.device, arguments.limit
    )
    if described.imagenet1k_index is None:
        raise IntswinError(f"{described.source} does not give its ImageNet classes")
    validation, _ = load_photos(
        [arguments.validation_pack], preprocess, arguments.device, arguments.limit
    )
    print(f"{len(training.labels)} photos to train on, {len(validation.labels)} to validate")
    distillation = Distillation(
        student,
        teacher,
        described.imagenet1k_index,
        label_weight=arguments.label_weight,
        map_weight=arguments.map_weight,
        temperature=arguments.temperature,
    )
    augment = Augment(
        preprocess,
        num_classes=len(described.classes),
        crop_scale=arguments.crop_scale,
        magnitude=arguments.magnitude,
        mix_probability=arguments.mix_probability,
    )
    torch.set_float32_matmul_precision("high")
    trainer = Trainer(
        distillation.to(arguments.device), _recipe(arguments), augment, script_command()
    )
    if arguments.resume:
        trainer.load_state(arguments.state)
    with too_little_memory(f"out of memory: pass --batch-size below {arguments.batch_size}"):
        trainer.run(training, validation, arguments.state)
    if not trainer.finished:
        print(f"paused at step {trainer.step}; go on with --resume")
        return
    print(f"finished after {trainer.step} steps, {trainer.elapsed_s:.0f} s")
    model = trainer.ema.module
    keep_classes(model, described.imagenet1k_index)
    save_checkpoint(model, arguments.output)
    write_card(arguments.output, _card(arguments, model, described, trainer.commands))
    measure_card(arguments.output, arguments.validation_pack, arguments.device, arguments.limit)


def keep_classes(model: Any, rows: list[int]) -> None:
    """Cut a timm Swin's classifier down to these of its outputs, in place."""
    wide = model.head.fc
    narrow = nn.Linear(wide.in_features, len(rows), device=wide.weight.device)
    with torch.no_grad():
        narrow.weight.copy_(wide.weight[rows])
        narrow.bias.copy_(wide.bias[rows])
    model.head.fc = narrow


def _card(
    arguments: argparse.Namespace, model: nn.Module, described: ImageSet, commands: list[str]
) -> dict[str, Any]:
    """What the checkpoint is and where it comes from, before it is measured."""
    on_gpu = arguments.device.startswith("cuda")
    return {
        "network": arguments.network,
        "activation": "gelu",
        "parameters": sum(p.numel() for p in model.parameters()),
        "classes": described.classes,
        "wordnet_ids": described.wordnet_ids,
        "imagenet1k_index": described.imagenet1k_index,
        "preprocess": described.preprocess.to_json(),
        "training": {
            "commands": commands,
            "seed": arguments.seed,
            "device": torch.cuda.get_device_name() if on_gpu else platform.machine(),
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "torchvision": torchvision.__version__,
                "timm": timm.__version__,
            },
            "date": datetime.date.today().isoformat(),
        },
        "provenance": PROVENANCE,
    }


def _recipe(arguments: argparse.Namespace) -> Recipe:
    return Recipe(
        minutes=arguments.minutes,
        batch_size=arguments.batch_size,
        learning_rate=arguments.learning_rate,
        weight_decay=arguments.weight_decay,
        ema_decay=arguments.ema_decay,
        seed=arguments.seed,
        compile=not arguments.no_compile,
        pause_after_minutes=arguments.pause_after_minutes,
        report_every_s=arguments.report_every_s,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--network", default=SWIN_MICRO, help="swin_micro or a timm Swin")
    add("--training-packs", type=Path, nargs="+", required=True, help=".npz packs or folders")
    add("--validation-pack", type=Path, required=True, help="measured, never trained on")
    add("--teacher", type=Path, required=True, help="the MobileNetV2's checkpoint")
    add("--output", type=Path, required=True, help="checkpoint to write; its card goes beside it")
    add("--state", type=Path, required=True, help="where the unfinished run is kept")
    add("--resume", action="store_true", help="go on from --state")
    add("--minutes", type=float, default=15.0, help="length of the schedule in minutes")
    add("--pause-after-minutes", type=float, help="stop early after so many minutes of this call")
    add("--batch-size", type=int, default=512, help="photos a step, an even number")
    add("--learning-rate", type=float, default=1.5e-3, help="AdamW's peak learning rate")
    add("--weight-decay", type=float, default=0.05, help="AdamW's weight decay")
    add("--drop-path-rate", type=float, default=0.05, help="stochastic depth")
    add("--ema-decay", type=float, default=0.9995, help="decay a step of the weights' average")
    add("--label-weight", type=float, default=0.5, help="weight of the labels' cross entropy")
    add("--map-weight", type=float, default=2.0, help="weight of the feature maps' loss")
    add("--temperature", type=float, default=1.0, help="softmax temperature of the teacher")
    add("--crop-scale", type=float, default=0.2, help="smallest crop, as a part of the area")
    add("--magnitude", type=int, default=9, help="RandAugment's magnitude, 0 to 30")
    add("--mix-probability", type=float, default=0.8, help="probability of mixup or cutmix")
    add("--limit", type=int, help="use so many photos of each pack")
    add("--report-every-s", type=float, default=15.0, help="seconds between progress lines")
    add("--seed", type=int, default=0, help="seed of weights, order and augmentation")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="torch device")
    add("--no-compile", action="store_true", help="run without torch.compile")
    return parser


if __name__ == "__main__":
    run_script(main)

"""What the two training scripts share: their flags, photos onto the device, and the card.

A card is the JSON beside a checkpoint: what the network is, how to feed it, how accurate it was
measured to be, and where it comes from.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from torch import nn

from intswin.models.activation import mlp_activation
from intswin.models.augment import Augment
from intswin.models.checkpoint import load_checkpoint, save_checkpoint
from intswin.models.command import script_command
from intswin.models.data import ImageSet
from intswin.models.distill_data import load_pixels
from intswin.models.distill_maps import Distillation
from intswin.models.errors import IntswinError
from intswin.models.files import write_atomically
from intswin.models.memory import too_little_memory
from intswin.models.preprocess import Preprocess
from intswin.models.swin import SWIN_MICRO, create_model
from intswin.models.training import Photos, Recipe, Trainer, accuracy

PROVENANCE = (
    "Trained on Imagenette v2 (10 ImageNet classes): photos from ImageNet (image-net.org terms: "
    "non-commercial research), file list of fast.ai's Imagenette (Apache-2.0), 224x224 JPEG files "
    "from github.com/thunderInfy/imagenette@b850f030. Taught by a MobileNetV2 of ImageNet-1k from "
    "github.com/google-coral/test_data@104342d2 (Apache-2.0). No photo is part of this file."
)


def training_parser(description: str) -> argparse.ArgumentParser:
    """The flags that both scripts have."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--training-packs", type=Path, nargs="+", required=True, help=".npz packs or folders")
    add("--validation-pack", type=Path, required=True, help="measured, never trained on")
    add("--teacher", type=Path, required=True, help="the teacher's checkpoint")
    add("--output", type=Path, required=True, help="checkpoint to write; its card goes beside it")
    add("--state", type=Path, required=True, help="where the unfinished run is kept")
    add("--resume", action="store_true", help="go on from --state")
    add("--minutes", type=float, default=15.0, help="length of the schedule in minutes")
    add("--pause-after-minutes", type=float, help="stop early after so many minutes of this call")
    add("--batch-size", type=int, default=512, help="photos a step, an even number")
    add("--learning-rate", type=float, default=1.5e-3, help="AdamW's peak learning rate")
    add("--weight-decay", type=float, default=0.05, help="AdamW's weight decay")
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


def load_photos(
    packs: Sequence[Path], preprocess: Preprocess, device: str, limit: int | None
) -> tuple[Photos, ImageSet]:
    """Decode labeled packs onto the device; the second value describes the classes.

    Raises IntswinError when one has no labels, or other classes than the first.
    """
    pixels = load_pixels(packs, preprocess, device, limit)
    if pixels.labels is None:
        names = " or ".join(map(str, packs))
        raise IntswinError(f"{names} has no labels; give class folders or a pack")
    return Photos(pixels.images, pixels.labels), pixels.described


@dataclass(frozen=True)
class Trained:
    """The averaged student, its data's classes, and every command of the run."""

    model: nn.Module
    described: ImageSet
    commands: list[str]


def train(
    arguments: argparse.Namespace,
    distillation: Distillation,
    preprocess: Preprocess,
) -> Trained | None:
    """Train as the flags say; None when the run only paused."""
    training, described = load_photos(
        arguments.training_packs, preprocess, arguments.device, arguments.limit
    )
    validation, _ = load_photos(
        [arguments.validation_pack], preprocess, arguments.device, arguments.limit
    )
    print(f"{len(training.labels)} photos to train on, {len(validation.labels)} to validate")
    torch.set_float32_matmul_precision("high")
    trainer = Trainer(
        distillation.to(arguments.device),
        Recipe(
            minutes=arguments.minutes,
            batch_size=arguments.batch_size,
            learning_rate=arguments.learning_rate,
            weight_decay=arguments.weight_decay,
            ema_decay=arguments.ema_decay,
            seed=arguments.seed,
            compile=not arguments.no_compile,
            pause_after_minutes=arguments.pause_after_minutes,
            report_every_s=arguments.report_every_s,
        ),
        Augment(
            preprocess,
            num_classes=len(described.classes),
            crop_scale=arguments.crop_scale,
            magnitude=arguments.magnitude,
            mix_probability=arguments.mix_probability,
        ),
        script_command(),
    )
    if arguments.resume:
        trainer.load_state(arguments.state)
    with too_little_memory(f"out of memory: pass --batch-size below {arguments.batch_size}"):
        trainer.run(training, validation, arguments.state)
    if not trainer.finished:
        print(f"paused at step {trainer.step}; go on with --resume")
        return None
    print(f"finished after {trainer.step} steps, {trainer.elapsed_s:.0f} s")
    return Trained(trainer.ema.module, described, trainer.commands)


def save_with_card(
    trained: Trained,
    arguments: argparse.Namespace,
    preprocess: Preprocess,
    network: str = SWIN_MICRO,
) -> None:
    """Write the fp16 checkpoint and its card, measured on the file as written."""
    model, described = trained.model, trained.described
    save_checkpoint(model, arguments.output)
    card = {
        "network": network,
        "activation": mlp_activation(model),
        "parameters": sum(p.numel() for p in model.parameters()),
        "classes": described.classes,
        "wordnet_ids": described.wordnet_ids,
        "imagenet1k_index": described.imagenet1k_index,
        "preprocess": preprocess.to_json(),
        "training": {
            "commands": trained.commands,
            "seed": arguments.seed,
            "device": (
                torch.cuda.get_device_name()
                if arguments.device.startswith("cuda")
                else platform.machine()
            ),
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
    write_card(arguments.output, card)
    measure_card(arguments.output, arguments.validation_pack, arguments.device, arguments.limit)


def write_card(checkpoint: Path, card: dict[str, Any]) -> None:
    """Write the card beside the checkpoint."""
    text = json.dumps(card, indent=2) + "\n"
    write_atomically(checkpoint.with_suffix(".json"), lambda temporary: temporary.write_text(text))


def measure_card(
    checkpoint: Path, pack: Path, device: str = "cpu", limit: int | None = None
) -> tuple[float, float]:
    """Reload a checkpoint, measure it on a pack in float32, and note the result in its card.

    Returns top-1 and top-5 in percent. Raises IntswinError when checkpoint, card or pack cannot be
    used.
    """
    path = checkpoint.with_suffix(".json")
    try:
        card = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise IntswinError(f"{path}: no card of {checkpoint.name} can be read there") from error
    preprocess = Preprocess.from_json(card["preprocess"])
    model = create_model(
        card["network"], activation=card["activation"], num_classes=len(card["classes"])
    )
    load_checkpoint(model, checkpoint)
    photos, _ = load_photos([pack], preprocess, device, limit)
    top1, top5 = accuracy(model.to(device), photos, preprocess)
    card["accuracy"] = {
        "top1_percent": round(top1, 2),
        "top5_percent": round(top5, 2),
        "images": len(photos.labels),
        "pack": pack.name,
        "measured": f"float32 arithmetic on the float16 file, torch {torch.__version__}, {device}",
    }
    write_card(checkpoint, card)
    print(f"{checkpoint.name}: top-1 {top1:.2f} %, top-5 {top5:.2f} % of {len(photos.labels)}")
    return top1, top5

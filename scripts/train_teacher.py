"""Train a GELU Swin from scratch: the float network that everything is compared with.

A Swin from scratch overfits 9469 photos within minutes, so an ImageNet MobileNetV2 teaches it (see
``models/distill_maps.py``). The student learns all 1000 of its teacher's classes and keeps the
pack's at the end. Needs a pack whose classes are ImageNet-1k's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from intswin.models.data import open_images
from intswin.models.distill_maps import Distillation, MobileNetTeacher
from intswin.models.errors import IntswinError, run_script
from intswin.models.swin import SWIN_MICRO, create_model, model_preprocess
from intswin.models.training import seed_everything
from intswin.models.training_run import save_with_card, train, training_parser


def main() -> None:
    """Parse the flags, train, write checkpoint and card."""
    parser = training_parser(__doc__.splitlines()[0])
    parser.add_argument("--network", default=SWIN_MICRO, help="swin_micro or a timm Swin")
    parser.add_argument("--drop-path-rate", type=float, default=0.05, help="stochastic depth")
    arguments = parser.parse_args()
    seed_everything(arguments.seed)
    student = create_model(
        arguments.network,
        num_classes=1000,
        drop_path_rate=arguments.drop_path_rate,
        seed=arguments.seed,
    )
    preprocess = model_preprocess(student)
    index = open_images(arguments.training_packs[0], preprocess).imagenet1k_index
    if index is None:
        raise IntswinError(f"{arguments.training_packs[0]} does not give its ImageNet classes")
    distillation = Distillation(
        student,
        MobileNetTeacher(arguments.teacher, preprocess),
        index,
        label_weight=arguments.label_weight,
        map_weight=arguments.map_weight,
        temperature=arguments.temperature,
    )
    result = train(arguments, distillation, preprocess)
    if result is not None:
        keep_classes(result.model, index)
        save_with_card(result, arguments, preprocess, arguments.network)


def keep_classes(model: Any, rows: list[int]) -> None:
    """Cut a timm Swin's classifier down to these of its outputs, in place."""
    wide = model.head.fc
    narrow = nn.Linear(wide.in_features, len(rows), device=wide.weight.device)
    with torch.no_grad():
        narrow.weight.copy_(wide.weight[rows])
        narrow.bias.copy_(wide.bias[rows])
    model.head.fc = narrow


if __name__ == "__main__":
    run_script(main)

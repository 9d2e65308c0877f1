"""The card of a checkpoint: the JSON beside it.

It says what the network is, how to feed it, how accurate it was measured to be, and where it comes
from.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from intswin.models.checkpoint import load_checkpoint
from intswin.models.errors import IntswinError
from intswin.models.files import write_atomically
from intswin.models.preprocess import Preprocess
from intswin.models.swin import create_model
from intswin.models.training import accuracy, load_photos


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
        "measured": f"float32 arithmetic on the stored file, torch {torch.__version__}, {device}",
    }
    write_card(checkpoint, card)
    print(f"{checkpoint.name}: top-1 {top1:.2f} %, top-5 {top5:.2f} % of {len(photos.labels)}")
    return top1, top5

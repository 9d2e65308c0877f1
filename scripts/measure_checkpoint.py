"""Measure a checkpoint on a validation pack again, and note the result in its card.

The number in a card is of the fp16 file as written, not of the weights that were in training.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from intswin.models.card import measure_card
from intswin.models.errors import run_script


def main() -> None:
    """Parse the flags and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoints", type=Path, nargs="+", help="files with a card beside them")
    parser.add_argument("--validation-pack", type=Path, required=True, help=".npz pack or folder")
    parser.add_argument("--device", default="cpu", help="torch device")
    arguments = parser.parse_args()
    for checkpoint in arguments.checkpoints:
        measure_card(checkpoint, arguments.validation_pack, arguments.device)


if __name__ == "__main__":
    run_script(main)

"""Top-1 and top-5 of several forms of one network on the same images, and where they agree.

Needs NumPy alone: an artifact is evaluated where torch is not installed. `evaluate.py` adds the
float network.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np

from intswin.compile import runtime
from intswin.compile.artifact import Artifact
from intswin.models import integer_reference
from intswin.models.data import ImageSet, open_images
from intswin.models.errors import IntswinError
from intswin.models.preprocess import Preprocess

BATCH = 16
ImagesDone = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class Row:
    """One form of the network.

    Attributes:
        form: "float torch", "integer reference" or "compiled for TARGET".
        top1, top5: percent; top5 is None with fewer than 6 classes.
        agreement: percent of images with the float network's top-1 class; None without it.
        bit_exact: images whose int32 logits equal the reference's; None for other forms.
    """

    form: str
    top1: float
    top5: float | None
    agreement: float | None
    bit_exact: int | None


def evaluate_artifact(
    stored: Artifact,
    data: Path,
    limit: int | None = None,
    images_done: ImagesDone = lambda done, total: None,
) -> list[Row]:
    """Measure an artifact's compiled code against its own integer network.

    Raises:
        IntswinError: the artifact does not run here, or the data does not fit it.
    """
    runtime.check_runs_here(stored)
    machine = runtime.open_network(stored.library, stored.metadata)
    graph = stored.graph()
    images = open_labeled(data, machine.preprocess, limit)
    columns = columns_of(images, len(stored.metadata["classes"]))
    forms = {
        "integer reference": lambda x: integer_reference.run(graph, x),
        f"compiled for {stored.metadata['target']['name']}": machine.logits,
    }
    return measure(forms, images, columns, images_done)


def open_labeled(data: Path, preprocess: Preprocess, limit: int | None) -> ImageSet:
    """Open images that have labels; IntswinError when they have none."""
    images = open_images(data, preprocess, limit)
    if images.labels is None:
        raise IntswinError(f"{data} has no labels; give a pack or a folder of class folders")
    return images


def columns_of(images: ImageSet, count: int) -> np.ndarray:
    """Which of `count` logits belong to the data's classes: all, or some of ImageNet-1k's."""
    if len(images.classes) == count:
        return np.arange(count)
    if count == 1000 and images.imagenet1k_index:
        return np.asarray(images.imagenet1k_index)
    raise IntswinError(
        f"{images.source} has {len(images.classes)} classes and the network {count}; "
        "evaluate on data of its own classes"
    )


def measure(
    forms: dict[str, Callable[[np.ndarray], np.ndarray]],
    images: ImageSet,
    columns: np.ndarray,
    images_done: ImagesDone,
) -> list[Row]:
    """Run every form on all images.

    Args:
        forms: name -> uint8 (N, S, S, 3) images to (N, classes) logits; one is the
            "integer reference", and the float network's name starts with "float".
        images: labeled.
        columns: which logits belong to the labels.
        images_done: called with (done, total).
    """
    logits: dict[str, list[np.ndarray]] = {form: [] for form in forms}
    done = 0
    for batch in images.batches(BATCH):
        for form, run in forms.items():
            logits[form].append(run(batch))
        done += len(batch)
        images_done(done, len(images))
    joined = {form: np.concatenate(parts) for form, parts in logits.items()}
    labels = images.labels
    assert labels is not None
    float_form = next((form for form in forms if form.startswith("float")), None)
    reference = joined["integer reference"]
    rows = []
    for form, values in joined.items():
        chosen = values[:, columns]
        order = np.argsort(-chosen.astype(np.float64), axis=1, kind="stable")
        top5 = 100 * float((order[:, :5] == labels[:, None]).any(axis=1).mean())
        agreement = None
        if float_form is not None:
            float_best = joined[float_form][:, columns].argmax(axis=1)
            agreement = 100 * float((order[:, 0] == float_best).mean())
        exact = int((values == reference).all(axis=1).sum())
        rows.append(
            Row(
                form,
                100 * float((order[:, 0] == labels).mean()),
                top5 if len(columns) > 5 else None,
                agreement,
                exact if form.startswith("compiled") else None,
            )
        )
    return rows

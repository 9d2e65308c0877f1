"""What every competitor gets: one float network, photos to calibrate on, a batch to time.

Normalization is not timed for the others, which take normalized float32 pixels; ours takes uint8
and has it folded into the first layer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from intswin.compile.peers.task import SEED, Task

if TYPE_CHECKING:
    from torch import nn

CALIBRATION_IMAGES = 32  # at most; fewer photos are used with their mirror images


def environment(threads: int) -> dict[str, str]:
    """Nothing special."""
    return {}


def float_model(task: Task, activation: str) -> nn.Module:
    """The float network: the embedded weights of swin_micro, else the random ones of a seed."""
    from intswin.models.swin import SWIN_MICRO, create_model  # noqa: PLC0415

    checkpoint = "embedded" if task.network == SWIN_MICRO else None
    return create_model(task.network, activation=activation, checkpoint=checkpoint, seed=SEED)


def prepare(task: Task) -> None:
    """Write the images, and the float32 logits that everybody is compared with."""
    import torch  # noqa: PLC0415

    from intswin.models.data import open_images  # noqa: PLC0415
    from intswin.models.swin import model_preprocess  # noqa: PLC0415

    torch.set_num_threads(task.threads)
    models = {name: float_model(task, name) for name in ("relu", "gelu")}
    preprocess = model_preprocess(models["relu"])
    photos = open_images(task.data, preprocess, CALIBRATION_IMAGES).decode()
    mirrored = np.concatenate([photos, photos[:, :, ::-1]])
    images = _take(mirrored, task.batch)
    # Whole batches, because some calibrate on the network of a fixed batch.
    calibration = _take(
        mirrored, -(-min(len(mirrored), CALIBRATION_IMAGES) // task.batch * task.batch)
    )
    np.save(task.path("images_uint8.npy"), images)
    np.save(task.path("calibration_uint8.npy"), calibration)
    np.save(task.path("images_float32.npy"), preprocess.normalize(images))
    np.save(task.path("calibration_float32.npy"), preprocess.normalize(calibration))
    for name, model in models.items():
        with torch.inference_mode():
            logits = model(torch.from_numpy(preprocess.normalize(images)))
        np.save(task.path(f"logits_{name}.npy"), logits.numpy())


def _take(images: np.ndarray, count: int) -> np.ndarray:
    return np.ascontiguousarray(np.resize(images, (count, *images.shape[1:])))

"""ONNX Runtime: float32, dynamic int8, and static int8 (QDQ, uint8 activations, int8 weights)."""

from __future__ import annotations

from typing import Any

import numpy as np

from intswin.compile.peers.inputs import float_model
from intswin.compile.peers.task import Loaded, Task


def environment(threads: int) -> dict[str, str]:
    """Nothing: threads are session options."""
    return {}


def prepare(task: Task) -> None:
    """Export for a fixed batch, optimize and quantize."""
    static = _path(task, "static")
    if static.exists():
        return
    import torch  # noqa: PLC0415
    from onnxruntime.quantization import (  # noqa: PLC0415
        QuantFormat,
        QuantType,
        quantize_dynamic,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process  # noqa: PLC0415
    from onnxruntime.transformers.optimizer import optimize_model  # noqa: PLC0415

    torch.set_num_threads(task.threads)
    exported = _path(task, "exported")
    with torch.no_grad():
        program = torch.onnx.export(
            float_model(task, task.competitor.activation),
            (torch.from_numpy(task.pixels),),
            dynamo=True,
            input_names=["pixels"],
            output_names=["logits"],
        )
    assert program is not None
    program.save(str(exported), external_data=False)
    # The optimizer for transformers fuses LayerNorm, GELU and bias.
    optimize_model(str(exported), model_type="swin", opt_level=0).save_model_to_file(
        str(_path(task, "fp32"))
    )
    quantize_dynamic(
        _path(task, "fp32"), _path(task, "dynamic"), weight_type=QuantType.QInt8, per_channel=True
    )
    preprocessed = _path(task, "preprocessed")
    quant_pre_process(str(exported), str(preprocessed))
    quantize_static(
        preprocessed,
        static.with_suffix(".tmp"),
        _Batches(task.calibration_pixels, task.batch),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
    )
    static.with_suffix(".tmp").rename(static)


def load(task: Task) -> Loaded:
    """Variants are fp32, dynamic and static."""
    import onnxruntime as ort  # noqa: PLC0415

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = task.threads
    options.inter_op_num_threads = 1
    # Threads spin between operators, which is faster, but not after a call: others run then.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = ort.InferenceSession(
        str(_path(task, task.competitor.variant)), options, providers=["CPUExecutionProvider"]
    )
    feed = {session.get_inputs()[0].name: task.pixels}

    def run() -> Any:
        return session.run(None, feed)[0]

    return Loaded(run)


class _Batches:
    """quantize_static's reader of calibration data."""

    def __init__(self, pixels: np.ndarray, batch: int) -> None:
        self._batches = iter(np.split(pixels, len(pixels) // batch))

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next batch, or None at the end."""
        batch = next(self._batches, None)
        return None if batch is None else {"pixels": batch}


def _path(task: Task, form: str) -> Any:
    return task.path(f"onnxruntime_{task.competitor.activation}_{form}.onnx")

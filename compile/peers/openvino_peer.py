"""OpenVINO: float32, bfloat16, and int8 by NNCF's post-training quantization."""

from __future__ import annotations

from typing import Any

import numpy as np

from intswin.compile.peers.inputs import float_model
from intswin.compile.peers.task import Loaded, Task

# The precision of what is not int8 is bfloat16 by default on a CPU that has it.
PRECISIONS = {"fp32": "f32", "bf16": "bf16", "int8": "f32", "int8-bf16": "bf16"}


def environment(threads: int) -> dict[str, str]:
    """Nothing: TBB's threads sleep when idle, and the count is a property."""
    return {}


def prepare(task: Task) -> None:
    """Convert the torch network for a fixed batch and quantize it."""
    activation = task.competitor.activation
    int8 = task.path(f"openvino_{activation}_int8.xml")
    if int8.exists():
        return
    import nncf  # noqa: PLC0415
    import openvino as ov  # noqa: PLC0415
    import torch  # noqa: PLC0415

    from intswin.models.swin import with_fused_attention  # noqa: PLC0415

    torch.set_num_threads(task.threads)
    network = with_fused_attention(float_model(task, activation))
    pixels = task.pixels
    with torch.no_grad():
        model = ov.convert_model(
            network, example_input=torch.from_numpy(pixels), input=[list(pixels.shape)]
        )
    batches = np.split(task.calibration_pixels, len(task.calibration_pixels) // task.batch)
    ov.save_model(model, task.path(f"openvino_{activation}.xml"), compress_to_fp16=False)
    quantized = nncf.quantize(
        model,
        nncf.Dataset(batches),
        preset=nncf.QuantizationPreset.MIXED,
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(batches),
        # SmoothQuant, on by default, broke Swin: cosine 0.96.
        advanced_parameters=nncf.AdvancedQuantizationParameters(
            smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(convolution=-1, matmul=-1)
        ),
    )
    ov.save_model(quantized, int8, compress_to_fp16=False)


def load(task: Task) -> Loaded:
    """Variants are fp32, bf16, int8 and int8-bf16; latency hint, one stream."""
    import openvino as ov  # noqa: PLC0415

    variant = task.competitor.variant
    suffix = "_int8" if variant.startswith("int8") else ""
    compiled = ov.Core().compile_model(
        task.path(f"openvino_{task.competitor.activation}{suffix}.xml"),
        "CPU",
        {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": task.threads,
            "INFERENCE_PRECISION_HINT": PRECISIONS[variant],
        },
    )
    request = compiled.create_infer_request()
    request.set_input_tensor(ov.Tensor(task.pixels))  # a copy: a shared array would be freed

    def run() -> Any:
        request.infer()
        return request.get_output_tensor(0)

    return Loaded(run, lambda tensor: tensor.data.copy())

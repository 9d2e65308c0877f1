"""torchao: static int8 by PT2E for X86 inductor, the rest in float32 or bfloat16."""

from __future__ import annotations

from typing import Any

from intswin.compile.peers.inputs import float_model
from intswin.compile.peers.task import Loaded, Task
from intswin.compile.peers.torch_float import environment, prepare

__all__ = ["environment", "load", "prepare"]


def load(task: Task) -> Loaded:
    """Variants are int8 and int8-bf16."""
    import torch  # noqa: PLC0415
    from torchao.quantization.pt2e.quantize_pt2e import (  # noqa: PLC0415
        convert_pt2e,
        prepare_pt2e,
    )
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86  # noqa: PLC0415

    from intswin.models.swin import with_fused_attention  # noqa: PLC0415

    torch.set_num_threads(task.threads)
    model = with_fused_attention(float_model(task, task.competitor.activation))
    pixels = torch.from_numpy(task.pixels)
    calibration = torch.from_numpy(task.calibration_pixels)
    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
    with torch.no_grad():
        observed = prepare_pt2e(torch.export.export(model, (pixels,)).module(), quantizer)
        for batch in calibration.split(task.batch):
            observed(batch)
        quantized = convert_pt2e(observed)
        call = torch.compile(quantized)

    def run() -> Any:
        bf16 = task.competitor.variant == "int8-bf16"
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return call(pixels)

    return Loaded(run, lambda logits: logits.float().numpy())

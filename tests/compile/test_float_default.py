"""The float32 schedules compute what the unscheduled kernels compute."""

import numpy as np
import torch
import tvm
from timm.models import SwinTransformer
from tvm import relax
from tvm.relax.frontend.torch import from_exported_program

from intswin.compile.schedules.float_default import build_float
from intswin.compile.targets import get_target


def test_scheduled_network_equals_torch():
    torch.manual_seed(0)
    model = SwinTransformer(
        img_size=56, patch_size=4, num_classes=10, embed_dim=16, depths=(2, 2), num_heads=(1, 2)
    ).eval()
    for layer in model.modules():
        if hasattr(layer, "fused_attn"):
            layer.fused_attn = False
    image = torch.randn(2, 3, 56, 56)
    with torch.no_grad():
        expected = model(image).numpy()
        program = torch.export.export(model, (image,))
    module = from_exported_program(program, unwrap_unit_return_tuple=True)
    executable = build_float(module, get_target("llvm"))
    machine = relax.VirtualMachine(executable, tvm.cpu())
    logits = machine["main"](tvm.runtime.tensor(image.numpy())).numpy()
    np.testing.assert_allclose(logits, expected, atol=1e-4)

"""Who is compared: ours and what people would use instead."""

from __future__ import annotations

from intswin.compile.host_cpu import cpu_features
from intswin.compile.peers.task import Competitor

_PEERS = "intswin.compile.peers"
# What is not int8 is faster in bfloat16, where the CPU has it.
_TORCHAO = (
    ("int8-bf16", "torchao int8 + bf16")
    if cpu_features() & {"avx512_bf16", "amx_bf16"}
    else ("int8", "torchao int8")
)
# module, variant, label, packages
_FORMS = [
    ("torch_float", "fp32-eager", "PyTorch fp32 eager", ("torch",)),
    ("torch_float", "fp32-compile", "PyTorch fp32 compiled", ("torch",)),
    ("torch_float", "bf16-eager", "PyTorch bf16 eager", ("torch",)),
    ("torch_float", "bf16-compile", "PyTorch bf16 compiled", ("torch",)),
    ("torchao_int8", *_TORCHAO, ("torchao",)),
    ("openvino_peer", "fp32", "OpenVINO fp32", ("openvino", "nncf")),
    ("openvino_peer", "bf16", "OpenVINO bf16", ("openvino", "nncf")),
    ("openvino_peer", "int8", "OpenVINO int8", ("openvino", "nncf")),
    ("openvino_peer", "int8-bf16", "OpenVINO int8 + bf16", ("openvino", "nncf")),
    ("onnxruntime_peer", "fp32", "ONNX Runtime fp32", ("onnxruntime",)),
    ("onnxruntime_peer", "dynamic", "ONNX Runtime int8 dynamic", ("onnxruntime",)),
    ("onnxruntime_peer", "static", "ONNX Runtime int8 static", ("onnxruntime",)),
]
_ACTIVATION_LABELS = {
    "relu": "ReLU",
    "relu-untuned": "ReLU, default schedules",
    "gelu": "GELU",
    "igelu": "i-GELU",
    "igelu-unfused": "i-GELU, a kernel of its own",
    "shiftgelu": "ShiftGELU",
}

OURS = [
    Competitor(f"ours-{name}", f"intswin {_ACTIVATION_LABELS[name]}", f"{_PEERS}.ours", "", name)
    for name in ("relu", "relu-untuned", "igelu", "igelu-unfused", "shiftgelu")
]
PEERS = [
    Competitor(
        name=f"{module.split('_')[0]}-{variant}-{activation}",
        label=f"{label}, {_ACTIVATION_LABELS[activation]}",
        module=f"{_PEERS}.{module}",
        variant=variant,
        activation=activation,
        packages=packages,
    )
    for module, variant, label, packages in _FORMS
    for activation in ("relu", "gelu")
]
COMPETITORS = OURS + PEERS
PACKAGES = ("torchao", "openvino", "nncf", "onnxruntime", "intel-openmp")  # of the extra "peers"

"""Who races on the GPU: our CUDA artifacts, and timm's network in PyTorch fp16.

PyTorch as its users would run it for speed: channels_last, fp16, inference mode, fused attention
(timm's default), cuDNN's search of algorithms, static input in fp16 on the device: normalizing
the pixels is not in its time, and is in ours. Weights are random: speed does not depend on them.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from intswin.compile import runtime
from intswin.compile.cuda_runtime import CudaNetwork
from intswin.compile.gpu_artifacts import ArtifactSpec
from intswin.compile.gpu_bench import Call, Contestant
from intswin.models.errors import IntswinError

OURS = {
    "relu": "int8 ReLU (ours)",
    "igelu": "int8 i-GELU (ours)",
    "shiftgelu": "int8 ShiftGELU (ours)",
    "float-gelu": "int8, float GELU between GEMMs",
    "igelu-unfused": "int8, i-GELU as its own kernel",
}
_NAMES = {"gelu": "GELU", "relu": "ReLU"}
# Seconds that compiling takes on a machine with 16 cores, about.
_COMPILED = {"reduce-overhead": 75.0, "max-autotune": 400.0}


def ours(network: str, activation: str, target: str, batch: int, folder: Path) -> Contestant:
    """One of our artifacts, replayed as a CUDA graph on images that are on the device."""
    spec = ArtifactSpec(network, activation, target, batch)

    def build() -> Call:
        opened = open_ours(spec, folder)
        return opened.capture(_pixels(opened)).replay

    return Contestant(f"ours-{activation}", OURS[activation], build)


def ours_launched(network: str, target: str, batch: int, folder: Path) -> Contestant:
    """Our ReLU network without a graph: a launch for each kernel."""
    spec = ArtifactSpec(network, "relu", target, batch)

    def build() -> Call:
        opened = open_ours(spec, folder)
        return functools.partial(opened, _pixels(opened))

    return Contestant("ours-relu-launches", "int8 ReLU (ours), no CUDA graph", build)


def torch_fp16(
    network: str, batch: int, modes: list[str], activations: list[str]
) -> Iterator[Contestant]:
    """PyTorch's forms of the network; the modes in the given order.

    Args:
        network: of timm.
        batch: images.
        modes: some of "eager", "graph", "reduce-overhead" and "max-autotune".
        activations: some of "gelu" and "relu".
    """
    for mode in modes:
        for activation in activations:
            label = {"eager": "eager", "graph": "eager in a CUDA graph"}.get(
                mode, f"torch.compile {mode}"
            )
            build = functools.partial(_build_torch, network, activation, batch, mode)
            yield Contestant(
                f"torch-{mode}-{activation}",
                f"PyTorch fp16 {_NAMES[activation]}, {label}",
                build,
                _COMPILED.get(mode, 8.0),
            )


def open_ours(spec: ArtifactSpec, folder: Path) -> CudaNetwork:
    """The network of an artifact on GPU 0.

    Raises:
        IntswinError: it is not there, or does not run here.
    """
    network = runtime.load(spec.path(folder))
    if not isinstance(network, CudaNetwork):
        raise IntswinError(f"{spec.name} is for a CPU; this benchmark measures GPUs")
    return network


def images(batch: int, size: int) -> np.ndarray:
    """Random pixels, uint8 (batch, size, size, 3)."""
    return np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), np.uint8)


def torch_clock(stream: Any) -> Any:
    """The function `time_calls` of `gpu_bench.race`, for calls that run in a stream of torch."""
    import torch  # noqa: PLC0415

    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def time_calls(call: Call, count: int) -> float:
        with torch.cuda.stream(stream), torch.inference_mode():
            start.record()
            for _ in range(count):
                call()
            end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    return time_calls


def reset_torch() -> None:
    """Forget compiled networks, and give their memory back."""
    import torch  # noqa: PLC0415

    torch._dynamo.reset()
    torch.cuda.empty_cache()


def _pixels(network: CudaNetwork) -> Any:
    import torch  # noqa: PLC0415

    return torch.from_numpy(images(network.batch, network.preprocess.image_size)).cuda()


def _build_torch(network: str, activation: str, batch: int, mode: str) -> Call:
    import torch  # noqa: PLC0415

    from intswin.models.swin import (  # noqa: PLC0415
        create_model,
        model_preprocess,
        with_fused_attention,
    )

    torch.backends.cudnn.benchmark = True
    torch._dynamo.config.recompile_limit = 64  # networks, batches and modes share code
    checkpoint = "embedded" if network == "swin_micro" else None
    model = create_model(network, activation=activation, checkpoint=checkpoint).eval()
    size = model_preprocess(model).image_size
    model = with_fused_attention(model).half().cuda().to(memory_format=torch.channels_last)
    pixels = torch.randn(batch, 3, size, size, device="cuda", dtype=torch.float16)
    pixels = pixels.to(memory_format=torch.channels_last)
    if mode == "graph":
        return _recorded(model, pixels)
    if mode == "eager":
        return lambda: model(pixels)
    compiled = torch.compile(model, mode=mode, dynamic=False)

    def call() -> Any:
        torch.compiler.cudagraph_mark_step_begin()
        return compiled(pixels)

    with torch.inference_mode():
        for _ in range(3):  # compiles, warms up, records
            call()
    torch.cuda.synchronize()
    return call


def _recorded(model: Any, pixels: Any) -> Call:
    """Eager PyTorch in a CUDA graph; the call keeps the weights and pixels that the graph reads."""
    import torch  # noqa: PLC0415

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side), torch.inference_mode():
        for _ in range(3):
            model(pixels)
    torch.cuda.current_stream().wait_stream(side)
    # torch.compile frees the cuBLAS workspaces of all streams. One that was allocated before the
    # capture would leave the graph with memory that is gone; this makes the capture allocate its
    # own, in the graph's pool.
    torch._C._cuda_clearCublasWorkspaces()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph), torch.inference_mode():
        model(pixels)
    kept = (model, pixels)

    def call() -> Any:
        graph.replay()
        return kept

    return call

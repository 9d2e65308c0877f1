"""Whole networks: emitted, built, and equal to the reference; what they share; where they live."""

import numpy as np
import pytest
import tvm
from tvm import relax, tirx

import graphs
from intswin.compile.build import build, export
from intswin.compile.emit import emit
from intswin.compile.separate_gelu import emit_separate
from intswin.compile.targets import get_target
from intswin.models import integer_reference
from intswin.models.errors import IntswinError
from operator_runner import TARGETS


def _run(executable, images):
    return relax.VirtualMachine(executable, tvm.cpu())["main"](tvm.runtime.tensor(images)).numpy()


def _operators(mod):
    kernels = [f for f in mod.functions.values() if isinstance(f, tirx.PrimFunc)]
    return sorted(str(f.attrs["intswin.op"]) for f in kernels)


@pytest.mark.parametrize(
    ("activation", "batch"), [("none", 1), ("none", 4), ("igelu", 4), ("shiftgelu", 1)]
)
@pytest.mark.parametrize("target", TARGETS)
def test_swin(target, activation, batch):
    rng = np.random.default_rng(0)
    graph = graphs.tiny_swin_graph(rng, activation=activation)
    images = rng.integers(0, 256, (batch, *graph.input.shape), np.uint8)
    executable = build(emit(graph, batch, get_target(target)), get_target(target))
    expected = integer_reference.run(graph, images)
    np.testing.assert_array_equal(_run(executable, images), expected, strict=True)


@pytest.mark.parametrize("target", TARGETS)
def test_gelu_in_a_kernel_of_its_own(target):
    rng = np.random.default_rng(0)
    graph = graphs.tiny_swin_graph(rng, activation="igelu")
    images = rng.integers(0, 256, (2, *graph.input.shape), np.uint8)
    mod = emit_separate(graph, 2, get_target(target), "igelu")
    assert "separate_gelu" in _operators(mod)
    actual = _run(build(mod, get_target(target)), images)
    np.testing.assert_array_equal(actual, integer_reference.run(graph, images), strict=True)


@pytest.mark.parametrize("target", TARGETS)
def test_vit(target):
    rng = np.random.default_rng(0)
    graph = graphs.tiny_vit_graph(rng)
    images = rng.integers(0, 256, (1, *graph.input.shape), np.uint8)
    executable = build(emit(graph, 1, get_target(target)), get_target(target))
    np.testing.assert_array_equal(_run(executable, images), integer_reference.run(graph, images))


@pytest.mark.parametrize("target", ["cuda-v100", "cuda-h100"])
def test_a_batch_whose_offsets_leave_int32_is_refused(target):
    graph = graphs.tiny_swin_graph(np.random.default_rng(0))
    largest = 64 * 64  # the hidden channels of the first MLP: rows, channels
    most = 2**31 // largest - 16
    mod = emit(graph, most, get_target(target))
    sizes = {
        int(np.prod([int(extent) for extent in param.ty.shape]))
        for func in mod.functions.values()
        if isinstance(func, tirx.PrimFunc)
        for param in func.params
    }
    assert 2**31 - 2**17 < max(sizes) < 2**31
    with pytest.raises(IntswinError, match=f"{largest} numbers an image.*use {most} or less"):
        emit(graph, most + 1, get_target(target))
    emit(graph, most + 1, get_target("llvm"))


def test_layers_of_one_shape_share_a_kernel():
    rng = np.random.default_rng(0)
    b = graphs.GraphBuilder(16)
    x = b.add(graphs.patchify_case(16, 16, 4), "image")
    for _ in range(4):
        x = b.add(graphs.random_linear(rng, 16, 48, 48), x)
    x = b.add(graphs.random_mean_pool(rng, 16, 48), x)
    b.add(graphs.random_linear(rng, 1, 48, 5, "i32"), x)
    mod = emit(b.graph(), 1, get_target("llvm"))
    assert _operators(mod) == ["linear", "linear", "mean_pool", "patchify"]


def test_exported_library_runs_alone(tmp_path):
    rng = np.random.default_rng(0)
    graph = graphs.tiny_swin_graph(rng)
    target = get_target("llvm")
    export(build(emit(graph, 1, target), target), tmp_path / "network.so", target)
    images = rng.integers(0, 256, (1, *graph.input.shape), np.uint8)
    loaded = tvm.runtime.load_module(str(tmp_path / "network.so"))
    np.testing.assert_array_equal(_run(loaded, images), integer_reference.run(graph, images))


def test_cross_compiling_without_a_linker_says_what_to_install(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    target = get_target("llvm-aarch64")
    executable = build(emit(graphs.tiny_vit_graph(rng), 1, target), target)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(IntswinError, match="install gcc-aarch64-linux-gnu"):
        export(executable, tmp_path / "network.so", target)

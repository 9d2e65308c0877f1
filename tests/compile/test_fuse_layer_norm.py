"""LayerNorms joined with the GEMMs that read them: which ones, and that no number changes."""

import numpy as np
import pytest

import graphs
from intswin.compile.emit import emit_kernels
from intswin.compile.fuse_kernels import fuse_for_target
from intswin.compile.fuse_layer_norm import fuse_layer_norms
from intswin.compile.targets import get_target
from intswin.compile.verify_ranges import verify_ranges
from intswin.models import integer_reference
from intswin.models.errors import IntswinError

TENSOR_CORES = ["cuda-t4", "cuda-a100", "cuda-rtx4090", "cuda-h100"]


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def pair(rng, channels=32, out="u8", **epilogue):
    """A LayerNorm of 16 rows, and a GEMM that reads it."""
    b = graphs.GraphBuilder(16)
    x = b.add(graphs.patchify_case(16, 16, 4), "image")
    x = b.add(graphs.random_linear(rng, 16, 48, channels, "i16"), x)
    inputs = [b.add(graphs.random_layer_norm(rng, 16, channels, out), x)]
    if epilogue.get("residual"):
        inputs.append(x)
    b.add(graphs.random_linear(rng, 16, channels, channels, **epilogue), *inputs)
    return b.graph()


def two_readers(rng):
    graph = pair(rng)
    pool = graphs.random_mean_pool(rng, 16, 32).node
    pool.inputs = ["layer_norm_2"]
    graph.nodes.append(pool)
    return graph


def fused(graph, target_name, batch=1):
    return fuse_layer_norms(graph, batch, get_target(target_name))


def ops(graph):
    return [node.op for node in graph.nodes]


@pytest.mark.parametrize("activation", ["none", "igelu"])
@pytest.mark.parametrize("target_name", TENSOR_CORES)
def test_swin(rng, target_name, activation):
    graph = graphs.tiny_swin_graph(rng, channels=32, activation=activation)
    result = fused(graph, target_name, batch=2)
    joined = [node for node in result.nodes if node.op == "norm_linear"]
    # qkv and fc1 of two blocks, and between them the reduction, which gathers rows.
    assert [node.out.shape[1] for node in joined] == [96, 128, 64, 192, 256]
    assert ["rows" in node.tensors for node in joined] == [False, False, True, False, False]
    activated = activation != "none"
    with_gelu = [False, activated, False, False, activated]
    assert ["act_params" in node.tensors for node in joined] == with_gelu
    # Left are that of the patch embedding, whose int16 is the residual stream, and mean_pool's.
    assert ops(result).count("layer_norm") == 2
    assert len(result.nodes) == len(graph.nodes) - len(joined)
    images = graphs.random_images(rng, graph, 2)
    expected = integer_reference.run_all(graph, images)
    actual = integer_reference.run_all(result, images)
    assert len(actual) == len(expected) - len(joined)
    for name, array in actual.items():
        np.testing.assert_array_equal(array, expected[name], name, strict=True)


@pytest.mark.parametrize("target_name", ["llvm", "llvm-x86-64-v3", "llvm-aarch64", "cuda-v100"])
def test_nothing_without_tensor_cores(rng, target_name):
    graph = graphs.tiny_swin_graph(rng, channels=32)
    assert fused(graph, target_name).nodes == graph.nodes


@pytest.mark.parametrize("target_name", TENSOR_CORES)
@pytest.mark.parametrize(
    ("graph", "stays"),
    [
        (pair, False),
        (lambda rng: pair(rng, channels=2048), False),
        (lambda rng: pair(rng, channels=2080), True),  # too many for shared memory
        (lambda rng: pair(rng, channels=48), True),  # no whole steps of 32
        (lambda rng: pair(rng, out="i16"), True),
        (lambda rng: pair(rng, residual=True), True),
        (two_readers, True),
    ],
    ids=["pair", "2048 channels", "2080 channels", "48", "int16", "residual", "two readers"],
)
def test_pairs(rng, target_name, graph, stays):
    graph = graph(rng)
    before = ops(graph)
    assert before[2:4] == ["layer_norm", "linear"]
    after = [*before[:2], "norm_linear", *before[4:]]
    assert ops(fused(graph, target_name)) == (before if stays else after)


@pytest.mark.parametrize("target_name", TENSOR_CORES)
def test_large_gemms_stay(rng, target_name):
    """16 * 512 * 512 is 2^22: a batch of 64 has the most products that are fused."""
    graph = pair(rng, channels=512)
    assert "norm_linear" in ops(fused(graph, target_name, batch=64))
    assert "norm_linear" not in ops(fused(graph, target_name, batch=65))


def test_the_network_keeps_its_operators(rng):
    """What is stored is unfused; a network that came fused would be refused."""
    graph, target = graphs.tiny_swin_graph(rng, channels=32), get_target("cuda-h100")
    before = graph.to_bytes()
    emitted = [g.name_hint for g in emit_kernels(graph, 1, target).get_global_vars()]
    indices = [int(name.removeprefix("kernel_")) for name in emitted if "kernel_" in name]
    # They are numbered by the graph of all fusions.
    assert max(indices) == len(fuse_for_target(graph, 1, target).nodes) - 1
    assert graph.to_bytes() == before
    verify_ranges(graph)
    with pytest.raises(IntswinError, match=r"linear_4 \(norm_linear\): there is no such operator"):
        verify_ranges(fuse_layer_norms(graph, 1, target))

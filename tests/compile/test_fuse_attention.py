"""Attentions joined with what comes before them: which ones, and that no number changes."""

import numpy as np
import pytest

import graphs
from intswin.compile.fuse_attention import fuse_attention
from intswin.compile.fuse_kernels import fuse_for_target
from intswin.compile.targets import get_target
from intswin.compile.verify_ranges import verify_ranges
from intswin.models import integer_reference
from intswin.models.errors import IntswinError

TENSOR_CORES = ["cuda-t4", "cuda-a100", "cuda-rtx4090", "cuda-h100"]


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def triple(rng, windows=2, tokens=8, heads=2, channels=64, d=32, norm_out="u8", gather=False):
    """LayerNorm, q, k and v, attention."""
    rows = windows * tokens
    b = graphs.GraphBuilder(16)
    x = b.add(graphs.patchify_case(16, 16, 4), "image")
    x = b.add(graphs.random_linear(rng, 16, 48, channels, "i16"), x)
    norm = graphs.random_layer_norm(rng, rows, channels, norm_out)
    if gather:
        norm.node.tensors["rows"] = np.arange(rows, dtype=np.int32)[:, None]
    x = b.add(norm, x)
    x = b.add(graphs.random_linear(rng, rows, channels, 3 * heads * d, "s8"), x)
    b.add(graphs.random_attention(rng, windows, tokens, heads, d), x)
    return b.graph()


def two_readers(rng, name):
    graph = triple(rng)
    pool = graphs.random_mean_pool(rng, 16, 64).node
    pool.inputs = [name]
    graph.nodes.append(pool)
    return graph


def ops(graph):
    return [node.op for node in graph.nodes]


@pytest.mark.parametrize("target_name", TENSOR_CORES)
def test_swin(rng, target_name):
    graph = graphs.tiny_swin_graph(rng, channels=32, d=32)
    target = get_target(target_name)
    result = fuse_attention(graph, 2, target)
    joined = [node for node in result.nodes if node.op == "norm_attention"]
    assert len(joined) == ops(graph).count("attention") == 2
    assert "attention" not in ops(result)
    assert len(result.nodes) == len(graph.nodes) - 2 * len(joined)
    everything = fuse_for_target(graph, 2, target)
    assert ops(everything).count("norm_linear") == 1  # the reduction
    assert ops(everything).count("norm_mlp") == 2
    images = graphs.random_images(rng, graph, 2)
    expected = integer_reference.run_all(graph, images)
    actual = integer_reference.run_all(everything, images)
    assert len(actual) == len(expected) - 2 * 2 - 2 * 2 - 1
    for name, array in actual.items():
        np.testing.assert_array_equal(array, expected[name], name, strict=True)


@pytest.mark.parametrize("target_name", ["llvm", "llvm-x86-64-v3", "llvm-aarch64", "cuda-v100"])
def test_nothing_without_tensor_cores(rng, target_name):
    graph = graphs.tiny_swin_graph(rng, channels=32, d=32)
    assert fuse_attention(graph, 1, get_target(target_name)).nodes == graph.nodes


@pytest.mark.parametrize(
    ("graph", "stays"),
    [
        (triple, False),
        (lambda rng: triple(rng, channels=48), True),  # no whole steps of 32
        (lambda rng: triple(rng, d=16, heads=4), True),
        (lambda rng: triple(rng, d=64), True),
        (lambda rng: triple(rng, gather=True), True),
        (lambda rng: two_readers(rng, "layer_norm_2"), True),
        (lambda rng: two_readers(rng, "linear_3"), True),
    ],
    ids=["triple", "48 channels", "d 16", "d 64", "gathered", "norm read twice", "qkv read twice"],
)
def test_triples(rng, graph, stays):
    graph = graph(rng)
    assert ops(graph)[2:5] == ["layer_norm", "linear", "attention"]
    result = ops(fuse_attention(graph, 1, get_target("cuda-h100")))
    assert result == (ops(graph) if stays else [*ops(graph)[:2], "norm_attention"])


@pytest.mark.parametrize("target_name", TENSOR_CORES)
def test_large_problems_stay(rng, target_name):
    """16 * 256 * 768 is 3 * 2^20: a batch of 85 has the most products that are fused."""
    graph, target = triple(rng, heads=8, channels=256), get_target(target_name)
    assert "norm_attention" in ops(fuse_attention(graph, 85, target))
    assert "norm_attention" not in ops(fuse_attention(graph, 86, target))


def test_wide_windows_stay(rng):
    """Each head would normalise all of their channels."""
    target = get_target("cuda-h100")
    graph = triple(rng, windows=1, tokens=48, heads=1, channels=256)
    assert "norm_attention" in ops(fuse_attention(graph, 1, target))
    graph = triple(rng, windows=1, tokens=49, heads=1, channels=256)
    assert "norm_attention" not in ops(fuse_attention(graph, 1, target))


def test_a_network_that_came_fused_is_refused(rng):
    result = fuse_attention(triple(rng), 1, get_target("cuda-h100"))
    with pytest.raises(IntswinError, match=r"\(norm_attention\): there is no such operator"):
        verify_ranges(result)

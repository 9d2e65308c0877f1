"""Attentions joined with what is around them: which ones, and that no number changes."""

import dataclasses

import numpy as np
import pytest

import graphs
from intswin.compile.fuse_attention import fuse_attention, fuse_msa
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
    # Of the stages with one and two heads the second has a cluster for the projection.
    projected = ops(everything).count("norm_msa")
    assert projected == (target_name == "cuda-h100")
    images = graphs.random_images(rng, graph, 2)
    expected = integer_reference.run_all(graph, images)
    actual = integer_reference.run_all(everything, images)
    assert len(actual) == len(expected) - 2 * 2 - 2 * 2 - 1 - projected
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


def four(rng, heads=2, channels=64, residual=True, **epilogue):
    """LayerNorm, q, k and v, attention, the projection with x added."""
    graph = triple(rng, heads=heads, channels=channels)
    x, attention = graph.nodes[-4].name, graph.nodes[-1]
    epilogue = {"out": "i16", "residual": residual, **epilogue}
    projection = graphs.random_linear(rng, 16, 32 * heads, channels, **epilogue).node
    projection.inputs = [attention.name, x][: 1 + residual]
    graph.nodes.append(dataclasses.replace(projection, name="projection"))
    return graph


@pytest.mark.parametrize(
    ("graph", "target_name", "joined"),
    [
        (four, "cuda-h100", True),
        (four, "cuda-a100", False),  # no clusters
        (lambda rng: four(rng, heads=1, channels=32), "cuda-h100", False),
        (lambda rng: four(rng, heads=16, channels=512), "cuda-h100", True),
        (lambda rng: four(rng, heads=17, channels=544), "cuda-h100", False),
        (lambda rng: four(rng, channels=96), "cuda-h100", False),
        (lambda rng: four(rng, residual=False), "cuda-h100", False),
        (lambda rng: four(rng, out="u8", residual=False), "cuda-h100", False),
    ],
    ids=["four", "a100", "1 head", "16 heads", "17 heads", "wide x", "no residual", "u8"],
)
def test_projections(rng, graph, target_name, joined):
    graph, target = graph(rng), get_target(target_name)
    result = fuse_msa(graph, 1, target)
    assert ops(result) == ([*ops(graph)[:2], "norm_msa"] if joined else ops(graph))
    assert result.nodes[-1].name == "projection"
    images = graphs.random_images(rng, graph, 2)
    expected = integer_reference.run_all(graph, images)["projection"]
    actual = integer_reference.run_all(result, images)["projection"]
    np.testing.assert_array_equal(actual, expected, strict=True)


def test_another_residual_stays(rng):
    graph = four(rng)
    graph.nodes[-1].inputs[1] = "linear_1"  # the residual of what is normalised: x itself
    assert "norm_msa" in ops(fuse_msa(graph, 1, get_target("cuda-h100")))
    graph.nodes.insert(2, dataclasses.replace(graph.nodes[1], name="other"))
    graph.nodes[-1].inputs[1] = "other"
    assert "norm_msa" not in ops(fuse_msa(graph, 1, get_target("cuda-h100")))


def test_a_network_that_came_fused_is_refused(rng):
    result = fuse_attention(triple(rng), 1, get_target("cuda-h100"))
    with pytest.raises(IntswinError, match=r"\(norm_attention\): there is no such operator"):
        verify_ranges(result)

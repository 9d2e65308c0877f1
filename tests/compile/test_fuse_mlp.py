"""MLPs joined with their LayerNorms and residuals: which ones, and that no number changes."""

import numpy as np
import pytest

import graphs
from intswin.compile.emit import emit
from intswin.compile.fuse_kernels import fuse_for_target
from intswin.compile.fuse_mlp import fuse_mlps
from intswin.compile.operators.cuda_linear import weight_layout
from intswin.compile.targets import get_target
from intswin.models import integer_reference


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def mlp(
    rng, channels=32, hidden=64, norm="u8", first="u8", out="i16", residual="own", second="none"
):
    """A LayerNorm of 16 rows, and an MLP that reads it."""
    b = graphs.GraphBuilder(16)
    image = b.add(graphs.patchify_case(16, 16, 4), "image")
    x = b.add(graphs.random_linear(rng, 16, 48, channels, "i16"), image)
    other = b.add(graphs.random_linear(rng, 16, 48, channels, "i16"), image)
    inner = b.add(graphs.random_layer_norm(rng, 16, channels, norm), x)
    inner = b.add(graphs.random_linear(rng, 16, channels, hidden, first), inner)
    last = graphs.random_linear(
        rng, 16, hidden, channels, out, residual=residual is not None, activation=second
    )
    b.add(last, inner, *{"own": [x], "other": [other], None: []}[residual])
    return b.graph()


def with_reader(rng, name):
    graph = mlp(rng)
    pool = graphs.random_mean_pool(rng, 16, 64 if name.startswith("linear") else 32).node
    pool.inputs = [name]
    graph.nodes.append(pool)
    return graph


def ops(graph):
    return [node.op for node in graph.nodes]


@pytest.mark.parametrize("activation", ["none", "igelu"])
@pytest.mark.parametrize("target_name", ["cuda-a100", "cuda-h100"])
def test_swin(rng, target_name, activation):
    graph = graphs.tiny_swin_graph(rng, channels=32, activation=activation)
    result = fuse_for_target(graph, 2, get_target(target_name))
    joined = [node for node in result.nodes if node.op == "norm_mlp"]
    assert [node.out.shape[1] for node in joined] == [32, 64]
    assert [node.tensors["weight"].shape[0] for node in joined] == [128, 256]
    assert [node.tensors["weight2"].shape[1] for node in joined] == [128, 256]
    # What is left for the pairs: qkv, the reduction, qkv.
    assert ops(result).count("norm_linear") == 3
    images = graphs.random_images(rng, graph, 2)
    expected = integer_reference.run_all(graph, images)
    for name, array in integer_reference.run_all(result, images).items():
        np.testing.assert_array_equal(array, expected[name], name, strict=True)
    kernels = [
        str(f.attrs.get("intswin.op"))
        for f in emit(graph, 2, get_target(target_name)).functions.values()
        if f.attrs
    ]
    assert "norm_mlp" in kernels


@pytest.mark.parametrize("target_name", ["llvm", "llvm-x86-64-v3", "llvm-aarch64", "cuda-v100"])
def test_nothing_without_tensor_cores(rng, target_name):
    graph = graphs.tiny_swin_graph(rng, channels=32)
    assert fuse_mlps(graph, 1, get_target(target_name)).nodes == graph.nodes


@pytest.mark.parametrize(
    ("graph", "joined"),
    [
        (mlp, True),
        (lambda rng: mlp(rng, channels=384, hidden=1536), True),
        (lambda rng: mlp(rng, channels=768, hidden=3072), False),  # too large for 8 blocks
        (lambda rng: mlp(rng, channels=48), False),  # no whole steps of 32
        (lambda rng: mlp(rng, hidden=48), False),
        (lambda rng: mlp(rng, norm="i16"), False),
        (lambda rng: mlp(rng, first="s8"), False),
        (lambda rng: mlp(rng, out="u8", residual=None), False),
        (lambda rng: mlp(rng, residual=None), False),
        (lambda rng: mlp(rng, residual="other"), False),
        (lambda rng: mlp(rng, second="igelu"), False),
        (lambda rng: with_reader(rng, "layer_norm_3"), False),
        (lambda rng: with_reader(rng, "linear_4"), False),
    ],
)
def test_which(rng, graph, joined):
    graph = graph(rng)
    before = ops(graph)
    assert before[3:6] == ["layer_norm", "linear", "linear"]
    after = ops(fuse_mlps(graph, 1, get_target("cuda-h100")))
    assert after == ([*before[:3], "norm_mlp", *before[6:]] if joined else before)


def test_a_block_alone_has_no_room_for_large_weights(rng):
    """Before sm_90 there are no clusters: what does not fit stays in pairs."""
    graph = mlp(rng, channels=384, hidden=1536)
    assert "norm_mlp" not in ops(fuse_for_target(graph, 1, get_target("cuda-a100")))
    assert "norm_linear" in ops(fuse_for_target(graph, 1, get_target("cuda-a100")))


def test_rows_for_which_the_second_gemm_alone_is_wgmma(rng):
    graph, target = mlp(rng, channels=96, hidden=384), get_target("cuda-h100")
    batch = 196  # 3136 rows, as in stage 1 of swin_tiny
    assert weight_layout(target, 384, 16 * batch) == "wgmma"
    assert "norm_mlp" in ops(fuse_mlps(graph, batch, target))


def test_large_problems_stay(rng):
    """16 * 384 * 1536 is 9 * 2^20: a batch of 28 has the most products that are fused."""
    graph, target = mlp(rng, channels=384, hidden=1536), get_target("cuda-h100")
    assert "norm_mlp" in ops(fuse_mlps(graph, 28, target))
    assert "norm_mlp" not in ops(fuse_mlps(graph, 29, target))

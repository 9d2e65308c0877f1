"""Networks compiled for CUDA and emulated equal the reference in every tensor."""

import numpy as np
import pytest

import graphs
from cuda_emulator import emulate_network
from intswin.compile.emit import emit
from intswin.compile.fuse_kernels import fuse_for_target
from intswin.compile.pipeline import (
    CompileOptions,
    load_calibration,
    load_float_network,
    quantize_network,
)
from intswin.compile.schedules import apply_default_schedules
from intswin.compile.targets import get_target
from intswin.models import integer_reference


def swin_micro():
    options = CompileOptions()
    network = load_float_network(options)
    return quantize_network(options, network, load_calibration(options, network)).graph


def check(graph, target_name, images):
    target = get_target(target_name)
    mod = apply_default_schedules(emit(graph, len(images), target), target)
    expected = integer_reference.run_all(graph, images)
    nodes = iter(fuse_for_target(graph, len(images), target).nodes)

    def on_kernel(_kernel, output):
        node = next(nodes)
        np.testing.assert_array_equal(output, expected[node.name], node.name, strict=True)

    logits = emulate_network(mod, target, images, on_kernel=on_kernel)
    np.testing.assert_array_equal(logits, expected[graph.nodes[-1].name][:, 0], strict=True)
    assert next(nodes, None) is None


@pytest.mark.parametrize("target", [pytest.param("cuda-v100", marks=pytest.mark.slow), "cuda-h100"])
def test_swin_micro(target):
    graph = swin_micro()
    check(graph, target, graphs.random_images(np.random.default_rng(0), graph, 1))


@pytest.mark.parametrize(
    ("target", "activation"), [("cuda-t4", "igelu"), ("cuda-a100", "shiftgelu")]
)
def test_vit(target, activation):
    rng = np.random.default_rng(0)
    graph = graphs.tiny_vit_graph(rng, activation=activation)
    check(graph, target, graphs.random_images(rng, graph, 3))

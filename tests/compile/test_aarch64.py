"""Networks cross-compiled for aarch64 and run by qemu give the reference's numbers."""

import shutil

import numpy as np
import pytest

import graphs
from intswin.models import integer_reference

_MISSING = [t for t in ("qemu-aarch64", "aarch64-linux-gnu-gcc") if not shutil.which(t)]
pytestmark = pytest.mark.skipif(bool(_MISSING), reason=f"not installed: {', '.join(_MISSING)}")


@pytest.mark.parametrize("activation", ["none", "igelu", "shiftgelu"])
@pytest.mark.parametrize(
    ("make", "batch"), [(graphs.tiny_swin_graph, 2), (graphs.tiny_vit_graph, 1)]
)
def test_network(make, batch, activation, tmp_path):
    from aarch64_program import run_network

    rng = np.random.default_rng(3)
    graph = make(rng, activation=activation)
    image = rng.integers(0, 256, (batch, *graph.input.shape), np.uint8)
    expected = integer_reference.run(graph, image)
    np.testing.assert_array_equal(run_network(graph, image, tmp_path), expected)

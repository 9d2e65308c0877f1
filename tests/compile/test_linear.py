"""The compiled GEMM, its epilogues and the integer GELUs equal the reference bit for bit."""

import numpy as np
import pytest
import tvm
from tvm import te

import graphs
from intswin.compile.operators.integer_gelu import igelu, shiftgelu
from intswin.compile.operators.packed_weight import pack_weight
from intswin.compile.targets import get_target
from intswin.models import integer_ops
from operator_runner import TARGETS, check_compiled

_EPILOGUES: dict[str, dict] = {
    "relu": {"zero_point": 0},
    "u8": {},
    "s8": {"out": "s8"},
    "i16": {"out": "i16"},
    "residual": {"out": "i16", "residual": True},
    "i32": {"out": "i32"},
    "igelu": {"activation": "igelu"},
    "shiftgelu": {"activation": "shiftgelu"},
}


@pytest.mark.parametrize("extreme", [False, True])
@pytest.mark.parametrize("epilogue", _EPILOGUES)
@pytest.mark.parametrize("target", TARGETS)
def test_epilogues(target, epilogue, extreme):
    rng = np.random.default_rng(0)
    case = graphs.random_linear(rng, 49, 96, 64, extreme=extreme, **_EPILOGUES[epilogue])
    check_compiled(case, 1, target, (case.inputs(rng, 1, extreme) for _ in range(3)))


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("rows", "k", "n"),
    [
        (64, 48, 96),  # patch embedding
        (1, 64, 10),  # a head: one row, columns that do not fill a block
        (3, 33, 5),  # nothing is a multiple of anything
        (17, 32, 24),  # padded rows
        (197, 30, 21),  # a ViT's tokens
        (8, 1024, 16),
    ],
)
def test_shapes(target, rows, k, n, batch):
    rng = np.random.default_rng(1)
    for options in ({"zero_point": 0}, {"out": "i16", "residual": True}):
        case = graphs.random_linear(rng, rows, k, n, **options)
        check_compiled(case, batch, target, [case.inputs(rng, batch)])


@pytest.mark.parametrize("k", range(6, 11))
@pytest.mark.parametrize("activation", ["igelu", "shiftgelu"])
def test_gelu_of_every_input(activation, k):
    """All 2^16 inputs; for shiftgelu the division without a division among them."""
    function = {"igelu": igelu, "shiftgelu": shiftgelu}[activation]
    t = np.arange(-(1 << 15), 1 << 15, dtype=np.int32)
    constants = graphs.act_params(activation, k, 1.0)[:4]
    t_in, constants_in = te.placeholder(t.shape, "int32"), te.placeholder((4,), "int32")
    out = te.compute(t.shape, lambda i: function(t_in[i], constants_in))
    kernel = tvm.compile(te.create_prim_func([t_in, constants_in, out]), get_target("llvm"))
    actual = tvm.runtime.tensor(np.zeros_like(t))
    kernel(tvm.runtime.tensor(t), tvm.runtime.tensor(constants), actual)
    _, qb, q1, e = (int(v) for v in constants)
    reference = {
        "igelu": lambda: integer_ops.igelu(t.astype(np.int64), qb, q1, e),
        "shiftgelu": lambda: integer_ops.shiftgelu(t.astype(np.int64), k),
    }
    np.testing.assert_array_equal(actual.numpy(), reference[activation]())


@pytest.mark.parametrize(("layout", "columns"), [("vnni", 16), ("avx2", 8), ("plain", 16)])
def test_packed_weights_hold_every_element_once(layout, columns):
    weight = np.arange(-60, 60, dtype=np.int8).reshape(12, 10)
    packed = pack_weight(weight, layout)
    depth = 10 if layout == "plain" else 12
    assert packed.size == (12 + -12 % columns) * depth
    assert sorted(packed[packed != 0]) == sorted(weight[weight != 0])

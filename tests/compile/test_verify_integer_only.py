"""A float hidden anywhere in a module is found and named."""

import numpy as np
import pytest
import tvm
from tvm import relax, te, tirx

import graphs
from intswin.compile.build import build, build_with_report
from intswin.compile.emit import emit
from intswin.compile.targets import get_target
from intswin.compile.verify_integer_only import FloatOperationError, verify_integer_only


def _kernel(body, dtype="int32"):
    x = te.placeholder((4,), dtype, "x")
    return tvm.IRModule(
        {"kernel": te.create_prim_func([x, te.compute((4,), lambda i: body(x[i]))])}
    )


@pytest.mark.parametrize(
    ("body", "operation"),
    [
        (lambda x: tirx.sqrt(x.astype("float32")).astype("int32"), r"float32 in \w+ .*Cast"),
        (lambda x: (x.astype("float64") * 2.0).astype("int32"), "float64"),
        (lambda x: tirx.reinterpret("int32", tirx.reinterpret("float32", x)), "reinterpret"),
        (lambda x: tirx.call_pure_extern("int32", "secret", x), "secret"),
    ],
)
def test_float_in_a_kernel(body, operation):
    with pytest.raises(FloatOperationError, match=f"kernel: .*{operation}"):
        verify_integer_only(_kernel(body))


def test_half_precision_buffer():
    with pytest.raises(FloatOperationError, match=r"kernel: float16 in .*x"):
        verify_integer_only(_kernel(lambda x: x, "float16"))


def test_integers_pass():
    report = verify_integer_only(_kernel(lambda x: x * x + 1))
    assert report.functions == ["kernel"]
    assert report.operations["int32"] >= 3


def _network_with(operation):
    """A network whose logits go through `operation` (a Relax expression to another)."""
    rng = np.random.default_rng(0)
    mod = emit(graphs.tiny_vit_graph(rng), 1, get_target("llvm"))
    main = mod["main"]
    bb = relax.BlockBuilder(mod)
    image = relax.Var("image", main.params[0].ty)
    with bb.function("planted", [image]):
        with bb.dataflow():
            logits = bb.emit(relax.Call(mod.get_global_var("main"), [image]))
            out = bb.emit_output(operation(logits))
        bb.emit_func_output(out)
    return bb.get()


def test_float_in_relax():
    mod = _network_with(lambda x: relax.op.astype(relax.op.astype(x, "float32"), "int32"))
    with pytest.raises(FloatOperationError, match="planted: "):
        build(mod, get_target("llvm"))


def test_relax_operator_outside_the_list():
    with pytest.raises(FloatOperationError, match="planted: "):
        verify_integer_only(_network_with(lambda x: relax.op.add(x, x)))


def test_report_of_a_network():
    mod = emit(graphs.tiny_vit_graph(np.random.default_rng(0)), 1, get_target("llvm"))
    _, report = build_with_report(mod, get_target("llvm"))
    assert {"linear", "attention", "layer_norm", "add_constant"} <= set(report.functions)
    assert report.operations["int32"] > 100
    assert not [dtype for dtype in report.operations if "float" in dtype]

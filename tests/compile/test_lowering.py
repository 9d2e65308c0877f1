"""Kernels that are written out are lowered to the same without the compaction of their buffers."""

import numpy as np
import pytest
import tvm
from tvm.tirx import get_tir_pipeline
from tvm_ffi import structural_equal

import graphs
from intswin.compile.emit import emit
from intswin.compile.lowering import lower_with
from intswin.compile.schedules import apply_default_schedules
from intswin.compile.targets import get_target


@pytest.mark.parametrize("name", ["cuda-h100", "cuda-v100"])
def test_same_functions(name):
    target = get_target(name)
    graph = graphs.tiny_swin_graph(np.random.default_rng(0), channels=32, d=32)
    mod = apply_default_schedules(emit(graph, 1, target), target)
    kernels = tvm.IRModule(
        {
            gvar: func.with_attr("global_symbol", gvar.name_hint)
            for gvar, func in mod.functions.items()
            if isinstance(func, tvm.tirx.PrimFunc)
        }
    )
    pipeline, _, _ = get_tir_pipeline("s_tir")
    passes: list[str] = []
    with target:
        kernels = tvm.tirx.transform.BindTarget(target)(kernels)
        with tvm.transform.PassContext(instruments=[_Names(passes)]):
            ours = lower_with(pipeline)(kernels)
        theirs = pipeline(kernels)
    # Once, for the kernels that were scheduled: pooling, and what moves data.
    assert passes.count("s_tir.CompactBufferAllocation") == 1
    assert passes.count("s_tir.LowerOpaqueBlock") == 1
    names = {gvar.name_hint for gvar in theirs.functions}
    assert {gvar.name_hint for gvar in ours.functions} == names
    assert len(names) > len(kernels.functions)  # the kernels are functions of their own
    for one in sorted(names):
        assert structural_equal(ours[one], theirs[one], map_free_vars=True), one


@tvm.ir.instrument.pass_instrument
class _Names:
    """Notes which passes ran."""

    def __init__(self, passes):
        self.passes = passes

    def run_before_pass(self, _mod, info):
        self.passes.append(info.name)

"""Run a kernel of clusters by TVM's own runtime, in a process that sees a GPU."""

import numpy as np
import tvm
from tvm import tirx

from intswin.compile.build import build_kernel
from intswin.compile.schedules.cuda_norm_mlp_space import NormMlpTile
from intswin.compile.targets import get_target
from intswin.compile.tuner import space
from intswin.models.integer_ops import execute
from norm_mlp import random_norm_mlp
from operator_runner import emit_operator


def main():
    """Two clusters of four blocks, which a launch without clusters could not compute."""
    rng, target = np.random.default_rng(0), get_target("cuda-h100")
    case, _ = random_norm_mlp(rng, 30, 32, 128)
    mod = emit_operator(case, 1, target)
    (func,) = (f for f in mod.functions.values() if isinstance(f, tirx.PrimFunc))
    workload = tvm.IRModule({"main": func.with_attr("global_symbol", "main")})
    schedule = space.decide(workload, target, NormMlpTile(16, 4, 1, 1, 1, 1, 1, 4, 0))
    library = build_kernel(space.finished(schedule, target), target)
    passed = mod["main"].body.blocks[0].bindings[0].value.args[1]
    constants = [c.value.numpy() for c in passed if isinstance(c, tvm.ir.GenericConst)]
    (x,) = case.inputs(rng, 1)
    expected = execute(case.node, [x])
    y = tvm.runtime.tensor(np.zeros_like(expected), tvm.cuda(0))
    library["main"](*(tvm.runtime.tensor(a, tvm.cuda(0)) for a in (x, *constants)), y)
    np.testing.assert_array_equal(y.numpy(), expected)


if __name__ == "__main__":
    main()

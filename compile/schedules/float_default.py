"""CPU schedules of the float32 network that `intswin bench` compares the integer ones with.

One rule for each kind of kernel that the "zero" pipeline makes of a vision transformer: matrix
multiplications get a register tile with their epilogue at it, everything else computes rows in
parallel and the last axis in vectors. Nothing is tuned and no weight is packed: this is the float
counterpart of our untuned integer schedules, not the fastest float code.
"""

from __future__ import annotations

import math

import tvm
from tvm import relax, s_tir, te, tirx, topi
from tvm.ir import IRModule
from tvm.s_tir.schedule import LoopRV, SBlockRV
from tvm.target import Target, codegen

TILE_ROWS = 7  # Swin's rows are multiples of 49
FLOAT_BITS = 32
MAX_VECTOR = 64  # elements; an awkward row length (49) is one vector up to here
UNROLL = 64  # statements; at most this many accumulator vectors are written out


def build_float(mod: IRModule, target: Target) -> relax.VMExecutable:
    """Compile a float32 Relax module of a vision transformer."""
    with target:
        mod = tvm.transform.Sequential(
            [
                relax.transform.DecomposeOpsForInference(),
                relax.transform.CanonicalizeBindings(),
                # Without fast_exp and fast_erf LLVM calls libm's functions, element by element.
                relax.transform.FastMathTransform(),
                relax.transform.LegalizeOps({"relax.nn.gelu": _gelu, "relax.take": _take}),
                relax.get_pipeline("zero"),
            ]
        )(mod)
        return tvm.compile(schedule_float(mod, target), target=target)


def _gelu(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    def gelu(x: te.Tensor) -> te.Tensor:
        half = topi.multiply(x, 0.5)
        return topi.add(half, topi.multiply(half, topi.fast_erf(topi.multiply(x, math.sqrt(0.5)))))

    return builder.call_te(gelu, call.args[0])


def _take(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """The importer's mode "fast" makes TVM warn of segmentation faults, once for each roll."""
    array, indices = call.args
    return builder.call_te(topi.take, array, indices, axis=call.attrs.axis, mode="clip")


def schedule_float(mod: IRModule, target: Target) -> IRModule:
    """Schedule every PrimFunc of a legalized and fused module."""
    lanes = codegen.llvm_get_vector_width(target) // FLOAT_BITS
    scheduled = {
        variable: _schedule(s_tir.Schedule(function), lanes)
        for variable, function in mod.functions.items()
        if isinstance(function, tirx.PrimFunc)
    }
    mod = IRModule(mod.functions, attrs=mod.attrs)
    for variable, function in scheduled.items():
        mod[variable] = function
    return mod


def _schedule(sch: s_tir.Schedule, lanes: int) -> tirx.PrimFunc:
    root = sch.get_sblock("root")
    *inner, output = sch.get_child_blocks(root)
    for block in inner:
        # A block that sums is computed once a row, and so is what is summed again or costly.
        if not _reduces(sch, block) and not _keep(sch, block):
            sch.compute_inline(block)
    blocks = sch.get_child_blocks(root)
    reductions = [block for block in blocks if _reduces(sch, block)]
    if len(reductions) == 1 and _multiplies(sch, reductions[0]):
        _tile_product(sch, reductions[0], output, lanes)
    elif not reductions:
        _parallel_vectors(sch, output)
    elif _reduces(sch, output):
        sch.parallel(sch.fuse(*_spatial_loops(sch, output)))
    else:
        *rows, _ = sch.get_loops(output)
        outer = sch.fuse(*rows)
        for block in reversed(blocks[:-1]):
            sch.compute_at(block, outer)
        sch.parallel(outer)
        for block in blocks:
            if not _reduces(sch, block) and len(sch.get_loops(block)) > 1:
                _vectorize_row(sch, block, lanes)
    return sch.mod["main"]


def _tile_product(sch: s_tir.Schedule, block: SBlockRV, output: SBlockRV, lanes: int) -> None:
    """Rows x columns of accumulators in registers; the innermost reduction feeds all of them."""
    if sch.get(block) != sch.get(output):
        # The epilogue has the product's shape or a reshape of it: tile the product, and compute
        # the epilogue where a tile of it is complete.
        accumulate = block
    else:
        accumulate = block
        output = sch.cache_write(block, 0, "local")
    spatial = _spatial_loops(sch, output)
    *batch, row, column = spatial
    rows = _divisor(_extent(sch, row), TILE_ROWS)
    width = _extent(sch, column)
    columns = width if width % lanes and width <= MAX_VECTOR else _divisor(width, 2 * lanes)
    row_outer, row_inner = sch.split(row, [None, rows])
    column_outer, column_inner = sch.split(column, [None, columns])
    sch.reorder(*batch, row_outer, column_outer, row_inner, column_inner)
    sch.compute_at(accumulate, column_outer, preserve_unit_loops=True)
    sch.set_scope(accumulate, 0, "local")
    tile = sch.get_loops(accumulate)[len(batch) + 2 :]
    reduced = [loop for loop in tile if loop not in tile[:2]]
    sch.reorder(*reduced, *tile[:2])
    sch.vectorize(tile[1])
    sch.unroll(tile[0])
    sch.vectorize(column_inner)
    sch.parallel(sch.fuse(*batch, row_outer, column_outer))
    init = sch.decompose_reduction(accumulate, reduced[0])
    *_, init_row, init_column = sch.get_loops(init)
    sch.unroll(init_row)
    sch.vectorize(init_column)


def _parallel_vectors(sch: s_tir.Schedule, output: SBlockRV) -> None:
    """An elementwise kernel."""
    loops = sch.get_loops(output)
    columns = _divisor(_extent(sch, loops[-1]), MAX_VECTOR)
    column_outer, column_inner = sch.split(loops[-1], [None, columns])
    sch.vectorize(column_inner)
    sch.parallel(sch.fuse(*loops[:-1], column_outer))


def _vectorize_row(sch: s_tir.Schedule, block: SBlockRV, lanes: int) -> None:
    last = sch.get_loops(block)[-1]
    width = _extent(sch, last)
    if width > MAX_VECTOR:
        _, last = sch.split(last, [None, _divisor(width, 2 * lanes)])
    sch.vectorize(last)


def _spatial_loops(sch: s_tir.Schedule, block: SBlockRV) -> list[LoopRV]:
    kinds = [axis.iter_type for axis in sch.get(block).iter_vars]
    return [
        loop
        for loop, kind in zip(sch.get_loops(block), kinds, strict=True)
        if kind == tirx.IterVar.DataPar
    ]


def _reduces(sch: s_tir.Schedule, block: SBlockRV) -> bool:
    return any(axis.iter_type == tirx.IterVar.CommReduce for axis in sch.get(block).iter_vars)


def _keep(sch: s_tir.Schedule, block: SBlockRV) -> bool:
    """Whether more than one block reads this one (softmax's exponentials, a layer's mean)."""
    return len(sch.get_consumers(block)) > 1


def _multiplies(sch: s_tir.Schedule, block: SBlockRV) -> bool:
    """Whether a reduction is a sum of products of two tensors."""
    return len(sch.get(block).reads) == 2


def _extent(sch: s_tir.Schedule, loop: LoopRV) -> int:
    return int(sch.get(loop).extent)


def _divisor(number: int, limit: int) -> int:
    return next(d for d in range(min(number, limit), 0, -1) if number % d == 0)

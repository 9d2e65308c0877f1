"""The LayerNorm kernel for CUDA: some lanes do a row (cuda_layer_norm_row.py).

Offsets fit int32 (cuda_offsets.py): rows and vectors behind the last one are clamped to it to be
loaded, and not written.

A network has a description of the kernel at first, on whose tile a search can decide
(cuda_tiles.py).
"""

from __future__ import annotations

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from intswin.compile.operators.expressions import int32, saturate
from intswin.compile.schedules import cuda_intrinsics as cuda
from intswin.compile.schedules import cuda_tiles, simd
from intswin.compile.schedules.cuda_intrinsics import Buffer, Expr
from intswin.compile.schedules.cuda_layer_norm_row import LayerNormRow, load_params
from intswin.compile.schedules.cuda_layer_norm_space import LayerNormTile
from intswin.compile.schedules.layer_norm import LayerNormShape

_WARP = 32


def describe(shape: LayerNormShape) -> tirx.PrimFunc:
    """The PrimFunc that a network has at first."""
    return cuda_tiles.describe("layer_norm", shape, _parameters(shape))


def kernel(_func: tirx.PrimFunc, shape: LayerNormShape, tile: LayerNormTile) -> tirx.PrimFunc:
    """The kernel of a description: of its shape and the tile that was decided on."""
    return layer_norm_kernel(shape, tile).without_attr("global_symbol")


def layer_norm_kernel(shape: LayerNormShape, tile: LayerNormTile) -> tirx.PrimFunc:
    """Make the PrimFunc of all layers of a shape, for a GPU.

    Its arguments: x int16 (B, R', c); where `shape.indexed`, rows int32 (R, G); gamma and beta
    int32 (C,); params int64 (1,); the output y of dtype `shape.out` (B, R, C).
    """
    with IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_name("layer_norm")
            _emit(shape, tile, cuda_tiles.declare(_parameters(shape)))
    return simd.finished(builder.get(), "layer_norm")


def _parameters(shape: LayerNormShape) -> list[cuda_tiles.Parameter]:
    channels = shape.gather * shape.channels
    parameters: list[cuda_tiles.Parameter] = [
        ("x", (shape.batch, shape.in_rows, shape.channels), "int16")
    ]
    if shape.indexed:
        parameters.append(("rows", (shape.rows, shape.gather), "int32"))
    parameters += [("gamma", (channels,), "int32"), ("beta", (channels,), "int32")]
    parameters += [("params", (1,), "int64"), ("y", (shape.batch, shape.rows, channels), shape.out)]
    return parameters


def _emit(shape: LayerNormShape, tile: LayerNormTile, args: dict[str, Buffer]) -> None:
    rows = shape.batch * shape.rows
    per_block = _WARP * tile.warps // tile.lanes
    with T.launch_thread("blockIdx.x", -(-rows // per_block)) as block:
        with T.launch_thread("threadIdx.x", _WARP * tile.warps) as thread:
            row = T.Bind(block * per_block + tirx.truncdiv(thread, int32(tile.lanes)))
            lane = T.Bind(tirx.truncmod(thread, int32(tile.lanes)))
            (eps,) = load_params(args["params"])
            norm = LayerNormRow(shape, tile.lanes, args, row, lane, eps, int32(shape.shift))
            norm.locate()
            T.evaluate(cuda.wait_for_grid())
            norm.load()
            norm.statistics()

            def store(vector: Expr, results: list[Expr]) -> None:
                _store(shape, args["y"], row, vector, results)

            if rows % per_block == 0:
                norm.write(store)
                return
            with T.If(row < int32(rows)):
                with T.Then():
                    norm.write(store)


def _store(shape: LayerNormShape, y: Buffer, row: Expr, vector: Expr, results: list[Expr]) -> None:
    """Write a vector of a row of y."""
    width = len(results)
    at = row * (shape.gather * shape.channels) + vector * width
    if width < 4:
        for lane, result in enumerate(results):
            T.buffer_store(y, saturate(result, shape.out).astype(shape.out), [at + lane])
        return
    per_word = 4 if shape.out == "uint8" else 2
    pack = cuda.pack_u8 if shape.out == "uint8" else cuda.pack_s16
    words = width // per_word
    packed = cuda.registers(words)
    for word in range(words):
        part = results[word * per_word : (word + 1) * per_word]
        T.buffer_store(packed, pack(*part), [word])
    T.evaluate(cuda.store_global(cuda.pointer(y, at), cuda.pointer(packed, 0), 4 * words))

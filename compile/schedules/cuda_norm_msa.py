"""Window attention with its LayerNorm, projection and residual in one CUDA kernel, for sm_90.

A block of threads attends for one head of one window, as in cuda_norm_attention.py. The blocks of
all heads of the window are a cluster: each writes its 32 channels of the result to the shared
memory of all, row by row as cuda_shared_product.py reads them, and multiplies all channels with the
weight of 32 columns of y, which has been there from the start. It is as many columns as a head has
channels, so there is one such group for each block.
"""

from __future__ import annotations

from tvm import tirx
from tvm.target import Target
from tvm.tirx.script.builder import ir as T

from intswin.compile.operators.expressions import int32
from intswin.compile.schedules import cuda_attention_types, cuda_norm_attention, cuda_tiles
from intswin.compile.schedules import cuda_intrinsics as cuda
from intswin.compile.schedules.cuda_attention_fragments import WarpPlace
from intswin.compile.schedules.cuda_attention_mma import AttentionWarp, where
from intswin.compile.schedules.cuda_attention_space import STRIP, MmaAttentionTile
from intswin.compile.schedules.cuda_gemm_copies import CHUNK, RowCopies, permutation
from intswin.compile.schedules.cuda_gemm_epilogue import Arguments, Epilogue
from intswin.compile.schedules.cuda_gemm_tiles import GROUP
from intswin.compile.schedules.cuda_intrinsics import Buffer, Expr
from intswin.compile.schedules.cuda_norm_attention import NormAttentionKernel
from intswin.compile.schedules.cuda_norm_attention_space import (
    D,
    NormAttentionTile,
    NormMsaShape,
    output_offset,
)
from intswin.compile.schedules.cuda_shared_product import SharedProduct, Warps

OP = "norm_msa"
_WIDTH = 8  # columns of a lane


def describe(
    shape: NormMsaShape,
    weight: tuple[int, ...],
    bias: tuple[int, ...] | None,
    second: tuple[int, ...],
) -> tirx.PrimFunc:
    """The PrimFunc that a network has at first.

    Args:
        shape: the problem.
        weight: shape of the packed weight of q, k and v.
        bias: shape of the arranged bias of the scores.
        second: shape of the packed weight of the projection.

    Its arguments: those of `cuda_norm_attention.inputs`; weight2 int8; requantization2 int32
    (3, C); the output y int16 (B, R, C).
    """
    parameters = cuda_norm_attention.inputs(shape, weight, bias)
    parameters += [("weight2", second, "int8"), ("requantization2", (3, shape.channels), "int32")]
    parameters.append(("y", (shape.batch, shape.rows, shape.channels), "int16"))
    return cuda_tiles.describe(OP, shape, parameters)


def shape_of(func: tirx.PrimFunc, _target: Target) -> NormMsaShape:
    """The problem that a description poses."""
    return cuda_tiles.described(func, NormMsaShape)


def kernel(func: tirx.PrimFunc, shape: NormMsaShape, tile: NormAttentionTile) -> tirx.PrimFunc:
    """The kernel of a description: of its shape and the tile that was decided on."""
    return cuda_norm_attention.written(func, shape, tile, _Kernel)


class _Warp(AttentionWarp):
    """One whose results go to the shared memory of all blocks of the cluster.

    They lie there as x of a product does: row by row, the chunks permuted.
    """

    results: Expr  # address of them

    def place_of(self, token: Expr) -> Expr:
        return token

    def store(self, place: Expr, channel: Expr, packed: Expr) -> None:
        channels = self.shape.heads * D
        chunk = self.place.head * (D // CHUNK) + channel // CHUNK
        chunk = chunk ^ permutation(place, channels // CHUNK)
        offset = place * channels + chunk * CHUNK + channel % CHUNK
        address = T.Bind(self.results + offset.astype("uint32"))
        # Each block starts with the next one, so that they do not all write to the same at once.
        for i in range(1, self.shape.heads + 1):
            other = T.Bind((self.place.head + i) % self.shape.heads)
            T.evaluate(cuda.store_cluster_8(cuda.map_shared(address, other), packed))


class _Kernel(NormAttentionKernel):
    """What one block of threads computes."""

    problem: NormMsaShape

    def __init__(
        self,
        shape: NormMsaShape,
        tile: NormAttentionTile,
        args: dict[str, Buffer],
        block: Expr,
        thread: Expr,
    ) -> None:
        super().__init__(shape, tile, args, block, thread)
        offset = output_offset(shape, tile)
        self.results = T.Bind(self.shared + tirx.const(offset, "uint32"))
        rows_bytes = shape.block_rows * shape.channels
        self.second_weight = T.Bind(self.results + tirx.const(rows_bytes, "uint32"))

    def _warp(
        self, tile: MmaAttentionTile, args: cuda_attention_types.Arguments, place: WarpPlace
    ) -> _Warp:
        shape = self.problem
        warp = _Warp(shape.attention, tile, args, self.lane, place, self.queries)
        warp.results = self.results
        return warp

    def _plan_write(self) -> None:
        """Load the other weight and the rows' numbers, too."""
        super()._plan_write()
        shape, depth = self.problem, self.problem.channels * GROUP
        copies = RowCopies(self.buffers["weight2"], shape.heads, depth, 1, depth, permuted=False)
        copies.plan(self.thread, self.tile.threads, self.head)
        copies.start(int32(0), self.second_weight)
        first = T.Bind(self.strip * STRIP + self.lane // 4)
        self.tokens = [first, T.Bind(first + 8)]
        self.y_rows = []
        for token in self.tokens:
            there = tirx.min(token, int32(shape.tokens - 1))
            row = self.buffers["rows"][self.window * shape.tokens + there]
            self.y_rows.append(T.Bind(self.image * shape.rows + row))

    def _attend(self) -> None:
        """Attend and exchange the results, then multiply them and add x."""
        shape = self.problem
        strips = shape.block_rows // STRIP  # a warp has the 16 rows of y of one
        warps = Warps(rows=strips, columns=1, depth=1)
        product = SharedProduct(shape.block_rows, D, shape.channels, warps, self.thread)
        column = T.Bind(self.head * D + self.lane % 4 * _WIDTH)
        epilogue = Epilogue(shape.projection, Arguments.of_second(self.buffers), _WIDTH, 2)
        with self._first_warps(strips):
            epilogue.load_columns(column)
            for half, row in enumerate(self.y_rows):
                epilogue.load_residual(half, row, column)
        super()._attend()
        T.evaluate(cuda.cluster_arrive())
        T.evaluate(cuda.cluster_wait())
        with self._first_warps(strips):
            product.multiply(self.results, self.second_weight)
            for half, (token, row) in enumerate(zip(self.tokens, self.y_rows, strict=True)):
                partial = shape.tokens % STRIP > 0
                with where(token < int32(shape.tokens) if partial else None):
                    epilogue.store(half, row, column, product.results(0, 0, half))

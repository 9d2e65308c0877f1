"""LayerNorm and the MLP behind it in one CUDA kernel, for int8 tensor cores.

A cluster of blocks of threads computes some rows of y; each of its blocks has a slice of the hidden
channels. A block normalises the rows to shared memory (cuda_norm_rows.py) while its slices of both
weights are on their way, multiplies, writes its hidden channels to shared memory as uint8, and
multiplies them with the second weight. That gives partial sums of all columns, which the blocks of
the cluster exchange (cuda_partial_sums.py). Nothing of the weights is loaded twice and no part of
shared memory is filled again while others read it, so that few barriers are left: small problems,
which are mostly latency, are what this is for (fuse_mlp.py).
"""

from __future__ import annotations

from collections.abc import Mapping

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.target import Target
from tvm.tirx.script.builder import ir as T

from intswin.compile.operators.expressions import int32
from intswin.compile.schedules import cuda_intrinsics as cuda
from intswin.compile.schedules import cuda_tiles, simd
from intswin.compile.schedules.cuda_attention_mma import where
from intswin.compile.schedules.cuda_gemm_copies import CHUNK, RowCopies, permutation
from intswin.compile.schedules.cuda_gemm_epilogue import Arguments, Epilogue
from intswin.compile.schedules.cuda_gemm_grid import Place, clusters
from intswin.compile.schedules.cuda_gemm_tiles import GROUP, PIECE, STEP
from intswin.compile.schedules.cuda_intrinsics import Buffer, Expr
from intswin.compile.schedules.cuda_norm_mlp_space import (
    NormMlpShape,
    NormMlpTile,
    shared_memory,
)
from intswin.compile.schedules.cuda_norm_rows import NormalisedRows, RowsTile
from intswin.compile.schedules.cuda_partial_sums import WIDTH, PartialSums, Share
from intswin.compile.schedules.cuda_shared_product import SharedProduct

OP = "norm_mlp"
_WIDTH = 8  # columns of a lane in a group


def describe(
    shape: NormMlpShape, first: tuple[int, ...], second: tuple[int, ...], padded: tuple[int, int]
) -> tirx.PrimFunc:
    """The PrimFunc that a network has at first.

    Args:
        shape: the problem.
        first: shape of the first packed weight.
        second: of the second.
        padded: output channels of the requantization constants of both.

    Its arguments: x int16 (B, R, C); gamma and beta int32 (C,); params int64 (2,): eps and the
    shift of section 3.4; those of the first `linear` (operators/cuda_linear.py) behind its x; the
    weight and the requantization constants of the second; y int16 (B, R, C).
    """
    extents, channels = (shape.batch, shape.rows, shape.channels), (shape.channels,)
    parameters: list[cuda_tiles.Parameter] = [
        ("x", extents, "int16"),
        ("gamma", channels, "int32"),
        ("beta", channels, "int32"),
        ("params", (2,), "int64"),
        ("weight", first, "int8"),
        ("requantization", (3, padded[0]), "int32"),
    ]
    if shape.activation != "none":
        parameters.append(("act_params", (6,), "int32"))
    parameters.append(("offset", (1,), "int32"))
    parameters += [("weight2", second, "int8"), ("requantization2", (3, padded[1]), "int32")]
    parameters.append(("y", extents, "int16"))
    return cuda_tiles.describe(OP, shape, parameters)


def shape_of(func: tirx.PrimFunc, _target: Target) -> NormMlpShape:
    """The problem that a description poses."""
    return cuda_tiles.described(func, NormMlpShape)


def kernel(func: tirx.PrimFunc, shape: NormMlpShape, tile: NormMlpTile) -> tirx.PrimFunc:
    """The kernel of a description: of its shape and the tile that was decided on."""
    count = -(-shape.batch * shape.rows // tile.block_rows)
    with IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_name(OP)
            args = cuda_tiles.declare(cuda_tiles.parameters_of(func))
            with clusters(count, tile.cluster, tile.threads) as (block, thread):
                # The blocks of a cluster are neighbours: their number is their rank.
                rank = T.Bind(tirx.truncmod(block, int32(tile.cluster)))
                row = T.Bind(tirx.truncdiv(block, int32(tile.cluster)) * tile.block_rows)
                _Kernel(shape, tile, args, Place(thread, row, int32(0)), rank).emit()
    return simd.finished(builder.get(), OP).without_attr("global_symbol")


class _Kernel:
    """What one block of threads computes."""

    def __init__(
        self,
        shape: NormMlpShape,
        tile: NormMlpTile,
        args: Mapping[str, Buffer],
        place: Place,
        rank: Expr,
    ) -> None:
        self.shape, self.tile, self.args = shape, tile, args
        self.thread, self.row, self.rank = place.thread, place.row, rank
        self.own = shape.hidden // tile.cluster  # hidden channels of the block
        parts = shared_memory(shape, tile.block_rows, tile.cluster, tile.out_depth_warps)
        start = cuda.pointer(cuda.shared_memory(parts.size), 0)
        self.shared = T.Bind(cuda.shared_address(start))
        self.hidden = T.Bind(self.shared + tirx.const(parts.hidden, "uint32"))
        self.second_weight = T.Bind(self.shared + tirx.const(parts.second_weight, "uint32"))
        whole = RowsTile(tile.block_rows, shape.channels, tile.threads, tile.lanes, tile.block_rows)
        x = self.shared + tirx.const(parts.rows, "uint32")
        self.rows = NormalisedRows(shape.norm, whole, args, place, x)

    def emit(self) -> None:
        """Emit the whole of it."""
        tile = self.tile
        self._plan_loads()
        self._load_first()
        self.product = SharedProduct(
            tile.block_rows, self.own, self.shape.channels, tile.first, self.thread
        )
        epilogue = self._first_epilogue()
        self.rows.emit()
        if not tile.ahead:
            self._load_second()
        T.evaluate(cuda.cp_async_wait(1))
        cuda.synchronize()
        self.product.multiply(self.rows.slice_address(int32(0)), self.shared)
        self._write_hidden(epilogue)
        T.evaluate(cuda.cp_async_wait(0))
        cuda.synchronize()
        self._multiply_hidden()

    def _plan_loads(self) -> None:
        """A group of columns is a row of a packed weight: whole ones, and parts of all."""
        shape, threads = self.shape, self.tile.threads
        of_slice = self.own * shape.channels
        self.first_copies = RowCopies(
            self.args["weight"], self.tile.cluster, of_slice, 1, of_slice, permuted=False
        )
        self.first_copies.plan(self.thread, threads, self.rank)
        groups, steps = shape.channels // GROUP, self.own // STEP
        self.second_copies = RowCopies(
            self.args["weight2"],
            groups,
            shape.hidden // STEP * PIECE,
            groups,
            steps * PIECE,
            permuted=False,
        )
        self.second_copies.plan(self.thread, threads, int32(0))

    def _load_first(self) -> None:
        self.first_copies.start(int32(0), self.shared)
        T.evaluate(cuda.cp_async_commit())
        if self.tile.ahead:
            self._load_second()

    def _load_second(self) -> None:
        self.second_copies.start(self.rank, self.second_weight)
        T.evaluate(cuda.cp_async_commit())

    def _first_epilogue(self) -> Epilogue:
        """That of the first GEMM, with the constants of its first group."""
        epilogue = Epilogue(self.shape.first, Arguments.named(self.args), _WIDTH, 1)
        epilogue.load_columns(self.rank * self.own + self._column(0), cuda.load_early)
        return epilogue

    def _column(self, group: int) -> Expr:
        """The lane's first one of a group, among the block's hidden channels."""
        return (self.product.first_group + group) * GROUP + self.product.lane % 4 * _WIDTH

    def _write_hidden(self, epilogue: Epilogue) -> None:
        """The first GEMM's results, as `x` of the second: rows with their chunks permuted."""
        product, own = self.product, self.own
        # It is the same 8 rows below.
        permuted = T.Bind(permutation(product.lane // 4, own // CHUNK))
        first_row = T.Bind(product.first_row_block * 16 + product.lane // 4)
        for n in range(product.groups):
            column = T.Bind(self._column(n))
            if n > 0:
                epilogue.load_columns(self.rank * own + column)
            within = (column // CHUNK ^ permuted) * CHUNK + column % CHUNK
            base = T.Bind(self.hidden + (first_row * own + within).astype("uint32"))
            for m in range(product.row_blocks):
                for half in range(2):
                    packed = epilogue.packed(0, product.results(m, n, half))
                    address = base + tirx.const((m * 16 + half * 8) * own, "uint32")
                    T.evaluate(cuda.store_shared_8(address, cuda.pointer(packed, 0)))

    def _multiply_hidden(self) -> None:
        """The second GEMM, its sums and its epilogue."""
        shape, tile = self.shape, self.tile
        product = SharedProduct(tile.block_rows, shape.channels, self.own, tile.second, self.thread)
        product.multiply(self.hidden, self.second_weight)
        sums = PartialSums(
            tile.block_rows,
            shape.channels,
            tile.out_depth_warps,
            tile.cluster,
            tile.threads,
            self.shared,
        )
        sums.write(product)
        if tile.cluster == 1 or tile.out_depth_warps > 1:
            cuda.synchronize()
        sums.add_copies(self.thread)
        if tile.cluster > 1:
            T.evaluate(cuda.cluster_arrive())
        shares = sums.shares(self.thread, self.rank)
        epilogues = [self._second_epilogue(share) for share in shares]
        if tile.cluster > 1:
            T.evaluate(cuda.cluster_wait())
        totals = [cuda.registers(WIDTH) for _ in shares]
        for share, total in zip(shares, totals, strict=True):
            with where(share.exists):
                sums.total(share, self.rank, total)
        if tile.cluster > 1:  # nobody leaves while the others read its shared memory
            T.evaluate(cuda.cluster_arrive())
        for share, epilogue, total in zip(shares, epilogues, totals, strict=True):
            row = T.Bind(self.row + share.row)
            conditions = [] if share.exists is None else [share.exists]
            if shape.second.rows % tile.block_rows:
                conditions.append(row < int32(shape.second.rows))
            with where(tirx.all(*conditions) if conditions else None):
                epilogue.store(0, row, share.column, [total[i] for i in range(WIDTH)])
        if tile.cluster > 1:
            T.evaluate(cuda.cluster_wait())

    def _second_epilogue(self, share: Share) -> Epilogue:
        """That of a quad, with all that it loads."""
        epilogue = Epilogue(self.shape.second, Arguments.of_second(self.args), WIDTH, 1)
        epilogue.load_columns(share.column)
        epilogue.load_residual(0, self.row + share.row, share.column)
        return epilogue

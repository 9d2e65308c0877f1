"""LayerNorm, the GEMM that makes q, k and v, and attention in one CUDA kernel, for tensor cores.

A block of threads has one head of one window. It normalises the window's tokens to shared memory
(cuda_norm_rows.py) while the weight of the head's q, k and v is on its way, multiplies, and writes
q, k and v to shared memory, where a warp for each 16 queries reads them as cuda_attention_mma.py
does. Windows of 64 rows, as those of 49 tokens become, are multiplied by wgmma on sm_90a, others as
in cuda_gemm_mma.py, where 4 warps would read each weight from shared memory.

On sm_90 the blocks of some heads are a cluster: each normalises a part of the tokens and writes it
to the shared memory of all. Elsewhere every head normalises the window again; so this is for small
problems (fuse_attention.py).
"""

from __future__ import annotations

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.target import Target
from tvm.tirx.script.builder import ir as T

from intswin.compile.operators.expressions import int32
from intswin.compile.schedules import cuda_attention_types, cuda_tiles, simd
from intswin.compile.schedules import cuda_intrinsics as cuda
from intswin.compile.schedules.cuda_attention_fragments import Qkv, WarpPlace
from intswin.compile.schedules.cuda_attention_mma import (
    AttentionWarp,
    divided,
    where,
)
from intswin.compile.schedules.cuda_attention_space import STRIP, MmaAttentionTile
from intswin.compile.schedules.cuda_gemm_copies import RowCopies
from intswin.compile.schedules.cuda_gemm_epilogue import Arguments, Epilogue, Load
from intswin.compile.schedules.cuda_gemm_grid import Place, clusters
from intswin.compile.schedules.cuda_gemm_tiles import GROUP, PIECE, STEP, WGMMA_ALIGNMENT
from intswin.compile.schedules.cuda_intrinsics import Buffer, Expr
from intswin.compile.schedules.cuda_norm_attention_space import (
    COLUMNS,
    D,
    NormAttentionShape,
    NormAttentionTile,
    gemm_tile,
    qkv_offset,
    shared_bytes,
)
from intswin.compile.schedules.cuda_norm_gemm import NormMmaKernel
from intswin.compile.schedules.cuda_norm_rows import NormalisedRows, RowsTile

OP = "norm_attention"
_PARTS = 3  # q, k and v
_WIDTH = 8  # columns of a lane in a group of the packed weight


def describe(
    shape: NormAttentionShape, weight: tuple[int, ...], bias: tuple[int, ...] | None
) -> tirx.PrimFunc:
    """The PrimFunc that a network has at first.

    Args:
        shape: the problem.
        weight: shape of the packed weight.
        bias: shape of the arranged bias of the scores.

    Its arguments: those of `inputs`; the output y uint8 (B, R, heads * 32).
    """
    y = ("y", (shape.batch, shape.rows, shape.heads * D), "uint8")
    return cuda_tiles.describe(OP, shape, [*inputs(shape, weight, bias), y])


def inputs(
    shape: NormAttentionShape, weight: tuple[int, ...], bias: tuple[int, ...] | None
) -> list[cuda_tiles.Parameter]:
    """What the kernel reads; as for `describe`.

    x int16 (B, R, C); rows int32 (W, n); gamma and beta int32 (C,); params int64 (2,): eps and the
    shift of section 3.4; weight int8; requantization int32 (3, 3 * heads * 32); offset int32 (1,);
    score_params int32 (4,); where there are patterns, bias int16 and pattern int32 (W,).
    """
    parameters: list[cuda_tiles.Parameter] = [
        ("x", (shape.batch, shape.rows, shape.channels), "int16"),
        ("rows", (shape.windows, shape.tokens), "int32"),
        ("gamma", (shape.channels,), "int32"),
        ("beta", (shape.channels,), "int32"),
        ("params", (2,), "int64"),
        ("weight", weight, "int8"),
        ("requantization", (3, _PARTS * shape.heads * D), "int32"),
        ("offset", (1,), "int32"),
        ("score_params", (4,), "int32"),
    ]
    if bias is not None:
        parameters += [("bias", bias, "int16"), ("pattern", (shape.windows,), "int32")]
    return parameters


def shape_of(func: tirx.PrimFunc, _target: Target) -> NormAttentionShape:
    """The problem that a description poses."""
    return cuda_tiles.described(func, NormAttentionShape)


def kernel(
    func: tirx.PrimFunc, shape: NormAttentionShape, tile: NormAttentionTile
) -> tirx.PrimFunc:
    """The kernel of a description: of its shape and the tile that was decided on."""
    return written(func, shape, tile, NormAttentionKernel)


def written(
    func: tirx.PrimFunc,
    shape: NormAttentionShape,
    tile: NormAttentionTile,
    kind: type[NormAttentionKernel],
) -> tirx.PrimFunc:
    """The kernel of a description, whose blocks compute what `kind` does."""
    op = str(func.attrs["intswin.op"])
    with IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_name(op)
            args = cuda_tiles.declare(cuda_tiles.parameters_of(func))
            count = shape.batch * shape.windows * shape.heads // tile.cluster
            threads = gemm_tile(shape, tile).threads
            with clusters(count, tile.cluster, threads) as (block, thread):
                kind(shape, tile, args, block, thread).emit()
    return simd.finished(builder.get(), op).without_attr("global_symbol")


class NormAttentionKernel(NormMmaKernel):
    """What one block of threads computes."""

    def __init__(
        self,
        shape: NormAttentionShape,
        tile: NormAttentionTile,
        args: dict[str, Buffer],
        block: Expr,
        thread: Expr,
    ) -> None:
        self.problem, self.buffers = shape, args
        gemm = gemm_tile(shape, tile)
        rest, self.head = divided(block, shape.heads)
        self.image, self.window = divided(rest, shape.windows)
        alignment = WGMMA_ALIGNMENT if shape.wgmma else 128
        memory = cuda.shared_memory(shared_bytes(shape, tile), alignment)
        offset = qkv_offset(shape, tile)
        self.qkv = T.decl_buffer(
            (shape.block_rows * COLUMNS,),
            "int8",
            data=memory.data,
            elem_offset=offset,
            scope="shared.dyn",
        )
        of_gemm = Arguments.named({**args, "y": self.qkv})
        place = Place(thread, T.Bind(rest * shape.tokens), int32(0))
        super().__init__(shape.gemm, gemm, of_gemm, place, memory)
        x = self.shared + tirx.const(gemm.stages * gemm.stage_bytes, "uint32")
        self.cluster = tile.cluster
        # With half the queries a warp has half of the softmax to do.
        halved = -(-shape.tokens // 8)
        self.queries = 8 if gemm.threads >= 32 * halved else STRIP
        rank = T.Bind(tirx.truncmod(self.head, int32(tile.cluster)))
        rows = RowsTile(
            gemm.block_rows,
            shape.row_bytes if shape.wgmma else gemm.block_depth,
            gemm.threads,
            gemm.lanes,
            shape.tokens,
            tile.cluster,
        )
        self.rows = NormalisedRows(shape.norm, rows, args, place, x, rank)

    def emit(self) -> None:
        """Emit the product, which ends in shared memory, then the attention."""
        if self.cluster > 1:
            T.evaluate(cuda.cluster_arrive())
        super().emit()
        cuda.synchronize()
        self._attend()

    def _attend(self) -> None:
        """Attend by a warp for each strip: there may be more of them for the product."""
        with self._first_warps(-(-self.problem.tokens // self.queries)):
            self.attention.emit()

    def _first_warps(self, count: int) -> where:
        """If the warp is one of the first `count`."""
        return where(self.strip < int32(count) if self.tile.threads > 32 * count else None)

    def _plan_loads(self) -> None:
        """Of each of q, k and v the head is a group of columns.

        That is a row of the weight packed for mma, 32 rows of the one for wgmma.
        """
        wgmma, channels = self.problem.wgmma, self.problem.channels
        rows = GROUP if wgmma else 1
        depth = self.problem.row_bytes if wgmma else self.steps * PIECE  # bytes of a slice
        self.parts = []
        for part in range(_PARTS):
            groups = _PARTS * self.problem.heads
            of_row = channels if wgmma else channels // STEP * PIECE
            copies = RowCopies(self.args.weight, groups * rows, of_row, rows, depth, wgmma)
            first = (self.head + part * self.problem.heads) * rows
            copies.plan(self.thread, self.tile.threads, first, part * rows * depth)
            self.parts.append(copies)

    def _copy_weight(self, slice_: Expr, base: Expr) -> None:
        if not self.problem.wgmma:
            for copies in self.parts:
                copies.start(slice_, base)
            return
        for i in range(self.problem.channels // self.problem.row_bytes):
            slot = base + tirx.const(i * COLUMNS * self.problem.row_bytes, "uint32")
            for copies in self.parts:
                copies.start(int32(i), slot)

    def _multiply(self, slice_: Expr) -> None:
        if not self.problem.wgmma:
            super()._multiply(slice_)
            return
        width, columns = self.problem.row_bytes, self.groups * GROUP
        offset = (self.column_warp * (columns * width)).astype("uint32")
        x = T.Bind(cuda.wgmma_descriptor(self.rows.slice_address(int32(0)), width))
        weight = T.Bind(cuda.wgmma_descriptor(self.shared + offset, width))
        T.evaluate(cuda.wgmma_fence())
        for first in range(0, self.problem.channels, STEP):
            i, within = divmod(first, width)
            a = x + T.uint64((i * self.tile.block_rows * width + within) // 16)
            b = weight + T.uint64((i * COLUMNS * width + within) // 16)
            T.evaluate(cuda.wgmma_u8s8(cuda.pointer(self.acc, 0), a, b, columns))
        T.evaluate(cuda.wgmma_commit())
        T.evaluate(cuda.wgmma_results(self.acc))

    def _plan_write(self) -> None:
        """Load the other constants now, so that nobody waits for them later."""
        self.strip = T.Bind(self.thread // 32)
        self.attention = self._attention(self.strip)
        self.attention.load()
        self.epilogue = Epilogue(self.shape, self.args, _WIDTH, 2)
        self._load_columns(0, cuda.load_early)

    def _load_x(self, slices: int) -> None:
        if self.cluster > 1:
            T.evaluate(cuda.cluster_wait())  # all have started: their memory is there
        super()._load_x(slices)
        if self.cluster > 1:
            if self.problem.wgmma:
                T.evaluate(cuda.cluster_proxy_fence())
            T.evaluate(cuda.cluster_arrive())
            T.evaluate(cuda.cluster_wait())
        if self.problem.wgmma:
            T.evaluate(cuda.cp_async_wait(0))
            T.evaluate(cuda.cluster_proxy_fence())

    def _write(self) -> None:
        """Requantize q, k and v to shared memory, row by row of `COLUMNS`."""
        row = T.Bind(self.row_warp * 16 + self.lane // 4)
        for group in range(self.groups):
            if group:
                self._load_columns(group)
            column = T.Bind(self._part(group) * D + self.lane % 4 * _WIDTH)
            for half in range(2):
                at = [(group * 4 + i // 2) * 4 + 2 * half + i % 2 for i in range(_WIDTH)]
                results = [self.acc[index] for index in at]
                self.epilogue.store(half, row + 8 * half, column, results)

    def _part(self, group: int) -> Expr:
        """Which of q, k and v a group of the warp's columns is."""
        return self.column_warp * self.groups + group

    def _load_columns(self, group: int, load: Load = cuda.load_global) -> None:
        first = (self._part(group) * self.problem.heads + self.head) * D
        self.epilogue.load_columns(first + self.lane % 4 * _WIDTH, load)

    def _attention(self, strip: Expr) -> AttentionWarp:
        args = cuda_attention_types.Arguments(
            qkv=self.qkv,
            rows=self.buffers["rows"],
            params=self.buffers["score_params"],
            bias=self.buffers.get("bias"),
            pattern=self.buffers.get("pattern"),
            y=self.buffers["y"],
        )
        place = WarpPlace(self.head, self.window, strip, self.image)
        warp = self._warp(MmaAttentionTile(strips=1, images=1, warps=1), args, place)
        warp.read(Qkv(self.qkv, COLUMNS, D, int32(0), T.Bind))
        return warp

    def _warp(
        self, tile: MmaAttentionTile, args: cuda_attention_types.Arguments, place: WarpPlace
    ) -> AttentionWarp:
        return AttentionWarp(self.problem.attention, tile, args, self.lane, place, self.queries)

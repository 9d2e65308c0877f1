"""The attention kernel for GPUs without int8 tensor cores: a thread does a query.

A block of threads has queries of one head of one window. Its keys lie in shared memory, _TILE of
them at a time, row by row, and the values with four keys of a channel in a word; all threads of a
warp read the same word of them at once. A window of one tile keeps its scores in registers, unless
its heads are wide; for others they are computed twice: for the maximum and for the sums.

Offsets fit int32 (cuda_offsets.py): blocks divide images, and tokens behind a window's last one are
clamped to it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from intswin.compile.operators.expressions import int32
from intswin.compile.schedules import cuda_attention_math as math
from intswin.compile.schedules import cuda_intrinsics as cuda
from intswin.compile.schedules.attention import AttentionShape
from intswin.compile.schedules.cuda_attention_types import Arguments
from intswin.compile.schedules.cuda_intrinsics import Expr

_TILE = 64  # keys
_MOST_PRODUCTS = _TILE * 64  # keys times channels of a tile for which all code is written out
_MOST_THREADS = 128
_WARP = 32
_ONES = 0x01010101


def arrange_bias(bias: np.ndarray) -> np.ndarray:
    """Transpose int16 (P, heads, n, n) to (P, heads, keys, queries), padded to whole warps."""
    n = bias.shape[2]
    transposed = bias.astype(np.int16).transpose(0, 1, 3, 2)
    return np.pad(transposed, [(0, 0), (0, 0), (0, 0), (0, -n % _WARP)])


def emit_dp4a(shape: AttentionShape, args: Arguments) -> None:
    """Emit the kernel's body into the PrimFunc that is being built."""
    threads = min(shape.tokens + -shape.tokens % _WARP, _MOST_THREADS)
    parts = -(-shape.tokens // threads)
    blocks = shape.batch * shape.windows * shape.heads * parts
    with T.launch_thread("blockIdx.x", blocks) as block:
        with T.launch_thread("threadIdx.x", threads) as thread:
            _Kernel(shape, args, block, thread, threads, parts).emit()


class _Kernel:
    """One thread of a block."""

    def __init__(
        self,
        shape: AttentionShape,
        args: Arguments,
        block: Expr,
        thread: Expr,
        threads: int,
        parts: int,
    ) -> None:
        self.shape, self.args, self.thread, self.threads = shape, args, thread, threads
        task = T.Bind(tirx.truncdiv(block, int32(parts)))
        self.head = T.Bind(tirx.truncmod(task, int32(shape.heads)))
        rest = T.Bind(tirx.truncdiv(task, int32(shape.heads)))
        self.window = T.Bind(tirx.truncmod(rest, int32(shape.windows)))
        image = tirx.truncdiv(rest, int32(shape.windows))
        self.image_row = T.Bind(image * shape.rows)
        self.query = T.Bind(tirx.truncmod(block, int32(parts)) * threads + thread)
        self.words = shape.d // 4
        self.kept = shape.tokens <= _TILE and shape.tokens * shape.d <= _MOST_PRODUCTS
        self.keys = min(shape.tokens + -shape.tokens % 4, _TILE)
        self.padded = shape.tokens + -shape.tokens % _WARP

    def emit(self) -> None:
        """Scores, probabilities, sums and output."""
        shape = self.shape
        self.scalars = math.Scalars(self.args.params, shape.d)
        shared = cuda.shared_memory(2 * self.keys * shape.d)
        self.k_base = T.Bind(cuda.shared_address(cuda.pointer(shared, 0)))
        self.v_base = T.Bind(self.k_base + tirx.const(self.keys * shape.d, "uint32"))
        self.q, self.o = cuda.registers(self.words), cuda.registers(shape.d)
        self.word, self.column = cuda.registers(4), cuda.registers(4)
        self.total, self.most = cuda.registers(1), cuda.registers(1)
        self.scores = cuda.registers(self.keys if self.kept else 4)
        if self.args.pattern is not None:
            table = self.args.pattern[self.window] * shape.heads + self.head
            # Threads behind the last query read some bias; what they compute is not stored.
            query = tirx.min(self.query, int32(self.padded - 1))
            self.bias = T.Bind(table * (shape.tokens * self.padded) + query)
        self.row = T.Bind(self._row(self.query))
        for at in range(0, self.words, 4):
            source = self._source(0, self.row, 4 * at)
            T.evaluate(cuda.load_global(cuda.pointer(self.q, at), source, 16))
        for index in range(shape.d):
            T.buffer_store(self.o, int32(0), [index])
        T.buffer_store(self.total, int32(0), [0])
        T.buffer_store(self.most, int32(math.LOWEST), [0])
        self._find_maximum()
        m = math.top(self.most[0])
        for first, count in self._tiles():
            self._load_again(first, count)
            for quad, keys in self._quads(count):
                if not self.kept:
                    self._score(first, quad, keys)
                self._accumulate(m, quad, keys)
        self._output()

    def _find_maximum(self) -> None:
        """The query's largest score; the only tile's keys, values and scores stay."""
        for first, count in self._tiles():
            if not self.kept:
                cuda.synchronize()  # the tile before has been read
            self._load_keys(first, count)
            if self.kept:
                self._load_values(first, count)
            cuda.synchronize()
            for quad, keys in self._quads(count):
                self._score(first, quad, keys)
                for i in range(keys):
                    value = self.scores[self._place(quad, i)]
                    T.buffer_store(self.most, tirx.max(self.most[0], value), [0])

    def _load_again(self, first: Expr | int, count: int) -> None:
        """The keys and values of one of several tiles."""
        if self.kept:
            return
        cuda.synchronize()
        self._load_keys(first, count)
        self._load_values(first, count)
        cuda.synchronize()

    def _tiles(self) -> Iterator[tuple[Expr | int, int]]:
        """Open the loop over whole tiles of keys, then what is left; or one tile."""
        whole = self.shape.tokens // _TILE
        if not self.kept:
            with T.serial(0, whole) as tile:
                yield T.Bind(tile * _TILE), _TILE
            if self.shape.tokens % _TILE:
                yield whole * _TILE, self.shape.tokens % _TILE
        else:
            yield 0, self.shape.tokens

    def _quads(self, count: int) -> Iterator[tuple[Expr | int, int]]:
        """Quads of `count` keys: a loop where scores are not kept, and how many keys each has."""
        if self.kept:
            yield from ((quad, min(4, count - 4 * quad)) for quad in range(-(-count // 4)))
            return
        if count // 4:
            with T.serial(0, count // 4) as quad:
                yield quad, 4
        if count % 4:
            yield count // 4, count % 4

    def _place(self, quad: Expr | int, i: int) -> int:
        return 4 * quad + i if self.kept and isinstance(quad, int) else i

    def _row(self, token: Expr) -> Expr:
        token = tirx.min(token, int32(self.shape.tokens - 1))
        return self.image_row + self.args.rows[self.window * self.shape.tokens + token]

    def _source(self, part: int, row: Expr, channel: Expr | int) -> Expr:
        column = (part * self.shape.heads + self.head) * self.shape.d + channel
        return cuda.pointer(self.args.qkv, row * (3 * self.shape.heads * self.shape.d) + column)

    def _shared(self, count: int) -> Iterator[Expr]:
        """Numbers below `count`, each for one thread."""
        for start in range(0, count, self.threads):
            index = T.Bind(self.thread + start)
            if start + self.threads <= count:
                yield index
                continue
            with T.If(index < int32(count)):
                with T.Then():
                    yield index

    def _load_keys(self, first: Expr | int, count: int) -> None:
        """Copy keys to shared memory, 16 bytes at a time."""
        chunks = self.shape.d // 16
        for index in self._shared((count + -count % 4) * chunks):
            row = T.Bind(self._row(first + tirx.truncdiv(index, int32(chunks))))
            channel = tirx.truncmod(index, int32(chunks)) * 16
            word = cuda.pointer(self.word, 0)
            T.evaluate(cuda.load_global(word, self._source(1, row, channel), 16))
            address = self.k_base + (index * 16).astype("uint32")
            T.evaluate(cuda.store_shared_16(address, word))

    def _load_values(self, first: Expr | int, count: int) -> None:
        """Copy values, transposed 4 keys by 4 channels at a time."""
        for index in self._shared(-(-count // 4) * self.words):
            quad = T.Bind(tirx.truncdiv(index, int32(self.words)))
            channel = T.Bind(tirx.truncmod(index, int32(self.words)) * 4)
            for i in range(4):
                row = T.Bind(self._row(first + quad * 4 + i))
                registers = cuda.pointer(self.word, i)
                T.evaluate(cuda.load_global(registers, self._source(2, row, channel), 4))
            words = math.transpose_bytes([T.Bind(self.word[i]) for i in range(4)])
            for i, word in enumerate(words):
                T.buffer_store(self.column, word, [i])
            address = self.v_base + (index * 16).astype("uint32")
            T.evaluate(cuda.store_shared_16(address, cuda.pointer(self.column, 0)))

    def _score(self, first: Expr | int, quad: Expr | int, keys: int) -> None:
        """Scores T of this thread's query and the keys of a quad of the tile."""
        places = [self._place(quad, i) for i in range(keys)]
        for i, place in enumerate(places):
            T.buffer_store(self.scores, self.scalars.start, [place])
            key = quad * 4 + i
            for at in range(0, self.words, 4):
                address = self.k_base + _unsigned(key * self.shape.d + 4 * at)
                T.evaluate(cuda.load_shared_16(cuda.pointer(self.word, 0), address))
                for j in range(4):
                    acc = cuda.dp4a_s8s8(self.scores[place], self.q[at + j], self.word[j])
                    T.buffer_store(self.scores, acc, [place])
        self.scalars.saturate(self.scores, places)
        for i, place in enumerate(places):
            bias = None
            if self.args.bias is not None:
                at = self.bias + (first + quad * 4 + i) * self.padded
                bias = self.args.bias[at].astype("int32") << int32(15)
            T.buffer_store(self.scores, self.scalars.score(self.scores[place], bias), [place])

    def _accumulate(self, m: Expr, quad: Expr | int, keys: int) -> None:
        """Add p of a quad, and p times its values."""
        parts = [math.exponential(m, self.scores[self._place(quad, i)]) for i in range(keys)]
        parts += [tirx.const(0, "uint32")] * (4 - keys)
        p = T.Bind(math.pack_probabilities(*parts))
        T.buffer_store(self.total, cuda.dp4a_u8s8(self.total[0], p, int32(_ONES)), [0])
        for at in range(0, self.shape.d, 4):
            address = self.v_base + _unsigned((quad * self.shape.d + at) * 4)
            T.evaluate(cuda.load_shared_16(cuda.pointer(self.word, 0), address))
            for i in range(4):
                o = cuda.dp4a_u8s8(self.o[at + i], p, self.word[i])
                T.buffer_store(self.o, o, [at + i])

    def _output(self) -> None:
        """Normalise, requantize and store this thread's query."""
        shape = self.shape
        with T.If(self.query < int32(shape.tokens)):
            with T.Then():
                row = math.Row(self.total[0])
                packed = cuda.registers(4)
                for at in range(0, shape.d, 16):
                    for i in range(4):
                        parts = [self.scalars.output(self.o[at + 4 * i + j], row) for j in range(4)]
                        T.buffer_store(packed, cuda.pack_u8(*parts), [i])
                    column = (self.row * shape.heads + self.head) * shape.d + at
                    target = cuda.pointer(self.args.y, column)
                    T.evaluate(cuda.store_global(target, cuda.pointer(packed, 0), 16))


def _unsigned(value: Expr | int) -> Expr:
    return tirx.const(value, "uint32") if isinstance(value, int) else value.astype("uint32")

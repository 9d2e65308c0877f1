"""The GEMM kernel without tensor cores: dp4a, four products an instruction (sm_61 and later).

A block of threads computes `block_rows` by `block_columns` results. Slices of x and of the weight
lie in shared memory as int32 words of 4 input channels, a word of all rows (or columns) together,
so that a thread loads the words of 4 rows or columns at once. While a slice is multiplied, the next
one is on its way from global memory to registers; it is stored to the other half of shared memory.

A thread has `thread_rows` by `thread_columns` results in groups of 4 by 4, which are spread over
the block so that a warp reads neighbouring words. Any depth is taken: what is behind the last input
channel is zero. Offsets fit int32 (cuda_offsets.py): rows and columns behind the last ones are
clamped to be loaded, and not stored.
"""

from __future__ import annotations

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from intswin.compile.operators.expressions import int32
from intswin.compile.schedules import cuda_intrinsics as cuda
from intswin.compile.schedules.cuda_gemm_epilogue import Arguments, Epilogue
from intswin.compile.schedules.cuda_gemm_grid import Place
from intswin.compile.schedules.cuda_gemm_tiles import CudaGemmShape, Dp4aTile
from intswin.compile.schedules.cuda_intrinsics import Expr

_WORD = 4  # bytes, and input channels of a dp4a
_CHUNK = 16  # bytes of a load


class Dp4aKernel:
    """What one block of threads computes."""

    def __init__(self, shape: CudaGemmShape, tile: Dp4aTile, args: Arguments, place: Place) -> None:
        self.shape, self.tile, self.args, self.thread = shape, tile, args, place.thread
        self.row, self.column = place.row, place.column
        self.slices = -(-shape.depth // tile.block_depth)
        self.words = tile.block_depth // _WORD
        across = tile.block_columns // tile.thread_columns
        self.thread_row = T.Bind(self.thread // across * 4)
        self.thread_column = T.Bind(self.thread % across * 4)
        # Between a thread's groups of 4 rows, and of 4 columns.
        self.row_step = tile.block_rows * 4 // tile.thread_rows
        self.column_step = tile.block_columns * 4 // tile.thread_columns
        shared = cuda.shared_memory(tile.shared_bytes)
        self.shared = T.Bind(cuda.shared_address(cuda.pointer(shared, 0)))
        self.acc = cuda.registers(tile.thread_rows * tile.thread_columns)
        self.x_chunks = -(-tile.block_rows * tile.block_depth // _CHUNK // tile.threads)
        self.weight_chunks = -(-tile.block_columns * tile.block_depth // _CHUNK // tile.threads)
        self.x_next = cuda.registers(self.x_chunks * 4)
        self.weight_next = cuda.registers(self.weight_chunks * 4)
        self.a = cuda.registers(tile.thread_rows)
        self.b = cuda.registers(tile.thread_columns)

    def emit(self) -> None:
        """The whole of it."""
        for index in range(int(self.acc.shape[0])):
            T.buffer_store(self.acc, int32(0), [index])
        self._fetch(int32(0))
        self._put(int32(0))
        cuda.synchronize()
        if self.slices > 1:
            with T.serial(0, self.slices - 1) as i:
                self._fetch(i + 1)
                self._multiply(i % 2)
                self._put((i + 1) % 2)
                cuda.synchronize()
        self._multiply(int32((self.slices - 1) % 2))
        self._write()

    def _slot(self, slot: Expr) -> Expr:
        return self.shared + (slot * (self.tile.shared_bytes // 2)).astype("uint32")

    def _x_place(self, number: int) -> tuple[Expr, Expr, Expr | None]:
        """Row, chunk and, where not all threads have one, the condition of a chunk of x."""
        total = self.tile.block_rows * self.tile.block_depth // _CHUNK
        index = self.thread + number * self.tile.threads
        partial = index < int32(total) if (number + 1) * self.tile.threads > total else None
        return index % self.tile.block_rows, index // self.tile.block_rows, partial

    def _fetch(self, slice_: Expr) -> None:
        """Load this thread's chunks of a slice into registers."""
        tile, shape, depth = self.tile, self.shape, slice_ * self.tile.block_depth
        for number in range(self.x_chunks):
            row, chunk, _ = self._x_place(number)
            # Rows behind the last one repeat it; they are not stored. So do superfluous threads.
            start = T.Bind(tirx.min(self.row + row, int32(shape.rows - 1)) * shape.depth)
            k = T.Bind(depth + chunk * _CHUNK)
            self._fetch_x(4 * number, start, k)
        words, columns = -(-shape.depth // _WORD), shape.columns + -shape.columns % 32
        per_word = tile.block_columns // 4
        for number in range(self.weight_chunks):
            index = self.thread + number * tile.threads
            word = T.Bind(slice_ * self.words + index // per_word)
            column = tirx.min(self.column + index % per_word * 4, int32(columns - 4))
            at = (tirx.min(word, int32(words - 1)) * columns + column) * _WORD
            registers = cuda.pointer(self.weight_next, 4 * number)
            # What is behind the last word meets zeros of x.
            T.evaluate(cuda.load_global(registers, cuda.pointer(self.args.weight, at), 16))

    def _fetch_x(self, first: int, start: Expr, k: Expr) -> None:
        """Load 16 bytes of a row from channel `k` on, zeros behind the last one."""
        x, depth = self.args.x, self.shape.depth
        if depth % _CHUNK == 0:
            for i in range(4):
                T.buffer_store(self.x_next, int32(0), [first + i])
            with T.If(k < int32(depth)):
                with T.Then():
                    registers = cuda.pointer(self.x_next, first)
                    T.evaluate(cuda.load_global(registers, cuda.pointer(x, start + k), 16))
            return
        for i in range(4):
            word: Expr = int32(0)
            for byte in range(4):
                at = k + (4 * i + byte)
                value = x[start + tirx.min(at, int32(depth - 1))].astype("int32")
                value = tirx.Select(at < int32(depth), value, int32(0))
                word = word | (value << int32(8 * byte))
            T.buffer_store(self.x_next, word, [first + i])

    def _put(self, slot: Expr) -> None:
        """Store the fetched chunks to a half of shared memory."""
        tile, base = self.tile, T.Bind(self._slot(slot))
        for number in range(self.x_chunks):
            row, chunk, partial = self._x_place(number)
            at = base + ((chunk * 4 * tile.block_rows + row) * _WORD).astype("uint32")
            with T.If(partial if partial is not None else tirx.const(True, "bool")):
                with T.Then():
                    for i in range(4):
                        offset = tirx.const(i * tile.block_rows * _WORD, "uint32")
                        T.evaluate(cuda.store_shared_4(at + offset, self.x_next[4 * number + i]))
        total = tile.block_columns * tile.block_depth // _CHUNK
        for number in range(self.weight_chunks):
            index = self.thread + number * tile.threads
            at = base + (index * _CHUNK + tile.block_rows * tile.block_depth).astype("uint32")
            store = cuda.store_shared_16(at, cuda.pointer(self.weight_next, 4 * number))
            with T.If(index < int32(total)):
                with T.Then():
                    T.evaluate(store)

    def _multiply(self, slot: Expr) -> None:
        """Accumulate the slice in a half of shared memory."""
        tile, base = self.tile, T.Bind(self._slot(slot))
        a_base = T.Bind(base + (self.thread_row * _WORD).astype("uint32"))
        columns = self.thread_column * _WORD + tile.block_rows * tile.block_depth
        b_base = T.Bind(base + columns.astype("uint32"))
        for word in range(self.words):
            for group in range(tile.thread_rows // 4):
                offset = (word * tile.block_rows + group * self.row_step) * _WORD
                address = a_base + tirx.const(offset, "uint32")
                T.evaluate(cuda.load_shared_16(cuda.pointer(self.a, 4 * group), address))
            for group in range(tile.thread_columns // 4):
                offset = (word * tile.block_columns + group * self.column_step) * _WORD
                address = b_base + tirx.const(offset, "uint32")
                T.evaluate(cuda.load_shared_16(cuda.pointer(self.b, 4 * group), address))
            for r in range(tile.thread_rows):
                for c in range(tile.thread_columns):
                    at = r * tile.thread_columns + c
                    product = cuda.dp4a_u8s8(self.acc[at], self.a[r], self.b[c])
                    T.buffer_store(self.acc, product, [at])

    def _write(self) -> None:
        tile, shape = self.tile, self.shape
        epilogue = Epilogue(shape, self.args, 4, tile.thread_rows)
        rows = [r // 4 * self.row_step + r % 4 for r in range(tile.thread_rows)]
        first_row = T.Bind(self.row + self.thread_row)
        for group in range(tile.thread_columns // 4):
            column = T.Bind(self.column + self.thread_column + group * self.column_step)
            epilogue.load_columns(column)
            for r, offset in enumerate(rows):
                epilogue.load_residual(r, first_row + offset, column)
            for r, offset in enumerate(rows):
                row = T.Bind(first_row + offset)
                with T.If(tirx.all(row < int32(shape.rows), column < int32(shape.columns))):
                    with T.Then():
                        first = r * tile.thread_columns + 4 * group
                        epilogue.store(r, row, column, [self.acc[first + i] for i in range(4)])

"""LayerNorm of a row by some lanes of a warp (docs/integer-semantics.md section 3.4).

A row is read once, 16 bytes a lane at a time, and stays in registers; its sums are exchanged by the
lanes that share it, each of which then computes the row's scalars for itself. The root and the
quotient come from one 1 / sqrt(X) by Newton steps (`_reciprocal_root`): no division, which a GPU
would do in floating point. In 64 bits are S2 and V alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from intswin.compile.operators.expressions import int32
from intswin.compile.schedules import cuda_intrinsics as cuda
from intswin.compile.schedules.cuda_gemm_epilogue import Load
from intswin.compile.schedules.cuda_intrinsics import Buffer, Expr, signed, unsigned
from intswin.compile.schedules.cuda_layer_norm_space import vectors_of, width_of
from intswin.compile.schedules.layer_norm import LayerNormShape

Store = Callable[[Expr, list[Expr]], None]


class RowConstants:
    """A lane's gamma and beta in registers, for all of its rows.

    Loaded where this is made: before `wait_for_grid`, so that nobody waits for them.
    """

    def __init__(
        self, shape: LayerNormShape, lanes: int, args: Mapping[str, Buffer], lane: Expr
    ) -> None:
        self._width, vectors = width_of(shape), vectors_of(shape)
        count = -(-vectors // lanes)
        self._values = {name: cuda.registers(count * self._width) for name in ("gamma", "beta")}
        for i in range(count):
            vector = lane + i * lanes
            if (i + 1) * lanes > vectors:
                vector = tirx.min(vector, int32(vectors - 1))
            first = T.Bind(vector * self._width)
            for name, registers in self._values.items():
                at = i * self._width
                load_constants(args[name], first, registers, at, self._width, cuda.load_early)

    def of(self, i: int) -> list[list[Expr]]:
        """Gamma and beta of the lane's vector `i`."""
        place = range(i * self._width, (i + 1) * self._width)
        return [[registers[at] for at in place] for registers in self._values.values()]


def load_constants(
    source: Buffer, first: Expr, registers: Buffer, at: int, width: int, load: Load
) -> None:
    """Load `width` int32, a multiple of 4, from `first` on."""
    for i in range(0, width, 4):
        pointer = cuda.pointer(source, first + i)
        T.evaluate(load(cuda.pointer(registers, at + i), pointer, 16))


def load_params(params: Buffer) -> list[Expr]:
    """The int64 numbers that `params` has, one or two, loaded before `wait_for_grid`."""
    count = int(params.shape[0])
    words = cuda.registers(2 * count)
    T.evaluate(cuda.load_early(cuda.pointer(words, 0), cuda.pointer(params, 0), 8 * count))
    high = [words[2 * i + 1].astype("int64") << tirx.const(32, "int64") for i in range(count)]
    low = [unsigned(words[2 * i]).astype("int64") for i in range(count)]
    return [T.Bind(h | word) for h, word in zip(high, low, strict=True)]


class LayerNormRow:
    """One lane's part of a row.

    Args:
        shape: the problem; its last shift is not used.
        lanes: that share the row.
        args: flat buffers by the names of section 3.4: x, gamma, beta; rows if indexed.
        row: of all images' output rows together; one behind the last repeats that.
        lane: number of this one.
        eps: of section 3.4, int64.
        shift: the last right shift.
    """

    def __init__(
        self,
        shape: LayerNormShape,
        lanes: int,
        args: Mapping[str, Buffer],
        row: Expr,
        lane: Expr,
        eps: Expr,
        shift: Expr,
    ) -> None:
        self.shape, self.lanes, self.args, self.row, self.lane = shape, lanes, args, row, lane
        self.eps, self.shift = eps, shift
        self.width, self.vectors = width_of(shape), vectors_of(shape)
        self.count = -(-self.vectors // lanes)  # vectors of a lane
        self.words = -(-self.width // 2)  # of a vector
        self.x = cuda.registers(self.count * self.words)

    def _vector(self, i: int) -> tuple[Expr, Expr | None]:
        """Number of the lane's vector `i` in the row, and the condition on which it is there."""
        vector = self.lane + i * self.lanes
        partial = (i + 1) * self.lanes > self.vectors
        return vector, vector < int32(self.vectors) if partial else None

    def locate(self) -> None:
        """Find where the row is, before `wait_for_grid`: nothing of x is read."""
        shape = self.shape
        row = T.Bind(tirx.min(self.row, int32(shape.batch * shape.rows - 1)))
        image = T.Bind(tirx.truncdiv(row, int32(shape.rows)))
        inside = T.Bind(tirx.truncmod(row, int32(shape.rows)))
        per_part = shape.channels // self.width
        self._sources = []
        for i in range(self.count):
            vector, condition = self._vector(i)
            if condition is not None:
                vector = tirx.min(vector, int32(self.vectors - 1))
            vector = T.Bind(vector)
            source = row * shape.channels + vector * self.width
            if shape.indexed:
                part = T.Bind(tirx.truncdiv(vector, int32(per_part)))
                picked = cuda.registers(1)
                number = cuda.pointer(self.args["rows"], inside * shape.gather + part)
                T.evaluate(cuda.load_early(cuda.pointer(picked, 0), number, 4))
                within = (vector - part * per_part) * self.width
                source = (image * shape.in_rows + picked[0]) * shape.channels + within
            self._sources.append(T.Bind(source))

    def load(self) -> None:
        """Read the row, once it is located."""
        for i, source in enumerate(self._sources):
            registers = cuda.pointer(self.x, i * self.words)
            pointer = cuda.pointer(self.args["x"], source)
            T.evaluate(cuda.load_activation(registers, pointer, 2 * self.width))
            _, condition = self._vector(i)
            if condition is not None:
                for word in range(i * self.words, (i + 1) * self.words):
                    value = tirx.Select(condition, self.x[word], int32(0))
                    T.buffer_store(self.x, value, [word])

    def _channels(self, i: int) -> list[Expr]:
        """The channels of vector `i`, int32."""
        values = []
        for word in range(i * self.words, (i + 1) * self.words):
            packed = self.x[word]
            values += [(packed << int32(16)) >> int32(16), packed >> int32(16)]
        return values[: self.width]

    def statistics(self) -> None:
        """S1, e and r of the row."""
        width = self.shape.gather * self.shape.channels
        s1 = cuda.registers(1)
        s2 = T.alloc_buffer((1,), "int64", scope="local")
        T.buffer_store(s1, int32(0), [0])
        T.buffer_store(s2, tirx.const(0, "int64"), [0])
        for i in range(self.count):
            for value in self._channels(i):
                x = T.Bind(value)
                wide = T.Bind(x.astype("int64"))
                T.buffer_store(s1, s1[0] + x, [0])
                T.buffer_store(s2, s2[0] + wide * wide, [0])
        lanes = 1
        while lanes < self.lanes:
            T.buffer_store(s1, s1[0] + cuda.shuffle_xor(s1[0], lanes), [0])
            T.buffer_store(s2, s2[0] + cuda.shuffle_xor(s2[0], lanes, "int64"), [0])
            lanes *= 2
        total = T.Bind(s1[0])
        wide = T.Bind(total.astype("int64"))
        v = T.Bind(tirx.const(width, "int64") * s2[0] - wide * wide + self.eps)
        high = T.Bind((v >> tirx.const(32, "int64")).astype("int32"))
        zeros = tirx.Select(
            high > 0,
            cuda.leading_zeros(high),
            int32(32) + cuda.leading_zeros(cuda.shift_right(v, 0)),
        )
        j = T.Bind((int32(64 - 29) - T.Bind(zeros)) >> 1)
        right = T.Bind(tirx.max(j, int32(0)) * 2)
        left = T.Bind(tirx.max(-j, int32(0)) * 2)
        w = cuda.registers(1)
        shifted = (v >> right.astype("int64")) << left.astype("int64")
        T.buffer_store(w, shifted.astype("int32"), [0])
        self.r = _reciprocal_root(T.Bind(w[0]))
        e = T.Bind(j + int32(((width - 1).bit_length() + 1) >> 1))
        self.right = T.Bind(tirx.max(e, int32(0)))
        left = T.Bind(tirx.max(-e, int32(0)).astype("uint32"))
        # N << left and the rounding term in one multiplication and addition. Modulo 2^32: the
        # products alone may be larger, the result is not.
        half = T.Bind((int32(1) << self.right) >> 1)
        self.factor = T.Bind(tirx.const(width, "uint32") << left)
        self.offset = T.Bind(unsigned(half) - (unsigned(total) << left))

    def write(self, store: Store, constants: RowConstants | None = None) -> None:
        """Normalise the lane's channels.

        Args:
            store: is given the number of a vector and its results, int32, not saturated.
            constants: gamma and beta, where they are in registers already.
        """
        for i in range(self.count):
            vector, condition = self._vector(i)
            vector = T.Bind(vector)
            if condition is None:
                store(vector, self._results(i, vector, constants))
                continue
            with T.If(condition):
                with T.Then():
                    store(vector, self._results(i, vector, constants))

    def _results(self, i: int, vector: Expr, constants: RowConstants | None) -> list[Expr]:
        if constants is not None:
            gamma, beta = constants.of(i)
        else:
            gamma, beta = (self._constants(name, vector) for name in ("gamma", "beta"))
        results = []
        for x, g, b in zip(self._channels(i), gamma, beta, strict=True):
            wide = unsigned(x) * self.factor + self.offset
            n = signed(wide) >> self.right
            # sat16: above alone, see section 3.4.
            z = (tirx.min(n, int32(32767)) * self.r + int32(1 << 14)) >> int32(15)
            results.append(T.Bind((z * g + b) >> self.shift))
        return results

    def _constants(self, name: str, vector: Expr) -> list[Expr]:
        """Gamma or beta of a vector."""
        source = self.args[name]
        if self.width < 4:
            return [source[vector * self.width + i] for i in range(self.width)]
        registers = cuda.registers(self.width)
        load_constants(source, vector * self.width, registers, 0, self.width, cuda.load_global)
        return [registers[i] for i in range(self.width)]


def _reciprocal_root(w: Expr) -> Expr:
    """Give r = min(2^29 // R, 32767) with R = floor(sqrt(W)), of W in [2^28, 2^30).

    With X = W / 2^30, z = 2^14 / sqrt(X) comes from a line and three steps of Newton. R is X z, one
    more step and one correction; r is z in the same way. That one correction, upwards, is enough
    was tried for every W (tests/compile/test_cuda_layer_norm.py tries both ends of every root).
    """
    # In arrays: TVM's simplifier would expand a chain of bindings exponentially.
    z, root, r = (cuda.registers(1) for _ in range(3))
    x = T.Bind(cuda.shift_right(w, 14))
    T.buffer_store(z, int32(35900) - signed((x >> 2) + (x >> 4)), [0])
    for _ in range(3):
        square = unsigned(z[0] * z[0]) >> 14
        e = (tirx.const(3 << 30, "uint32") - square * x) >> 16
        T.buffer_store(z, (z[0] * signed(e)) >> 15, [0])
    T.buffer_store(root, signed((x * unsigned(z[0])) >> 15), [0])
    T.buffer_store(root, root[0] + ((((w - root[0] * root[0]) >> 4) * z[0]) >> 26), [0])
    above = root[0] + 1
    T.buffer_store(root, tirx.Select(above * above <= w, above, root[0]), [0])
    one = int32(1 << 29)
    T.buffer_store(r, z[0] + ((((one - z[0] * root[0]) >> 3) * z[0]) >> 26), [0])
    T.buffer_store(r, tirx.Select((r[0] + 1) * root[0] <= one, r[0] + 1, r[0]), [0])
    return T.Bind(tirx.min(r[0], int32(32767)))

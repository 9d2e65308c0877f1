"""Small random, valid integer operators and networks for tests.

`random_<operator>` gives a `Case`: a node, the specs of its inputs, and input arrays on request.
Parameters are realistic (outputs fill their range) or, with `extreme=True`, at the ends of the
domains that docs/integer-semantics.md allows.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from intswin.models.integer_graph import IntegerGraph, Node, TensorSpec

Rng = np.random.Generator
FRAC = {"u8": 7, "s8": 7, "i16": 0, "i32": 0}
DTYPE = {"u8": "uint8", "s8": "int8", "i16": "int16", "i32": "int32"}


@dataclasses.dataclass
class Case:
    """An operator and what it reads."""

    node: Node
    specs: list[TensorSpec]

    def inputs(self, rng: Rng, batch: int = 1, extreme: bool = False) -> list[np.ndarray]:
        """Random arrays (batch, *spec.shape); extreme ones hold the ends of the dtype, by rows."""
        return [random_array(rng, (batch, *s.shape), s.dtype, extreme) for s in self.specs]


def random_array(rng: Rng, shape: tuple[int, ...], dtype: str, extreme: bool = False) -> np.ndarray:
    info = np.iinfo(dtype)
    if not extreme:
        if dtype in ("int16", "int32"):  # a residual stream: its calibrated maximum is 16384
            return np.clip(rng.normal(0, 4000, shape), -32768, 32767).astype(dtype)
        return rng.integers(info.min, info.max, shape, endpoint=True).astype(dtype)
    ends = np.array([info.min, info.max])
    constant = rng.choice(ends, (*shape[:-1], 1))  # whole rows at one end
    mixed = rng.choice(ends, shape)
    spike = np.where(rng.random(shape) < 1 / shape[-1], constant, info.min + info.max - constant)
    kind = rng.integers(0, 3, (*shape[:-1], 1))
    return np.choose(kind, [np.broadcast_to(constant, shape), mixed, spike]).astype(dtype)


def random_images(rng: Rng, graph: IntegerGraph, count: int) -> np.ndarray:
    """Noisy colour gradients, (count, height, width, 3) uint8: pure noise would all look alike."""
    height, width, channels = graph.input.shape
    top, left = rng.uniform(-1, 1, (2, count, 1, 1, channels))
    y = np.linspace(-1, 1, height)[:, None, None]
    x = np.linspace(-1, 1, width)[None, :, None]
    noise = rng.normal(0, 0.2, (count, height, width, channels))
    colour = rng.uniform(-1, 1, (count, 1, 1, channels))
    return np.clip(128 + 80 * (colour + top * y + left * x + noise), 0, 255).astype(np.uint8)


def requant_params(factor: float | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Section 2: (pre, mult), int32, of real factors in [0, 1): h units in an accumulator unit."""
    mantissa, exponent = np.frexp(np.asarray(factor, np.float64))
    mult = np.rint(mantissa * 32768).astype(np.int64)
    pre = -exponent.astype(np.int64)
    pre, mult = np.where(mult == 32768, pre - 1, pre), np.where(mult == 32768, 16384, mult)
    late = pre > 24
    mult = np.where(late, np.rint(np.asarray(factor) * 2.0**39), mult).astype(np.int64)
    pre = np.where(late, 24, pre)
    if np.any(pre < 0):
        raise ValueError("a factor of 1 or more cannot be written")
    return pre.astype(np.int32), mult.astype(np.int32)


def half(s: int | np.ndarray) -> int | np.ndarray:
    return (1 << s) >> 1


def igelu_constants(k: int) -> tuple[int, int, int]:
    """Section 3.3: qb, q1, e."""
    return math.floor(1.769 * math.sqrt(2) * 2**k), math.floor(2 * 4**k / 0.2888), 2 * k - 11


def act_params(activation: str, k: int, h_scale: float) -> np.ndarray:
    """Section 3.3: (6,) int32 for an input of scale 2^-k and a result of scale `h_scale`."""
    if activation == "igelu":
        qb, q1, e = igelu_constants(k)
        scale = 2.0**-k * 2**e / (2 * q1)
    else:
        qb = q1 = e = 0
        scale = 2.0 ** -(k + 15)
    pre, mult = requant_params(scale / h_scale)
    return np.array([k, qb, q1, e, pre, mult], np.int32)


def _sticky_requant(rng: Rng, n: int) -> tuple[np.ndarray, np.ndarray]:
    pre = rng.choice([0, 1, 12, 23, 24], n).astype(np.int32)
    return pre, rng.choice([0, 1, 16384, 32767], n).astype(np.int32)


def random_linear(
    rng: Rng,
    rows: int,
    k: int,
    n: int,
    out: str = "u8",
    *,
    activation: str = "none",
    residual: bool = False,
    zero_point: int | None = None,
    extreme: bool = False,
) -> Case:
    """`zero_point` 0 with out u8 is the ReLU. Default: 128 (u8), 16 (u8 after a GELU), else 0."""
    if zero_point is None:
        zero_point = (16 if activation != "none" else 128) if out == "u8" else 0
    frac = 6 if out == "u8" and zero_point < 64 else FRAC[out]
    weight = np.clip(np.rint(rng.normal(0, 35, (n, k))), -127, 127).astype(np.int8)
    if extreme:
        signs = np.sign(rng.normal(size=(n, k)) + rng.choice([-9, 0, 9], (n, 1)))
        weight = (127 * signs).astype(np.int8)
    spread = 4 * 74 * np.sqrt((weight.astype(float) ** 2).sum(axis=1))  # 4 sigma of uniform x
    pre, mult = requant_params(np.minimum(2.0**14 / spread, 0.999))
    centre = weight.astype(np.int64).sum(axis=1)
    bias = np.rint(rng.normal(0, 0.1, n) * spread).astype(np.int64) - 128 * centre + half(pre)
    if extreme:
        pre, mult = _sticky_requant(rng, n)
        w = weight.astype(np.int64)
        top = (1 << 31) - 1 - 255 * np.maximum(w, 0).sum(axis=1)
        bottom = -(1 << 31) - 255 * np.minimum(w, 0).sum(axis=1)
        bias = np.where(rng.random(n) < 0.5, top, bottom)
    tensors = {"weight": weight, "bias": bias.astype(np.int32), "pre": pre, "mult": mult}
    if activation != "none":
        shift = int(rng.integers(6, 11))
        tensors["act_params"] = act_params(activation, shift, 2.0**-shift * 1.01)
        if extreme:
            tensors["act_params"][4:] = [int(v[0]) for v in _sticky_requant(rng, 1)]
    specs = [TensorSpec((rows, k), "uint8", 0.02, 128)]
    if residual:
        specs.append(TensorSpec((rows, n), "int16", 0.001))
    node = Node(
        "linear",
        "linear",
        ["x", "residual"][: len(specs)],
        tensors,
        {"out": out, "zero_point": zero_point, "frac": frac, "activation": activation},
        TensorSpec((rows, n), DTYPE[out], 0.02, zero_point),
    )
    return Case(node, specs)


def random_layer_norm(
    rng: Rng,
    rows: int,
    channels: int,
    out: str = "u8",
    *,
    group: int = 1,
    extreme: bool = False,
) -> Case:
    """`group` input rows of `channels` each make one output row (4: patch merging)."""
    c = group * channels
    c2 = math.ceil(math.log2(c) / 2)
    zero_point = 128 if out == "u8" else 0
    scale = 6 / 128 if out == "u8" else 6 / 16384
    g, b = rng.normal(1, 0.2, c), rng.normal(0, 0.2, c)
    gamma, beta, shift = layer_norm_params(g, b, scale, zero_point, c2)
    eps = max(1, round(1e-5 * c * c / 0.001**2))
    if extreme:
        shift = int(rng.integers(0, 25))
        gamma = rng.choice([-32767, 0, 32767], c)
        beta = rng.choice([-(1 << 30) + 1, 0, (1 << 30) - 1], c)
        eps = int(rng.choice([1, 2, 1 << 27, (1 << 28) - 1, (1 << 54) - 1]))
    tensors = {
        "gamma": gamma.astype(np.int32),
        "beta": beta.astype(np.int32),
        "params": np.array([eps], np.int64),
    }
    if group > 1:
        tensors["rows"] = rng.permutation(rows * group).reshape(rows, group).astype(np.int32)
    node = Node(
        "layer_norm",
        "layer_norm",
        ["x"],
        tensors,
        {"out": out, "shift": shift},
        TensorSpec((rows, c), DTYPE[out], scale, zero_point),
    )
    return Case(node, [TensorSpec((rows * group, channels), "int16", 0.001)])


def extreme_variances(rng: Rng, rows: int) -> tuple[Case, np.ndarray]:
    """A LayerNorm of 4 * 1024 channels, and an input whose variances are the smallest and largest.

    `rows` is a multiple of 4; there are as many input rows of each kind.
    """
    case = random_layer_norm(rng, rows, 1024, "i16", group=4)
    case.node.tensors["params"][:] = 1
    x = np.full((1, 4 * rows, 1024), -32768, np.int16)
    x[0, :rows] = 32767
    x[0, rows : 2 * rows, ::2] = 32767  # the largest variance
    x[0, 2 * rows : 3 * rows, 5] += 1  # one channel off by one
    x[0, 3 * rows :] = rng.integers(-1, 2, (rows, 1024))
    case.node.tensors["rows"][:] = np.arange(4 * rows).reshape(rows, 4)
    return case, x


def layer_norm_params(
    g: np.ndarray, b: np.ndarray, s_out: float, zero_point: int, c2: int
) -> tuple[np.ndarray, np.ndarray, int]:
    """Section 3.4: gamma, beta, shift."""
    for shift in range(24, -1, -1):
        gamma = np.rint(g * 2.0 ** (c2 - 14 + shift) / s_out).astype(np.int64)
        beta = np.rint((b / s_out + zero_point) * 2.0**shift).astype(np.int64) + half(shift)
        if np.abs(gamma).max() <= 32767 and np.abs(beta).max() < 1 << 30:
            return gamma, beta, shift
    raise ValueError("no shift fits")


def random_attention(
    rng: Rng,
    windows: int,
    tokens: int,
    heads: int,
    d: int,
    *,
    patterns: int = 1,
    extreme: bool = False,
) -> Case:
    """`patterns` distinct masks (0: no bias tensor at all)."""
    rows = windows * tokens
    factor = 4 * 256 / math.log(2) / 16 / (math.sqrt(d) * 74**2)  # scores of deviation 4
    params = [*(int(v) for v in requant_params(factor)), 12345, 21]
    if extreme:
        params = [int(v[0]) for v in _sticky_requant(rng, 1)]
        params += [int(rng.choice([0, 1, 32767])), int(rng.choice([8, 15, 22]))]
    tensors = {
        "rows": rng.permutation(rows).reshape(windows, tokens).astype(np.int32),
        "params": np.array(params, np.int32),
    }
    if patterns:
        shape = (patterns, heads, tokens, tokens)
        bias = np.rint(rng.normal(0, 100, shape))
        bias[1:][rng.random(bias[1:].shape) < 0.4] = -32768  # masked
        if extreme:
            bias = rng.choice([-32768, 0, 32767], shape)
        tensors["bias"] = bias.astype(np.int16)
        tensors["pattern"] = rng.integers(0, patterns, windows).astype(np.int32)
    node = Node(
        "attention",
        "attention",
        ["qkv"],
        tensors,
        {"heads": heads, "d": d},
        TensorSpec((rows, heads * d), "uint8", 0.02, 128),
    )
    return Case(node, [TensorSpec((rows, 3 * heads * d), "int8", 0.02)])


def random_mean_pool(rng: Rng, rows: int, channels: int, extreme: bool = False) -> Case:
    factor = min(8 * 128 / (256 * rows), 0.999)  # 8: means vary less than values
    pre, mult = (int(v) for v in requant_params(factor))
    bias = -128 * 256 * rows + int(half(pre))
    if extreme:
        pre, mult = (int(v[0]) for v in _sticky_requant(rng, 1))
        bias = int(rng.choice([-(1 << 31), (1 << 31) - 1 - 255 * 256 * rows]))
    node = Node(
        "mean_pool",
        "mean_pool",
        ["x"],
        {"params": np.array([bias, pre, mult], np.int32)},
        {},
        TensorSpec((1, channels), "uint8", 0.02, 128),
    )
    return Case(node, [TensorSpec((rows, channels), "uint8", 0.02, 128)])


def random_gather_rows(
    rng: Rng,
    rows: int,
    channels: int,
    picked: int,
    *,
    dtype: str = "int16",
) -> Case:
    node = Node(
        "gather_rows",
        "gather_rows",
        ["x"],
        {"rows": rng.integers(0, rows, picked).astype(np.int32)},
        {},
        TensorSpec((picked, channels), dtype, 0.001),
    )
    return Case(node, [TensorSpec((rows, channels), dtype, 0.001)])


def random_add_constant(rng: Rng, rows: int, channels: int, extreme: bool = False) -> Case:
    """A class token in front of `rows` tokens, and a position embedding on all."""
    constant = np.rint(rng.normal(0, 3000, (rows + 1, channels)))
    if extreme:
        constant = rng.choice([-(1 << 30) + 1, 0, (1 << 30) - 1], (rows + 1, channels))
    node = Node(
        "add_constant",
        "add_constant",
        ["x"],
        {
            "rows": np.arange(-1, rows, dtype=np.int32),
            "constant": constant.astype(np.int32),
        },
        {},
        TensorSpec((rows + 1, channels), "int16", 0.001),
    )
    return Case(node, [TensorSpec((rows, channels), "int16", 0.001)])


def patchify_case(height: int, width: int, patch: int) -> Case:
    rows = (height // patch) * (width // patch)
    node = Node(
        "patchify",
        "patchify",
        ["image"],
        {},
        {"patch": patch},
        TensorSpec((rows, 3 * patch * patch), "uint8", 1 / 255, 0),
    )
    return Case(node, [TensorSpec((height, width, 3), "uint8", 1 / 255, 0)])


class GraphBuilder:
    """Chains cases into an IntegerGraph."""

    def __init__(self, size: int) -> None:
        self.nodes: list[Node] = []
        self.input = TensorSpec((size, size, 3), "uint8", 1 / 255, 0)

    def add(self, case: Case, *inputs: str) -> str:
        """Append the case's node reading the tensors named; its own new name."""
        case.node.name = f"{case.node.op}_{len(self.nodes)}"
        case.node.inputs = list(inputs)
        self.nodes.append(case.node)
        return case.node.name

    def graph(self) -> IntegerGraph:
        return IntegerGraph(self.input, self.nodes)


def _block(
    b: GraphBuilder, rng: Rng, x: str, *, rows: int, c: int, window: int, activation: str, d: int
) -> str:
    """One transformer block on the residual stream `x` of (rows, c)."""
    mlp = {"none": {"zero_point": 0}}.get(activation, {"activation": activation})
    y = b.add(random_layer_norm(rng, rows, c), x)
    y = b.add(random_linear(rng, rows, c, 3 * c, "s8"), y)
    y = b.add(random_attention(rng, rows // window, window, c // d, d, patterns=2), y)
    x = b.add(random_linear(rng, rows, c, c, "i16", residual=True), y, x)
    y = b.add(random_layer_norm(rng, rows, c), x)
    y = b.add(random_linear(rng, rows, c, 4 * c, "u8", **mlp), y)
    return b.add(random_linear(rng, rows, 4 * c, c, "i16", residual=True), y, x)


def tiny_swin_graph(
    rng: Rng,
    size: int = 32,
    channels: int = 16,
    classes: int = 5,
    activation: str = "none",
    d: int = 16,
) -> IntegerGraph:
    """Two stages of one block each: all operators of a Swin. `activation` none is the ReLU MLP.

    `size` is a multiple of 16; windows have 16 tokens, heads `d` channels.
    """
    b = GraphBuilder(size)
    rows, c = (size // 4) ** 2, channels
    x = b.add(patchify_case(size, size, 4), "image")
    x = b.add(random_linear(rng, rows, 48, c, "i16"), x)
    x = b.add(random_layer_norm(rng, rows, c, "i16"), x)
    x = _block(b, rng, x, rows=rows, c=c, window=16, activation=activation, d=d)
    x = b.add(random_layer_norm(rng, rows // 4, c, group=4), x)
    x = b.add(random_linear(rng, rows // 4, 4 * c, 2 * c, "i16"), x)
    rows, c = rows // 4, 2 * c
    x = _block(b, rng, x, rows=rows, c=c, window=16, activation=activation, d=d)
    x = b.add(random_layer_norm(rng, rows, c), x)
    x = b.add(random_mean_pool(rng, rows, c), x)
    b.add(random_linear(rng, 1, c, classes, "i32"), x)
    return b.graph()


def tiny_vit_graph(
    rng: Rng, size: int = 16, channels: int = 16, classes: int = 5, activation: str = "igelu"
) -> IntegerGraph:
    """One block with a class token, a position embedding and attention over all tokens."""
    b = GraphBuilder(size)
    rows, c = (size // 4) ** 2, channels
    x = b.add(patchify_case(size, size, 4), "image")
    x = b.add(random_linear(rng, rows, 48, c, "i16"), x)
    x = b.add(random_add_constant(rng, rows, c), x)
    x = _block(b, rng, x, rows=rows + 1, c=c, window=rows + 1, activation=activation, d=16)
    x = b.add(random_layer_norm(rng, rows + 1, c), x)
    gather = random_gather_rows(rng, rows + 1, c, 1, dtype="uint8")
    gather.node.tensors["rows"][:] = 0
    x = b.add(gather, x)
    b.add(random_linear(rng, 1, c, classes, "i32"), x)
    return b.graph()

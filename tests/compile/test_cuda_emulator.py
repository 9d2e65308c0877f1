"""The emulator of CUDA kernels: it computes as the GPU does, and it finds what it promises to."""

import re

import numpy as np
import pytest
from tvm import s_tir, te, tirx
from tvm.target import Target

from cuda_emulator import EmulationError, emulate, emulate_source
from cuda_emulator.lowering import Launch
from intswin.compile.schedules.cuda_device_functions import source_of

TARGET = Target(
    {
        "kind": "cuda",
        "arch": "sm_80",
        "max_threads_per_block": 1024,
        "max_shared_memory_per_block": 49152,
        "thread_warp_size": 32,
    },
    host=Target("llvm"),
)


def run(
    body, arrays, threads=32, blocks=1, *, functions=(), dynamic_shared=0, races=False, arch=90
):
    """Run `body` as a kernel whose parameters are the arrays; the last one is the output."""
    types = {"int8": "signed char", "uint8": "unsigned char", "int32": "int"}
    parameters = ", ".join(f"{types[str(a.dtype)]}* {name}" for name, a in arrays.items())
    source = "".join(source_of(name) for name in functions)
    source += f'extern "C" __global__ void kernel({parameters}) {{\n{body}\n}}'
    extents = (blocks, 1, 1, threads, 1, 1)
    launches = [Launch("kernel", tuple(arrays), extents, dynamic_shared)]
    emulate_source(source, launches, arrays, races=races, arch=arch)
    return list(arrays.values())[-1]


def zeros(*shape, dtype="int32"):
    return np.zeros(shape, dtype)


def scheduled_matmul():
    """u8 x s8 through shared memory, and a second kernel that reads what the first one made."""
    n = 64
    a, b = te.placeholder((n, n), "uint8", "a"), te.placeholder((n, n), "int8", "b")
    k = te.reduce_axis((0, n), "k")
    acc = te.compute(
        (n, n),
        lambda i, j: te.sum(a[i, k].astype("int32") * b[j, k].astype("int32"), axis=k),
        "acc",
    )
    y = te.compute((n, n), lambda i, j: tirx.max(acc[i, j] >> 3, tirx.const(-128, "int32")), "y")
    sch = s_tir.Schedule(te.create_prim_func([a, b, y]))
    block = sch.get_sblock("acc")
    i, j, k = sch.get_loops(block)
    (i0, i1), (j0, j1) = sch.split(i, [None, 16]), sch.split(j, [None, 16])
    sch.reorder(i0, j0, i1, j1)
    sch.bind(sch.fuse(i0, j0), "blockIdx.x")
    sch.bind(sch.fuse(i1, j1), "threadIdx.x")
    k0, _ = sch.split(k, [None, 16])
    for operand, scope in enumerate(("shared.dyn", "shared")):
        read = sch.cache_read(block, operand, scope)
        sch.compute_at(read, k0)
        sch.bind(sch.fuse(*sch.get_loops(read)[-2:]), "threadIdx.x")
    sch.decompose_reduction(block, k0)
    blocks, threads, lanes = sch.split(sch.fuse(*sch.get_loops(sch.get_sblock("y"))), [None, 64, 4])
    sch.bind(blocks, "blockIdx.x")
    sch.bind(threads, "threadIdx.x")
    sch.vectorize(lanes)
    return sch.mod


def test_scheduled_kernels_with_shared_memory_and_a_workspace():
    rng = np.random.default_rng(0)
    a = rng.integers(0, 256, (64, 64), np.uint8)
    b = rng.integers(-128, 128, (64, 64)).astype(np.int8)
    y = zeros(64, 64)
    emulate(scheduled_matmul(), TARGET, [a, b, y])
    np.testing.assert_array_equal(y, np.maximum((a.astype(np.int32) @ b.T) >> 3, -128))


REVERSE = """
  __shared__ int buffer[64];
  buffer[threadIdx.x] = x[blockIdx.x * 64 + threadIdx.x];
  BARRIER;
  y[blockIdx.x * 64 + threadIdx.x] = buffer[63 - threadIdx.x];
"""


def test_barrier():
    x = np.arange(192, dtype=np.int32)
    y = run(REVERSE.replace("BARRIER", "__syncthreads()"), {"x": x, "y": zeros(192)}, 64, 3)
    np.testing.assert_array_equal(y, x.reshape(3, 64)[:, ::-1].ravel())


@pytest.mark.parametrize("barrier", ["", "__syncwarp()"])
def test_missing_barrier_is_found(barrier):
    x = np.arange(64, dtype=np.int32)
    with pytest.raises(EmulationError, match="order of threads"):
        run(REVERSE.replace("BARRIER", barrier), {"x": x, "y": zeros(64)}, 64)


REUSED = """
  extern __shared__ int moving[];
  __shared__ int fixed[64];
  for (int i = 0; i < 3; ++i) {
    moving[threadIdx.x] = fixed[threadIdx.x] = x[threadIdx.x] + i;
    __syncthreads();  // 0
    int sum = moving[63 - threadIdx.x] + fixed[threadIdx.x ^ 7];
    __syncwarp();  // 1
    fixed[threadIdx.x ^ 1] = sum;
    __syncthreads();  // 2
  }
  y[threadIdx.x] = fixed[threadIdx.x];
"""


def run_for_races(body, blocks=1):
    x = np.arange(64, dtype=np.int32)
    return run(body, {"x": x, "y": zeros(64)}, 64, blocks, dynamic_shared=256, races=True)


def test_no_race_is_reported_where_there_is_none():
    y = run_for_races(REUSED)
    source = np.arange(64) ^ 1  # the thread that wrote what this one reads
    np.testing.assert_array_equal(y, (63 - source) + (source ^ 7) + 4)


@pytest.mark.parametrize("barrier", [0, 1, 2])
def test_races_are_found(barrier):
    removed = re.sub(rf"__sync\w+\(\);  // {barrier}", "", REUSED)
    assert removed != REUSED
    with pytest.raises(EmulationError, match=r"race on .* shared memory: .* no barrier.*\.cu:\d"):
        run_for_races(removed)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("y[threadIdx.x] = 1;", "of y: written by this thread and written by another block"),
        ("y[threadIdx.x / 2] = 1;", "of y: written by thread .*, written by this one"),
        ("y[threadIdx.x ^ 1] = threadIdx.x ? y[threadIdx.x] : 0;", "race on byte .* of y"),
    ],
)
def test_races_in_global_memory_are_found(body, message):
    with pytest.raises(EmulationError, match=message):
        run_for_races(body, blocks=2)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("__shared__ int s[32]; y[threadIdx.x] = s[threadIdx.x];", "not written"),
        ("if (threadIdx.x < 31) y[threadIdx.x] = 1;", "not written: 1 of 32"),
        ("if (threadIdx.x) __syncthreads();", "threads left before"),
        ("__syncthreads(); if (threadIdx.x < 9) __syncthreads();", "32 threads|left"),
        ("if (threadIdx.x < 9)\n__syncthreads();\nelse\n__syncthreads();", "divergent"),
        ("if (threadIdx.x) __syncwarp();", "left|deadlock"),
        ("if (threadIdx.x < 9) __syncwarp(); else __syncthreads();", "deadlock"),
        ("y[threadIdx.x] = __shfl_sync(255, 1, 0);", "not in its mask"),
        ("y[threadIdx.x + 1] = 1;", "wrote outside of y|outside of y: byte 128"),
        ("y[(int)threadIdx.x - 1] = 1;", "outside of y: byte -4"),
        ("y[threadIdx.x + 20000] = 1;", r"write outside of y.*\.cu:2: y\[threadIdx"),
        ("y[threadIdx.x] = x[threadIdx.x + 2000];", "read outside of x"),
        ("x[threadIdx.x] = 1;", "write of x at byte .* an input"),
        ("y[threadIdx.x] = *(int*)((char*)x + 2 * threadIdx.x);", "misaligned pointer in line"),
        ("int r[4] = {}; y[threadIdx.x] = r[threadIdx.x];", "index outside of a local"),
        ("y[threadIdx.x] = x[0] << threadIdx.x * 2;", "shift by"),
        (
            "extern __shared__ int s[]; s[threadIdx.x + 5000] = 0;",
            "write outside of dynamic shared memory: byte 20000",
        ),
        ('asm volatile("bar.warp.sync 1;");', "PTX instruction bar.warp.sync is not emulated"),
        ('asm("{ .reg .pred p; mov.b32 %0, 0; }" : "=r"(y[0]));', "more than one instruction"),
        ("no_such_function();", "no_such_function"),
    ],
)
def test_mistakes_are_found(body, message):
    with pytest.raises(EmulationError, match=message):
        run(body, {"x": zeros(32), "y": zeros(32)}, dynamic_shared=64)


def test_registers_are_not_zero_by_accident():
    y = run("int sums[2]; y[threadIdx.x] = sums[threadIdx.x % 2];", {"y": zeros(32)})
    assert (y != 0).all()


def test_unaligned_size_ends_in_a_canary():
    with pytest.raises(EmulationError, match="wrote outside of y: byte 33 of 33"):
        run("y[threadIdx.x] = 0;", {"y": zeros(33, dtype="int8")}, 34)


@pytest.mark.parametrize("width", [8, 32])
def test_shuffles(width):
    body = f"""
  int v = x[threadIdx.x];
  y[threadIdx.x] = __shfl_sync(0xffffffff, v, threadIdx.x * 3, {width});
  y[threadIdx.x + 32] = __shfl_xor_sync(0xffffffff, v, 5, {width});
  y[threadIdx.x + 64] = __shfl_up_sync(0xffffffff, v, 3, {width});
  y[threadIdx.x + 96] = __shfl_down_sync(0xffffffff, v, 3, {width});
  y[threadIdx.x + 128] = __reduce_max_sync(threadIdx.x < 8 ? 0xff : 0xffffff00, v);
  y[threadIdx.x + 160] = __ballot_sync(0xffffffff, v > 0);
"""
    x = np.random.default_rng(0).integers(-99, 99, 32).astype(np.int32)
    y = run(body, {"x": x, "y": zeros(6, 32)})
    segments, lane = x.reshape(-1, width), np.arange(32)
    within = lane.reshape(-1, width) % width
    take = np.take_along_axis
    np.testing.assert_array_equal(y[0], take(segments, within * 3 % width, 1).ravel())
    if width == 32:
        np.testing.assert_array_equal(y[1], x[lane ^ 5])
    np.testing.assert_array_equal(
        y[2], take(segments, np.where(within < 3, within, within - 3), 1).ravel()
    )
    np.testing.assert_array_equal(
        y[3], take(segments, np.where(within + 3 >= width, within, within + 3), 1).ravel()
    )
    np.testing.assert_array_equal(y[4], np.where(lane < 8, x[:8].max(), x[8:].max()))
    assert (y[5].view(np.uint32) == np.sum((x > 0) << np.arange(32, dtype=np.uint64))).all()


FRAGMENT_LOADS = """
  int g = threadIdx.x / 4, t = threadIdx.x % 4, fa[4], fb[2], d[4];
  for (int i = 0; i < 4; ++i) fa[i] = *(int*)(a + (g + i % 2 * 8) * 32 + i / 2 * 16 + 4 * t);
  for (int i = 0; i < 2; ++i) fb[i] = *(int*)(b + g * 32 + i * 16 + 4 * t);
"""
LDMATRIX_LOADS = """
  __shared__ __align__(16) unsigned char sa[512];
  __shared__ __align__(16) signed char sb[256];
  for (int i = threadIdx.x; i < 512; i += 32) sa[i] = a[i];
  for (int i = threadIdx.x; i < 256; i += 32) sb[i] = b[i];
  __syncthreads();
  int g = threadIdx.x / 4, t = threadIdx.x % 4, l = threadIdx.x, fa[4], fb[2], d[4];
  intswin_ldmatrix_x4(fa, intswin_shared_address(sa + l % 16 * 32 + 16 * (l / 16)));
  intswin_ldmatrix_x2(fb, intswin_shared_address(sb + l % 8 * 32 + 16 * (l / 8 % 2)));
"""
MMA = """
  for (int i = 0; i < 4; ++i) d[i] = y[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = i;
  intswin_mma_LEFTs8(d, fa, fb);
  for (int i = 0; i < 4; ++i) y[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = d[i];
"""


@pytest.mark.parametrize("loads", [FRAGMENT_LOADS, LDMATRIX_LOADS], ids=["global", "ldmatrix"])
@pytest.mark.parametrize("left", ["u8", "s8"])
@pytest.mark.parametrize("arch", [75, 80])
def test_mma(left, loads, arch):
    """From sm_80 on one instruction, before it four."""
    rng = np.random.default_rng(0)
    a = rng.integers(0, 256, (16, 32), np.uint8)
    b = rng.integers(-128, 128, (8, 32)).astype(np.int8)
    y = run(
        loads + MMA.replace("LEFT", left),
        {"a": a, "b": b, "y": zeros(16, 8)},
        functions=[
            "intswin_shared_address",
            "intswin_ldmatrix_x4",
            "intswin_ldmatrix_x2",
            f"intswin_mma_{left}s8",
        ],
        arch=arch,
    )
    start = np.tile([[0, 1]], (16, 4)) + np.repeat([[0], [2]], 8, axis=0)
    left_matrix = a if left == "u8" else a.view(np.int8)
    np.testing.assert_array_equal(y, start + left_matrix.astype(np.int32) @ b.T)


def test_transposed_ldmatrix():
    body = """
  __shared__ __align__(16) unsigned char s[128];
  *(int*)(s + 4 * threadIdx.x) = *(int*)(x + 4 * threadIdx.x);
  __syncthreads();
  unsigned address = __cvta_generic_to_shared(s + threadIdx.x % 8 * 16);
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];"
               : "=r"(y[threadIdx.x]) : "r"(address) : "memory");
"""
    x = np.random.default_rng(0).integers(0, 256, (8, 16), np.uint8)
    y = run(body, {"x": x, "y": zeros(32)})
    np.testing.assert_array_equal(y.view(np.uint16).reshape(8, 8), x.view(np.uint16).T)


def test_mma_by_part_of_a_warp_is_found():
    body = "int d[4] = {}, a[4] = {}, b[2] = {};\nif (threadIdx.x) intswin_mma_u8s8(d, a, b);"
    with pytest.raises(EmulationError, match="left"):
        run(body, {"y": zeros(32)}, functions=["intswin_mma_u8s8"])


WGMMA = """
  extern __shared__ unsigned char memory[];
  unsigned start = (intswin_shared_address(memory) + 1023) / 1024 * 1024;
  unsigned char* tile = memory + (start - intswin_shared_address(memory));
  for (int i = threadIdx.x; i < 96 * BYTES; i += 128) {
    int row = i / BYTES, chunk = i % BYTES / 16 ^ (BYTES == 128 ? row % 8 : row / 2 % 4);
    tile[row * BYTES + chunk * 16 + i % 16] = row < 64 ? a[i] : b[i - 64 * BYTES];
  }
  __syncthreads();
  int d[16];
  for (int i = 0; i < 16; ++i) d[i] = i;
  intswin_wgmma_fence();
  for (int step = 0; step < 2; ++step) {
    intswin_wgmma_n32(d, intswin_wgmma_descriptor_BYTES(start) + 2 * step,
                      intswin_wgmma_descriptor_BYTES(start + 64 * BYTES) + 2 * step);
  }
  intswin_wgmma_commit();
  WAIT
  int row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, column = threadIdx.x % 4 * 2;
  for (int i = 0; i < 16; ++i) y[(row + i / 2 % 2 * 8) * 32 + i / 4 * 8 + column + i % 2] = d[i];
"""


def run_wgmma(row_bytes, wait):
    """Results, and those expected: of 64 of the bytes of each row, added to what was there."""
    names = ["fence", "n32", f"descriptor_{row_bytes}", "commit", "results_16", "wait_1"]
    rng = np.random.default_rng(0)
    a = rng.integers(0, 256, (64, row_bytes), np.uint8)
    b = rng.integers(-128, 128, (32, row_bytes)).astype(np.int8)
    y = run(
        WGMMA.replace("BYTES", str(row_bytes)).replace("WAIT", wait),
        {"a": a, "b": b, "y": zeros(64, 32)},
        threads=128,
        functions=["intswin_shared_address", *(f"intswin_wgmma_{name}" for name in names)],
        dynamic_shared=96 * row_bytes + 1024,
    )
    row, column = np.indices((64, 32))
    start = column // 8 * 4 + row // 8 % 2 * 2 + column % 2
    return y, start + a[:, :64].astype(np.int32) @ b[:, :64].T


@pytest.mark.parametrize("row_bytes", [64, 128])
def test_wgmma(row_bytes):
    np.testing.assert_array_equal(*run_wgmma(row_bytes, "intswin_wgmma_results_16(d);"))


def test_wgmma_that_is_not_waited_for_gives_no_results():
    actual, expected = run_wgmma(128, "intswin_wgmma_wait_1();")
    assert (actual != expected).mean() > 0.9


def test_dp4a():
    body = """
  int i = threadIdx.x;
  y[i] = intswin_dp4a_u8s8(i, ((int*)a)[i], ((int*)b)[i]);
  y[i + 32] = intswin_dp4a_s8s8(i, ((int*)a)[i], ((int*)b)[i]);
"""
    rng = np.random.default_rng(0)
    a = rng.integers(0, 256, (32, 4), np.uint8)
    b = rng.integers(-128, 128, (32, 4)).astype(np.int8)
    names = ["intswin_dp4a_u8s8", "intswin_dp4a_s8s8"]
    y = run(body, {"a": a, "b": b, "y": zeros(2, 32)}, functions=names)
    for row, left in zip(y, (a, a.view(np.int8)), strict=True):
        np.testing.assert_array_equal(row, np.arange(32) + (left.astype(np.int32) * b).sum(axis=1))


ASYNC = """
  __shared__ __align__(16) signed char s[2][512];
  int l = threadIdx.x;
  for (int i = 0; i < 2; ++i) {
    unsigned address = intswin_shared_address(s[i] + 16 * l);
    intswin_cp_async_16(address, x + (l == 5 ? 1 << 24 : 512 * i + 16 * l), l == 5 ? 0 : 16);
    intswin_cp_async_commit();
  }
  intswin_cp_async_wait_FIRST();
  __syncthreads();
  for (int i = 0; i < 16; ++i) y[16 * l + i] = s[0][16 * (31 - l) + i];
  intswin_cp_async_wait_SECOND();
  __syncthreads();
  for (int i = 0; i < 16; ++i) y[512 + 16 * l + i] = s[1][16 * (31 - l) + i];
"""


def run_async(first, second, arch=80):
    names = ["shared_address", "cp_async_16", "cp_async_commit"]
    names += [f"cp_async_wait_{i}" for i in sorted({first, second})]
    x = np.random.default_rng(0).integers(-128, 128, (2, 32, 16)).astype(np.int8)
    y = run(
        ASYNC.replace("FIRST", str(first)).replace("SECOND", str(second)),
        {"x": x, "y": zeros(2, 32, 16, dtype="int8")},
        functions=[f"intswin_{name}" for name in names],
        arch=arch,
    )
    x[:, 5] = 0  # nothing is there to be read
    np.testing.assert_array_equal(y, x[:, ::-1])


@pytest.mark.parametrize("arch", [75, 80])
def test_async_copies(arch):
    run_async(1, 0, arch)


def test_copies_before_sm_80_are_done_at_once():
    run_async(2, 0, 75)


@pytest.mark.parametrize("waits", [(2, 0), (1, 1)])
def test_async_copies_that_are_not_waited_for_are_found(waits):
    with pytest.raises(EmulationError, match=r"not written: \d+ of 1024"):
        run_async(*waits)


def test_packing():
    body = """
  int i = threadIdx.x, *v = x + 4 * i;
  y[i] = intswin_pack_u8(v[0], v[1], v[2], v[3]);
  y[i + 32] = intswin_pack_s8(v[0], v[1], v[2], v[3]);
  y[i + 64] = intswin_pack_s16(v[0] * 256, v[1] * 256);
"""
    x = np.random.default_rng(0).integers(-400, 400, (32, 4)).astype(np.int32)
    names = ["intswin_pack_u8", "intswin_pack_s8", "intswin_pack_s16"]
    y = run(body, {"x": x, "y": zeros(3, 32)}, functions=names)
    np.testing.assert_array_equal(y[0].view(np.uint8).reshape(32, 4), np.clip(x, 0, 255))
    np.testing.assert_array_equal(y[1].view(np.int8).reshape(32, 4), np.clip(x, -128, 127))
    halves = np.clip(x[:, :2] * 256, -32768, 32767)
    np.testing.assert_array_equal(y[2].view(np.int16).reshape(32, 2), halves)


def test_integer_functions():
    body = """
  int v = x[0], w = x[1];
  unsigned u = v, t = w;
  y[0] = __byte_perm(v, w, 0x7290); y[1] = __mulhi(v, w); y[2] = __umulhi(u, t);
  y[3] = __funnelshift_r(v, w, 9); y[4] = __funnelshift_l(v, w, 9); y[5] = __clz(w);
  y[6] = __popc(v); y[7] = __brev(v);
"""
    v, w = 0x89ABCDEF, 0x01234567
    x = np.array([v, w], np.uint32).view(np.int32)
    y = run(body, {"x": x, "y": zeros(8)}, 1).view(np.uint32)
    signed = v - (1 << 32)
    wide = w << 32 | v
    # Nibbles 0, 9, 2, 7, lowest first: byte 0; the sign of byte 1; byte 2; byte 7.
    permuted = 0x01ABFFEF
    high = [permuted, (signed * w >> 32) % (1 << 32), v * w >> 32]
    shifts = [wide >> 9 & 0xFFFFFFFF, (wide << 9) >> 32 & 0xFFFFFFFF]
    reversed_bits = int(f"{v:032b}"[::-1], 2)
    np.testing.assert_array_equal(y, [*high, *shifts, 7, v.bit_count(), reversed_bits])

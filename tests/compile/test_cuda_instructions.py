"""The emulator's warp and PTX instructions, by the device functions that the kernels call."""

import numpy as np
import pytest
from cuda_source import run, zeros

from cuda_emulator import EmulationError


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

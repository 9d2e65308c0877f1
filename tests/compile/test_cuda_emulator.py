"""The emulator of CUDA kernels: it computes as the GPU does, and it finds what it promises to."""

import re

import numpy as np
import pytest
from cuda_source import run, zeros
from tvm import s_tir, te, tirx
from tvm.target import Target

from cuda_emulator import EmulationError, emulate

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

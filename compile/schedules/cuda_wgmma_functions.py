"""Device functions for the tensor cores of sm_90a: wgmma, by a warpgroup of four warps.

Both operands lie in shared memory, row by row, with the 16-byte chunks of a row permuted as the
instruction undoes it ("swizzling" in the PTX ISA manual, "Matrix Descriptor Format"): chunk c of
row r lies at c ^ (r % 8) where rows have 128 bytes, at c ^ (r / 2 % 4) where they have 64. A tile
starts at a multiple of 1024 bytes.

A multiplication runs behind the thread that starts it. Its results are there after a wait that
names them; before the next one starts, `fence` orders what was done to them.

Of the 64 rows of D, warp w of the four has 16w .. 16w + 15; in these, and for each block of 8
columns, a lane has what it has of the results of mma.m16n8k32 (cuda_device_functions.py).
"""

from __future__ import annotations

from intswin.compile.schedules.cuda_gemm_tiles import MOST_ACCUMULATORS

COLUMNS = (32, 64, 96, 128, 192, 256)  # of D, here; the instruction knows more
ROW_BYTES = (64, 128)

_SWIZZLES = {128: 1, 64: 2}


def _multiply(columns: int) -> str:
    count = columns // 2
    results = ", ".join(f"%{i}" for i in range(count))
    return f"""
  asm volatile("wgmma.mma_async.sync.aligned.m64n{columns}k32.s32.u8.s8 "
      "{{{results}}}, %{count}, %{count + 1}, 1;"
      : {_registers(count)} : "l"(a), "l"(b) : "memory");
"""


def _registers(count: int) -> str:
    return ", ".join(f'"+r"(d[{i}])' for i in range(count))


def _descriptor(row_bytes: int) -> str:
    """The bytes from 8 rows to the next 8 in bits 32 to 45, the swizzle in bits 62 and 63."""
    high = (8 * row_bytes >> 4) | _SWIZZLES[row_bytes] << 30
    return f"""
  return ((unsigned long long){high}u << 32) | 0x10000u | ((address & 0x3ffffu) >> 4);
"""


# Result type, parameters and body of each, as in cuda_device_functions.py.
FUNCTIONS: dict[str, tuple[str, str, str]] = {
    "intswin_wgmma_fence": (
        "void",
        "",
        '\n  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");\n',
    ),
    "intswin_wgmma_commit": (
        "void",
        "",
        '\n  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");\n',
    ),
    "intswin_wgmma_wait_1": (
        "void",
        "",
        '\n  asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");\n',
    ),
    "intswin_async_proxy_fence": (
        "void",
        "",
        '\n  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");\n',
    ),
    "intswin_cluster_proxy_fence": (
        "void",
        "",
        '\n  asm volatile("fence.proxy.async;" ::: "memory");\n',
    ),
    **{
        f"intswin_wgmma_results_{count}": (
            "void",
            "int* d",
            f"""
  asm volatile("wgmma.wait_group.sync.aligned 0;" : {_registers(count)} :: "memory");
""",
        )
        for count in range(16, MOST_ACCUMULATORS + 1, 16)
    },
    **{
        f"intswin_wgmma_n{columns}": (
            "void",
            "int* d, unsigned long long a, unsigned long long b",
            _multiply(columns),
        )
        for columns in COLUMNS
    },
    **{
        f"intswin_wgmma_descriptor_{row_bytes}": (
            "unsigned long long",
            "unsigned int address",
            _descriptor(row_bytes),
        )
        for row_bytes in ROW_BYTES
    },
}

"""Calls of the device functions of CUDA kernels, and what else a kernel is written with.

A kernel calls device functions by name and its generated source carries theirs
(cuda_device_functions.py, which has the layout of fragments, too), so that kernels are integer TIR
around them.

Shared memory is addressed as the instructions do it, by 32-bit numbers: `shared_address` gives that
of a buffer, and what is added to it counts bytes. TVM does not see such accesses: a kernel
synchronises explicitly.
"""

from __future__ import annotations

from typing import TypeAlias

from tvm import tirx
from tvm.backend.cuda.op import cuda_func_call
from tvm.tirx.script.builder import ir as T

from intswin.compile.schedules.cuda_device_functions import source_of

Expr: TypeAlias = tirx.Expr
Buffer: TypeAlias = tirx.Buffer


def shared_address(pointer: Expr) -> Expr:
    """The uint32 address, in the block's shared memory, of a pointer into a shared buffer."""
    return _call("intswin_shared_address", pointer, dtype="uint32")


def mma_u8s8(d: Expr, a: Expr, b: Expr) -> Expr:
    """D += a * b by a warp: m16n8k32, uint8 (16, 32) times int8 (32, 8), int32 (16, 8); sm_75.

    Args:
        d: pointer to 4 int32 registers of this lane.
        a: pointer to 4.
        b: pointer to 2.
    """
    return _call("intswin_mma_u8s8", d, a, b)


def mma_s8s8(d: Expr, a: Expr, b: Expr) -> Expr:
    """Like `mma_u8s8` with int8 `a`."""
    return _call("intswin_mma_s8s8", d, a, b)


def ldmatrix_x4(registers: Expr, address: Expr) -> Expr:
    """Load four matrices of 8 rows of 16 bytes from shared memory, by a warp; sm_75.

    Register i of a lane is word t of row g of matrix i. Lanes 8i .. 8i + 7 give the addresses
    (uint32, multiples of 16) of the rows of matrix i. With rows r .. r + 15 of a uint8 matrix, its
    bytes k .. k + 15 (0, 1) and k + 16 .. k + 31 (2, 3), the registers are the fragment `a`: lane l
    gives the address of row r + l % 16, byte k + 16 * (l // 16).
    """
    return _call("intswin_ldmatrix_x4", registers, address)


def ldmatrix_x2(registers: Expr, address: Expr) -> Expr:
    """Load two matrices; lanes 0 .. 15 give the addresses, those of the others are not used.

    With columns n .. n + 7 of a (N, K) matrix as rows, bytes k .. (0) and k + 16 .. (1), the
    registers are the fragment `b`: lane l gives column n + l % 8, byte k + 16 * (l // 8 % 2).
    """
    return _call("intswin_ldmatrix_x2", registers, address)


def cp_async_16(address: Expr, source: Expr, size: Expr | int = 16) -> Expr:
    """Start to copy 16 bytes from global (`source`, 16-byte aligned) to shared memory; sm_75.

    Before sm_80 they are copied at once.

    Args:
        address: uint32 in shared memory.
        source: pointer; it has to be valid even where `size` is 0.
        size: int32, bytes that are read, 0 or 16; zeros are written for those that are not.
    """
    return _call("intswin_cp_async_16", address, source, tirx.convert(size))


def cp_async_commit() -> Expr:
    """Make a group of this thread's copies since the last one."""
    return _call("intswin_cp_async_commit")


def cp_async_wait(pending: int) -> Expr:
    """Wait until at most `pending` (0 to 7) of this thread's latest groups are in flight."""
    return _call(f"intswin_cp_async_wait_{pending}")


def async_proxy_fence() -> Expr:
    """Let wgmma see what this thread has written to shared memory."""
    return _call("intswin_async_proxy_fence")


def cluster_proxy_fence() -> Expr:
    """The same for what threads have written to the shared memory of their cluster's blocks."""
    return _call("intswin_cluster_proxy_fence")


def wgmma_descriptor(address: Expr, row_bytes: int) -> Expr:
    """The uint64 by which wgmma finds a tile at a uint32 address; 2 more for 32 bytes further."""
    return _call(f"intswin_wgmma_descriptor_{row_bytes}", address, dtype="uint64")


def wgmma_fence() -> Expr:
    """Order the registers that were written before the multiplications that follow."""
    return _call("intswin_wgmma_fence")


def wgmma_u8s8(d: Expr, a: Expr, b: Expr, columns: int) -> Expr:
    """Start D += a * b^T by a warpgroup: uint8 (64, 32), int8 (columns, 32), int32 (64, columns).

    Args:
        d: pointer to columns / 2 int32 registers of this lane.
        a: descriptor.
        b: descriptor.
        columns: one of cuda_wgmma_functions.COLUMNS.
    """
    return _call(f"intswin_wgmma_n{columns}", d, a, b)


def wgmma_commit() -> Expr:
    """Make a group of the multiplications since the last one."""
    return _call("intswin_wgmma_commit")


def wgmma_wait_1() -> Expr:
    """Wait until at most the latest group is running."""
    return _call("intswin_wgmma_wait_1")


def wgmma_results(d: Buffer) -> Expr:
    """Wait for all multiplications; `d` are the registers that they have written."""
    return _call(f"intswin_wgmma_results_{int(d.shape[0])}", pointer(d, 0))


def dp4a_u8s8(acc: Expr, a: Expr, b: Expr) -> Expr:
    """Acc + the sum of four products of the uint8 in `a` and the int8 in `b`, all int32; sm_61."""
    return _call("intswin_dp4a_u8s8", acc, a, b, dtype="int32")


def dp4a_s8s8(acc: Expr, a: Expr, b: Expr) -> Expr:
    """Like `dp4a_u8s8` with int8 in `a`."""
    return _call("intswin_dp4a_s8s8", acc, a, b, dtype="int32")


def load_shared_16(registers: Expr, address: Expr) -> Expr:
    """Load 4 int32 registers from shared memory, 16-byte aligned."""
    return _call("intswin_load_shared_16", registers, address)


def store_shared_16(address: Expr, registers: Expr) -> Expr:
    """Store 4 int32 registers to shared memory, 16-byte aligned."""
    return _call("intswin_store_shared_16", address, registers)


def store_shared_8(address: Expr, registers: Expr) -> Expr:
    """Store 2 int32 registers to shared memory, 8-byte aligned."""
    return _call("intswin_store_shared_8", address, registers)


def store_shared_4(address: Expr, value: Expr) -> Expr:
    """Store an int32 to shared memory."""
    return _call("intswin_store_shared_4", address, value)


def map_shared(address: Expr, rank: Expr) -> Expr:
    """The uint32 address, in block `rank`'s shared memory, of what is at `address` in this one's.

    `rank`, int32, is that of a block of this one's cluster; sm_90.
    """
    return _call("intswin_map_shared", address, rank, dtype="uint32")


def load_cluster_16(registers: Expr, address: Expr) -> Expr:
    """Load 4 int32 registers from an address of `map_shared`, 16-byte aligned; sm_90."""
    return _call("intswin_load_cluster_16", registers, address)


def store_cluster_8(address: Expr, registers: Expr) -> Expr:
    """Store 2 int32 registers to an address of `map_shared`, 8-byte aligned; sm_90.

    All blocks of the cluster have to have started: behind a barrier of the cluster.
    """
    return _call("intswin_store_cluster_8", address, registers)


def cluster_arrive() -> Expr:
    """Tell the cluster that this thread has done what is before; by whole warps; sm_90."""
    return _call("intswin_cluster_arrive")


def cluster_wait() -> Expr:
    """Wait until all threads of the cluster have arrived as often as this one; sm_90.

    What they did before is then done for this thread, in all shared memory of the cluster.
    """
    return _call("intswin_cluster_wait")


def wait_for_grid() -> Expr:
    """Wait until the kernel before this one has ended, and let the next one start (sm_90).

    Before it nothing may be touched that another kernel reads or writes: see dependent_launch.py.
    """
    return _call("intswin_wait_for_grid")


def load_global(registers: Expr, source: Expr, size: int) -> Expr:
    """Load `size` (4, 8 or 16) aligned bytes into int32 registers: of constants, or shared memory.

    The compiler may move it over `wait_for_grid`, in either direction.
    """
    return _call(f"intswin_load_global_{size}", registers, source)


def load_early(registers: Expr, source: Expr, size: int) -> Expr:
    """Load `size` (2, 4, 8 or 16) aligned bytes of constants; 2 are zero-extended.

    It stays before the `wait_for_grid` behind it, where the compiler puts loads that it takes for
    free to move: what was to be there when the wait is over would only then be asked for.
    """
    return _call(f"intswin_load_volatile_{size}", registers, source)


def load_activation(registers: Expr, source: Expr, size: int) -> Expr:
    """Load `size` (2, 4, 8 or 16) aligned bytes that another kernel wrote; 2 are zero-extended.

    It stays behind the `wait_for_grid` before it.
    """
    return _call(f"intswin_load_volatile_{size}", registers, source)


def store_global(target: Expr, registers: Expr, size: int) -> Expr:
    """Store `size` (4, 8 or 16) bytes of int32 registers to aligned global memory."""
    return _call(f"intswin_store_global_{size}", target, registers)


def pack_u8(x0: Expr, x1: Expr, x2: Expr, x3: Expr) -> Expr:
    """Four int32, saturated to uint8, in the bytes of an int32, `x0` lowest."""
    return _call("intswin_pack_u8", x0, x1, x2, x3, dtype="int32")


def pack_s8(x0: Expr, x1: Expr, x2: Expr, x3: Expr) -> Expr:
    """Four int32, saturated to int8, in the bytes of an int32, `x0` lowest."""
    return _call("intswin_pack_s8", x0, x1, x2, x3, dtype="int32")


def pack_s16(x0: Expr, x1: Expr) -> Expr:
    """Two int32, saturated to int16, in the halves of an int32, `x0` lower."""
    return _call("intswin_pack_s16", x0, x1, dtype="int32")


def shuffle_xor(x: Expr, lanes: int, dtype: str = "int32") -> Expr:
    """`x`, int32 or int64, of the lane whose number is this one's xor `lanes`; by a whole warp."""
    name = "intswin_shuffle_xor" + ("_64" if dtype == "int64" else "")
    return _call(name, x, tirx.const(lanes, "int32"), dtype=dtype)


def permute_bytes(x: Expr, y: Expr, selector: int) -> Expr:
    """Four of the bytes of `x` (0 to 3) and `y` (4 to 7), the lowest digit's lowest; uint32."""
    return _call("intswin_permute_bytes", x, y, tirx.const(selector, "uint32"), dtype="uint32")


def shift_right(x: Expr, bits: Expr | int) -> Expr:
    """The bits of `x` as a uint32, shifted right; 0 for 32 `bits` or more."""
    return _call("intswin_shift_right", x, tirx.convert(bits), dtype="uint32")


def leading_zeros(x: Expr) -> Expr:
    """Leading zero bits of the 32 bits of `x`, as an int32."""
    return _call("intswin_leading_zeros", x, dtype="int32")


def synchronize() -> None:
    """Emit __syncthreads()."""
    T.evaluate(tirx.call_intrin("void", "tirx.tvm_storage_sync", "shared"))


def registers(count: int) -> Buffer:
    """An int32 array of this thread; registers, as long as all indices are constants."""
    return _whole(T.alloc_buffer((count,), "int32", scope="local"))


def shared_memory(size: int, align: int = 128) -> Buffer:
    """`size` bytes of the block's shared memory, all of what it has."""
    return _whole(T.alloc_buffer((size,), "uint8", scope="shared.dyn", align=align))


def _whole(buffer: Buffer) -> Buffer:
    """Name both ends: TVM cuts what it sees no use of, and does not see what a function uses."""
    for index in (0, int(buffer.shape[0]) - 1):
        T.evaluate(pointer(buffer, index))
    return buffer


def pointer(buffer: Buffer, *index: Expr | int) -> Expr:
    """The address of an element, as a device function takes it."""
    return tirx.address_of(buffer[index])


def signed(x: Expr) -> Expr:
    """The bits of a uint32 as an int32."""
    return tirx.reinterpret("int32", x)


def unsigned(x: Expr) -> Expr:
    """The bits of an int32 as a uint32."""
    return tirx.reinterpret("uint32", x)


def _call(name: str, *args: Expr, dtype: str = "void") -> Expr:
    return cuda_func_call(name, *args, source_code=source_of(name), return_type=dtype)

"""CUDA source of the device functions: one PTX instruction (or one vector load or store) each.

The generated source of a kernel carries those that it calls (cuda_intrinsics.py), and a test can
put C++ in place of the instructions and run it on a CPU. All of them compute with integers or move
bytes.

Fragments are in the layout of the PTX ISA manual ("Matrix Fragments for mma.m16n8k32"). With
lane = threadIdx % 32, g = lane // 4 and t = lane % 4:

    a[0]  row g,      k = 4t .. 4t + 3             b[0]  k = 4t .. 4t + 3,       column g
    a[1]  row g + 8,  k = 4t .. 4t + 3             b[1]  k = 16 + 4t .. + 3,     column g
    a[2]  row g,      k = 16 + 4t .. + 3
    a[3]  row g + 8,  k = 16 + 4t .. + 3           d[0], d[1]  row g,      columns 2t, 2t + 1
                                                   d[2], d[3]  row g + 8,  columns 2t, 2t + 1

The four bytes of a register have the smallest k lowest.

sm_75 has neither m16n8k32 nor cp.async. Its mma is m8n8k16, whose fragments are a[0], b[0] and
d[0], d[1] of those above: four of them, each for half of the rows and half of the depth, are
m16n8k32 with every register where it is. A copy to shared memory is a load and a store, which are
done when the function returns; to commit and to wait is nothing.
"""

from __future__ import annotations

from intswin.compile.schedules import cuda_wgmma_functions

_MOST_PENDING = 7  # cp.async groups that can be left in flight


def _from_sm_80(body: str, before: str = "") -> str:
    """`body` for sm_80 and later, and `before` for those before."""
    otherwise = f"#else{before}" if before else ""
    return f"\n#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800{body}{otherwise}#endif\n"


def _from_sm_90(body: str) -> str:
    """`body` for sm_90 and later, nothing for those before."""
    return f"\n#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900{body}#endif\n"


def _mma(left: str) -> str:
    whole = f"""
  asm("mma.sync.aligned.m16n8k32.row.col.s32.{left}.s8.s32 "
      "{{%0, %1, %2, %3}}, {{%4, %5, %6, %7}}, {{%8, %9}}, {{%0, %1, %2, %3}};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
"""
    # Neighbours in this order do not wait for each other.
    quarters = [
        f"""
  asm("mma.sync.aligned.m8n8k16.row.col.s32.{left}.s8.s32 {{%0, %1}}, {{%2}}, {{%3}}, {{%0, %1}};"
      : "+r"(d[{2 * row}]), "+r"(d[{2 * row + 1}]) : "r"(a[{row + 2 * k}]), "r"(b[{k}]));"""
        for k in range(2)
        for row in range(2)
    ]
    return _from_sm_80(whole, "".join(quarters) + "\n")


def _saturating_pack(kind: str, low: int, high: int) -> str:
    """Two instructions, each for two bytes; min and max before sm_72."""
    return f"""
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 720
  int upper, packed;
  asm("cvt.pack.sat.{kind}.s32.b32 %0, %1, %2, %3;" : "=r"(upper) : "r"(x3), "r"(x2), "r"(0));
  asm("cvt.pack.sat.{kind}.s32.b32 %0, %1, %2, %3;" : "=r"(packed) : "r"(x1), "r"(x0), "r"(upper));
  return packed;
#else
  x0 = min(max(x0, {low}), {high}) & 255;
  x1 = min(max(x1, {low}), {high}) & 255;
  x2 = min(max(x2, {low}), {high}) & 255;
  x3 = min(max(x3, {low}), {high}) & 255;
  return (int)((unsigned int)x3 << 24) | (x2 << 16) | (x1 << 8) | x0;
#endif
"""


# Result type, parameters and body of each device function.
_FUNCTIONS: dict[str, tuple[str, str, str]] = {
    **cuda_wgmma_functions.FUNCTIONS,
    "intswin_shared_address": (
        "unsigned int",
        "const void* pointer",
        "\n  return (unsigned int)__cvta_generic_to_shared(pointer);\n",
    ),
    "intswin_mma_u8s8": ("void", "int* d, const int* a, const int* b", _mma("u8")),
    "intswin_mma_s8s8": ("void", "int* d, const int* a, const int* b", _mma("s8")),
    "intswin_ldmatrix_x4": (
        "void",
        "int* r, unsigned int address",
        """
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
      : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address) : "memory");
""",
    ),
    "intswin_ldmatrix_x2": (
        "void",
        "int* r, unsigned int address",
        """
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
      : "=r"(r[0]), "=r"(r[1]) : "r"(address) : "memory");
""",
    ),
    "intswin_cp_async_16": (
        "void",
        "unsigned int address, const void* source, int bytes",
        _from_sm_80(
            """
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
      :: "r"(address), "l"(source), "r"(bytes) : "memory");
""",
            """
  int4 v = make_int4(0, 0, 0, 0);
  if (bytes) v = *(const int4*)source;
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};"
      :: "r"(address), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
""",
        ),
    ),
    "intswin_cp_async_commit": (
        "void",
        "",
        _from_sm_80('\n  asm volatile("cp.async.commit_group;");\n'),
    ),
    **{
        f"intswin_cp_async_wait_{pending}": (
            "void",
            "",
            _from_sm_80(f'\n  asm volatile("cp.async.wait_group {pending};" ::: "memory");\n'),
        )
        for pending in range(_MOST_PENDING + 1)
    },
    **{
        f"intswin_dp4a_{left}8s8": (
            "int",
            "int acc, int a, int b",
            f"""
  int d;
  asm("dp4a.{left}32.s32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(acc));
  return d;
""",
        )
        for left in "us"
    },
    "intswin_load_shared_16": (
        "void",
        "int* r, unsigned int address",
        """
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
      : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address) : "memory");
""",
    ),
    "intswin_store_shared_16": (
        "void",
        "unsigned int address, const int* r",
        """
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};"
      :: "r"(address), "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3]) : "memory");
""",
    ),
    "intswin_store_shared_8": (
        "void",
        "unsigned int address, const int* r",
        """
  asm volatile("st.shared.v2.b32 [%0], {%1, %2};"
      :: "r"(address), "r"(r[0]), "r"(r[1]) : "memory");
""",
    ),
    "intswin_store_shared_4": (
        "void",
        "unsigned int address, int r",
        """
  asm volatile("st.shared.b32 [%0], %1;" :: "r"(address), "r"(r) : "memory");
""",
    ),
    "intswin_map_shared": (
        "unsigned int",
        "unsigned int address, int rank",
        """
  unsigned int mapped;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(mapped) : "r"(address), "r"(rank));
  return mapped;
""",
    ),
    "intswin_load_cluster_16": (
        "void",
        "int* r, unsigned int address",
        """
  asm volatile("ld.shared::cluster.v4.b32 {%0, %1, %2, %3}, [%4];"
      : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address) : "memory");
""",
    ),
    "intswin_store_cluster_8": (
        "void",
        "unsigned int address, const int* r",
        """
  asm volatile("st.shared::cluster.v2.b32 [%0], {%1, %2};"
      :: "r"(address), "r"(r[0]), "r"(r[1]) : "memory");
""",
    ),
    "intswin_cluster_arrive": (
        "void",
        "",
        '\n  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");\n',
    ),
    "intswin_cluster_wait": (
        "void",
        "",
        '\n  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");\n',
    ),
    "intswin_wait_for_grid": (
        "void",
        "",
        _from_sm_90(
            """
  asm volatile("griddepcontrol.wait;" ::: "memory");
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
"""
        ),
    ),
    # The compiler moves no volatile asm over another one, wait_for_grid for example.
    "intswin_load_volatile_2": (
        "void",
        "int* r, const void* source",
        """
  unsigned short half;
  asm volatile("ld.global.u16 %0, [%1];" : "=h"(half) : "l"(source));
  *r = half;
""",
    ),
    "intswin_load_volatile_4": (
        "void",
        "int* r, const void* source",
        '\n  asm volatile("ld.global.b32 %0, [%1];" : "=r"(r[0]) : "l"(source));\n',
    ),
    "intswin_load_volatile_8": (
        "void",
        "int* r, const void* source",
        """
  asm volatile("ld.global.v2.b32 {%0, %1}, [%2];" : "=r"(r[0]), "=r"(r[1]) : "l"(source));
""",
    ),
    "intswin_load_volatile_16": (
        "void",
        "int* r, const void* source",
        """
  asm volatile("ld.global.v4.b32 {%0, %1, %2, %3}, [%4];"
      : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "l"(source));
""",
    ),
    "intswin_load_global_4": ("void", "int* r, const void* source", "\n  *r = *(int*)source;\n"),
    **{
        f"intswin_load_global_{4 * count}": (
            "void",
            "int* r, const void* source",
            f"""
  const int{count} v = *(const int{count}*)source;
  {" ".join(f"r[{i}] = v{m};" for i, m in enumerate((".x", ".y", ".z", ".w")[:count]))}
""",
        )
        for count in (2, 4)
    },
    **{
        f"intswin_store_global_{4 * count}": (
            "void",
            "void* target, const int* r",
            f"""
  *(int{count}*)target = make_int{count}({", ".join(f"r[{i}]" for i in range(count))});
""",
        )
        for count in (2, 4)
    },
    "intswin_store_global_4": ("void", "void* target, const int* r", "\n  *(int*)target = r[0];\n"),
    "intswin_pack_u8": ("int", "int x0, int x1, int x2, int x3", _saturating_pack("u8", 0, 255)),
    "intswin_pack_s8": ("int", "int x0, int x1, int x2, int x3", _saturating_pack("s8", -128, 127)),
    "intswin_pack_s16": (
        "int",
        "int x0, int x1",
        """
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 720
  int packed;
  asm("cvt.pack.sat.s16.s32 %0, %1, %2;" : "=r"(packed) : "r"(x1), "r"(x0));
  return packed;
#else
  x0 = min(max(x0, -32768), 32767) & 65535;
  x1 = min(max(x1, -32768), 32767);
  return (int)((unsigned int)x1 << 16) | x0;
#endif
""",
    ),
    "intswin_shuffle_xor": (
        "int",
        "int x, int lanes",
        "\n  return __shfl_xor_sync(0xffffffffu, x, lanes);\n",
    ),
    "intswin_shuffle_xor_64": (
        "long long",
        "long long x, int lanes",
        "\n  return __shfl_xor_sync(0xffffffffu, x, lanes);\n",
    ),
    "intswin_permute_bytes": (
        "unsigned int",
        "unsigned int x, unsigned int y, unsigned int selector",
        "\n  return __byte_perm(x, y, selector);\n",
    ),
    "intswin_shift_right": (
        "unsigned int",
        "unsigned int x, unsigned int bits",
        "\n  return __funnelshift_rc(x, 0u, bits);\n",
    ),
    "intswin_leading_zeros": ("int", "int x", "\n  return __clz(x);\n"),
}

DEVICE_FUNCTIONS = frozenset(_FUNCTIONS)


def source_of(name: str) -> str:
    """The CUDA source of a device function."""
    result, parameters, body = _FUNCTIONS[name]
    return f"__device__ __forceinline__ {result} {name}({parameters}) {{{body}}}\n"

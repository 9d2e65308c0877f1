# mypy: disable-error-code=valid-type
"""Tensor intrinsics for int8 dot products on x86: uint8 activations by int8 weights, exactly.

TVM's own `dot_16x4_vnni` does not compile with LLVM 22, which wants <64 x i8> operands, and
`dot_16x4_avx512` saturates its 16-bit sums. `register` makes them known.
"""

from __future__ import annotations

import functools

from tvm import s_tir
from tvm.script import tirx as T

VNNI_DOT = "intswin_vnni_dot_16x4"
AVX2_DOT = "intswin_avx2_dot_8x4"
VNNI_REQUANTIZE = "intswin_vnni_requantize_16"
AVX2_REQUANTIZE = "intswin_avx2_requantize_8"


@functools.cache
def register() -> None:
    """Register all of them, once: parsing them takes seconds where torch is loaded, too."""
    _register_dots()
    _register_requantize(VNNI_REQUANTIZE, "_vnni", 16, "llvm.x86.avx2.pmul.hr.sw")
    _register_requantize(AVX2_REQUANTIZE, "_avx2", 8, "llvm.x86.ssse3.pmul.hr.sw.128")


def _register_dots() -> None:
    @T.prim_func(s_tir=True)
    def _vnni_description(
        A: T.Buffer((4,), "uint8", offset_factor=1),
        B: T.Buffer((16, 4), "int8", offset_factor=1),
        C: T.Buffer((16,), "int32", offset_factor=1),
    ) -> None:
        with T.sblock("root"):
            T.reads(C[0:16], A[0:4], B[0:16, 0:4])
            T.writes(C[0:16])
            for i in T.serial(0, 16):
                for k in T.serial(0, 4):
                    with T.sblock("update"):
                        vi, vk = T.axis.remap("SR", [i, k])
                        C[vi] = C[vi] + T.cast(A[vk], "int32") * T.cast(B[vi, vk], "int32")

    @T.prim_func(s_tir=True)
    def _vnni(
        A: T.Buffer((4,), "uint8", offset_factor=1),
        B: T.Buffer((16, 4), "int8", offset_factor=1),
        C: T.Buffer((16,), "int32", offset_factor=1),
    ) -> None:
        with T.sblock("root"):
            T.reads(C[0:16], A[0:4], B[0:16, 0:4])
            T.writes(C[0:16])
            C[T.ramp(T.int32(0), 1, 16)] = T.call_llvm_pure_intrin(
                T.llvm_lookup_intrinsic_id("llvm.x86.avx512.vpdpbusd.512"),
                C.vload([0], dtype="int32x16"),
                T.reinterpret(
                    T.broadcast(T.reinterpret(A.vload([0], "uint8x4"), dtype="int32"), 16),
                    dtype="uint8x64",
                ),
                B.vload([0, 0], dtype="int8x64"),
                dtype="int32x16",
            )

    @T.prim_func(s_tir=True)
    def _avx2_description(
        A: T.Buffer((4,), "uint8", offset_factor=1),
        B: T.Buffer((2, 8, 2), "int8", offset_factor=1),
        C: T.Buffer((8,), "int32", offset_factor=1),
    ) -> None:
        with T.sblock("root"):
            T.reads(C[0:8], A[0:4], B[0:2, 0:8, 0:2])
            T.writes(C[0:8])
            for i in T.serial(0, 8):
                for p in T.serial(0, 2):
                    for j in T.serial(0, 2):
                        with T.sblock("update"):
                            vi, vp, vj = T.axis.remap("SRR", [i, p, j])
                            C[vi] = C[vi] + T.cast(A[vj * 2 + vp], "int32") * T.cast(
                                B[vp, vi, vj], "int32"
                            )

    @T.prim_func(s_tir=True)
    def _avx2(
        A: T.Buffer((4,), "uint8", offset_factor=1),
        B: T.Buffer((2, 8, 2), "int8", offset_factor=1),
        C: T.Buffer((8,), "int32", offset_factor=1),
    ) -> None:
        # The four bytes of an activation, in every 32-bit lane: bytes 0 and 2 by a mask, 1 and 3 by
        # a shift, both zero-extended to 16 bits. vpmaddwd's sums of two products fit 32 bits.
        with T.sblock("root"):
            T.reads(C[0:8], A[0:4], B[0:2, 0:8, 0:2])
            T.writes(C[0:8])
            C[T.ramp(T.int32(0), 1, 8)] = (
                C.vload([0], dtype="int32x8")
                + T.call_llvm_pure_intrin(
                    T.llvm_lookup_intrinsic_id("llvm.x86.avx2.pmadd.wd"),
                    T.reinterpret(
                        T.bitwise_and(
                            T.broadcast(T.reinterpret(A.vload([0], "uint8x4"), dtype="int32"), 8),
                            T.broadcast(T.int32(0x00FF00FF), 8),
                        ),
                        dtype="int16x16",
                    ),
                    T.cast(B.vload([0, 0, 0], dtype="int8x16"), "int16x16"),
                    dtype="int32x8",
                )
                + T.call_llvm_pure_intrin(
                    T.llvm_lookup_intrinsic_id("llvm.x86.avx2.pmadd.wd"),
                    T.reinterpret(
                        T.shift_right(
                            T.reinterpret(
                                T.broadcast(
                                    T.reinterpret(A.vload([0], "uint8x4"), dtype="int32"), 8
                                ),
                                dtype="uint16x16",
                            ),
                            T.broadcast(T.uint16(8), 16),
                        ),
                        dtype="int16x16",
                    ),
                    T.cast(B.vload([1, 0, 0], dtype="int8x16"), "int16x16"),
                    dtype="int32x8",
                )
            )

    s_tir.TensorIntrin.register(VNNI_DOT, _vnni_description, _vnni, override=True)
    s_tir.TensorIntrin.register(AVX2_DOT, _avx2_description, _avx2, override=True)


def _register_requantize(name: str, prefix: str, lanes: int, multiply: str) -> None:
    """Register section 2's requantization of `lanes` accumulators.

    Args:
        name: of the intrinsic.
        prefix: of its PrimFuncs' names, which the fingerprint of a tuning log depends on.
        lanes: int16 results of a vector.
        multiply: LLVM's intrinsic for (a * b + 2^14) >> 15 of so many int16.
    """
    wide, narrow = f"int32x{lanes}", f"int16x{lanes}"

    @T.prim_func(s_tir=True)
    def description(
        A: T.Buffer((lanes,), "int32", offset_factor=1),
        B: T.Buffer((lanes,), "int32", offset_factor=1),
        P: T.Buffer((lanes,), "int32", offset_factor=1),
        M: T.Buffer((lanes,), "int16", offset_factor=1),
        H: T.Buffer((lanes,), "int16", offset_factor=1),
    ) -> None:
        with T.sblock("root"):
            T.reads(A[0:lanes], B[0:lanes], P[0:lanes], M[0:lanes])
            T.writes(H[0:lanes])
            for i in T.serial(0, lanes):
                with T.sblock("requantize"):
                    vi = T.axis.spatial(lanes, i)
                    H[vi] = T.cast(
                        T.shift_right(
                            T.max(
                                T.min(T.shift_right(A[vi] + B[vi], P[vi]), T.int32(32767)),
                                T.int32(-32768),
                            )
                            * T.cast(M[vi], "int32")
                            + T.int32(16384),
                            T.int32(15),
                        ),
                        "int16",
                    )

    @T.prim_func(s_tir=True)
    def vectors(
        A: T.Buffer((lanes,), "int32", offset_factor=1),
        B: T.Buffer((lanes,), "int32", offset_factor=1),
        P: T.Buffer((lanes,), "int32", offset_factor=1),
        M: T.Buffer((lanes,), "int16", offset_factor=1),
        H: T.Buffer((lanes,), "int16", offset_factor=1),
    ) -> None:
        with T.sblock("root"):
            T.reads(A[0:lanes], B[0:lanes], P[0:lanes], M[0:lanes])
            T.writes(H[0:lanes])
            H[T.ramp(T.int32(0), 1, lanes)] = T.call_llvm_pure_intrin(
                T.llvm_lookup_intrinsic_id(multiply),
                T.cast(
                    T.max(
                        T.min(
                            T.shift_right(
                                A.vload([0], dtype=wide) + B.vload([0], dtype=wide),
                                P.vload([0], dtype=wide),
                            ),
                            T.broadcast(T.int32(32767), lanes),
                        ),
                        T.broadcast(T.int32(-32768), lanes),
                    ),
                    narrow,
                ),
                M.vload([0], dtype=narrow),
                dtype=narrow,
            )

    s_tir.TensorIntrin.register(
        name,
        description.with_attr("global_symbol", f"{prefix}_requantize_description"),
        vectors.with_attr("global_symbol", f"{prefix}_requantize"),
        override=True,
    )

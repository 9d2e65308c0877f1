"""What the fake driver loads: a cubin, by its headers, with code for this CPU inside."""

from __future__ import annotations

import struct

_EM_CUDA, _CUBIN_OSABI = 190, 0x41
_HEADER, _SECTION = 64, 64  # bytes
_FATBIN = struct.pack("<IHHQ", 0xBA55ED50, 1, 16, 0)


def cubin(library: bytes, arch: int, kernels: list[str]) -> bytes:
    """An ELF file for CUDA.

    Args:
        library: a shared library of `cuda_emulator.compiler.compile_kernels`, in the section
            ".emulated".
        arch: such as 90.
        kernels: names; each has an empty section, as cuda_code.py looks for it.
    """
    titles = ["", ".names", ".emulated", *(f".text.{name}" for name in kernels)]
    names = b"".join(title.encode() + b"\0" for title in titles)
    table = _HEADER
    names_at = table + len(titles) * _SECTION
    library_at = names_at + len(names)
    ident = b"\x7fELF\x02\x01\x01" + bytes([_CUBIN_OSABI]) + bytes(8)
    fields = (2, _EM_CUDA, 1, 0, 0, table, arch << 8, _HEADER, 0, 0, _SECTION, len(titles), 1)
    parts = [ident + struct.pack("<HHIQQQIHHHHHH", *fields)]
    start = 0
    for title in titles:
        place, size = {".names": (names_at, len(names))}.get(title, (library_at, 0))
        if title == ".emulated":
            size = len(library)
        kind = 3 if title == ".names" else 1
        parts.append(struct.pack("<IIQQQQIIQQ", start, kind, 0, 0, place, size, 0, 0, 1, 0))
        start += len(title) + 1
    return b"".join([*parts, names, library])


def ptx(arch: int, kernels: list[str]) -> bytes:
    """The outside of a PTX text: the fake driver runs the cubin's code in its place."""
    entries = "".join(f".entry {name} ()\n" for name in kernels)
    return f".version 9.0\n.target sm_{arch}\n{entries}".encode()


def fatbin(machine_code: bytes, text: bytes) -> bytes:
    """A cubin and PTX in one file."""
    return _FATBIN + machine_code + text + b"\0"

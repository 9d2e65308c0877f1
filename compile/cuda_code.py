"""The GPU code in a shared library, read back from its bytes: machine code (cubins) and PTX."""

from __future__ import annotations

import re
import struct
from collections.abc import Collection
from dataclasses import dataclass

from intswin.models.errors import IntswinError

# ELF for CUDA: e_ident[EI_OSABI] is 0x33, or 0x41 in the second version of the format, where the
# architecture has moved in e_flags (as in LLVM's BinaryFormat/ELF.h).
_CUBIN = re.compile(rb"\x7fELF\x02\x01\x01[\x33\x41]", re.DOTALL)
_SECOND_FORMAT = 0x41
_EM_CUDA = 190
# Offsets in an ELF64 header and in a section's header.
_EI_OSABI, _E_MACHINE, _E_SHOFF, _E_FLAGS = 7, 18, 40, 48
_E_SHENTSIZE, _E_SHNUM, _E_SHSTRNDX = 58, 60, 62
_SH_OFFSET = 24
_PTX = re.compile(rb"\.version \d+\.\d+\s+\.target sm_(\d+[af]?)\b")
_ENTRY = re.compile(rb"\.entry (\w+)\s*\(")


@dataclass(frozen=True)
class DeviceCode:
    """A piece of GPU code.

    Attributes:
        kind: "cubin" or "ptx".
        arch: of a cubin, such as "sm_90" (also for sm_90a); of PTX, such as "compute_70".
        size: bytes.
        kernels: names, sorted.
    """

    kind: str
    arch: str
    size: int
    kernels: list[str]


def read_checked(
    library: bytes, arch: str, ptx: str | None, kernels: Collection[str]
) -> list[DeviceCode]:
    """`read`, and the proof that it is what was asked for.

    Args:
        library: bytes of a shared library.
        arch: of the machine code, such as "sm_90a".
        ptx: of the PTX, such as "compute_70"; None for none.
        kernels: names that each piece of code has to hold.

    Raises:
        IntswinError: other code, none, or a kernel that is not in it.
    """
    found = read(library)
    asked = [("cubin", arch.rstrip("af")), *([("ptx", ptx)] if ptx else [])]
    if [(code.kind, code.arch) for code in found] != asked:
        there = ", ".join(f"{code.kind} {code.arch}" for code in found) or "no GPU code"
        wanted = " and ".join(" ".join(pair) for pair in asked)
        raise IntswinError(f"the compiled library holds {there} instead of {wanted}")
    for code in found:
        missing = sorted(set(kernels) - set(code.kernels))
        if missing:
            raise IntswinError(f"the compiled {code.kind} lacks kernels: {', '.join(missing)}")
    return found


def read(library: bytes) -> list[DeviceCode]:
    """Every cubin and every uncompressed PTX text in `library`, in the order of their places."""
    found = []
    for match in _CUBIN.finditer(library):
        code = _read_cubin(library, match.start())
        if code is not None:
            found.append((match.start(), code))
    for match in _PTX.finditer(library):
        end = library.find(b"\0", match.start())
        text = library[match.start() : end if end >= 0 else len(library)]
        kernels = sorted(name.decode() for name in set(_ENTRY.findall(text)))
        arch = f"compute_{match[1].decode()}"
        found.append((match.start(), DeviceCode("ptx", arch, len(text), kernels)))
    return [code for _, code in sorted(found, key=lambda item: item[0])]


def _read_cubin(library: bytes, start: int) -> DeviceCode | None:
    """The ELF file at `start`, None when it is for another machine or not whole."""

    def field(form: str, offset: int) -> int:
        return struct.unpack_from(form, library, start + offset)[0]

    try:
        if field("<H", _E_MACHINE) != _EM_CUDA:
            return None
        flags, table = field("<I", _E_FLAGS), field("<Q", _E_SHOFF)
        entry, count = field("<H", _E_SHENTSIZE), field("<H", _E_SHNUM)
        headers = [table + i * entry for i in range(count)]
        names = start + field("<Q", headers[field("<H", _E_SHSTRNDX)] + _SH_OFFSET)
        titles = [_string(library, names + field("<I", header)) for header in headers]
    except (struct.error, IndexError, ValueError):
        return None
    number = (flags >> 8 if library[start + _EI_OSABI] == _SECOND_FORMAT else flags) & 0xFF
    kernels = [title.removeprefix(".text.") for title in titles if title.startswith(".text.")]
    # NVRTC writes the sections' table last but for the program headers, which are short.
    return DeviceCode("cubin", f"sm_{number}", table + count * entry, sorted(kernels))


def _string(data: bytes, start: int) -> str:
    return data[start : data.index(b"\0", start)].decode()

"""Inline PTX in CUDA source becomes calls of C++ functions: see include/ptx.h."""

from __future__ import annotations

import re
from pathlib import Path

from cuda_emulator.errors import EmulationError

_ASM = re.compile(r"\b(?:asm|__asm__)\s*(?:volatile|__volatile__)?\s*\(")
_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"')
_KNOWN = (Path(__file__).parent / "include" / "ptx.h").read_text()


def without_ptx(source: str) -> str:
    """`source` with every `asm(...)` of one instruction replaced by `emu::ptx::...(...)`.

    Raises:
        EmulationError: an instruction that is not emulated, or several in one asm.
    """
    parts, position = [], 0
    while match := _ASM.search(source, position):
        end = _closing(source, match.end())
        parts += [source[position : match.start()], _call(source[match.end() : end])]
        position = end + 1
    return "".join([*parts, source[position:]])


def _call(asm: str) -> str:
    """The C++ call for what stands between the parentheses of an asm."""
    template, *operand_lists = _split(asm, ":")
    code = "".join(_STRING.findall(template))
    code = re.sub(r"\\[nt]", " ", code).strip().rstrip("; ")
    if ";" in code or not re.match(r"[a-z]", code):
        raise EmulationError(f"inline PTX of more than one instruction is not emulated: {code}")
    instruction, _, operands = code.partition(" ")
    name = instruction.replace(".", "_").replace("::", "_")
    if not re.search(rf"\b{name}\(", _KNOWN) and not _made_by_macro(name):
        raise EmulationError(f"the PTX instruction {instruction} is not emulated")
    values = [_expression(o) for text in operand_lists[:2] for o in _split(text, ",") if o.strip()]
    arguments = re.sub(r"[{}\[\]]", "", operands)
    arguments = re.sub(r"%%(\w+)", r"emu::ptx::\1()", arguments)
    arguments = re.sub(r"%(\d+)", lambda m: values[int(m.group(1))], arguments)
    return f"emu::ptx::{name}({arguments})"


def _made_by_macro(name: str) -> bool:
    ldmatrix = re.fullmatch(r"ldmatrix_sync_aligned_m8n8_x[124](_trans)?_shared_b16", name)
    return bool(ldmatrix) or re.search(rf"\bEMU_\w+\({name},", _KNOWN) is not None


def _expression(operand: str) -> str:
    """`(x[0])` of `"=r"(x[0])`."""
    return _STRING.sub("", operand, count=1).strip()


def _closing(text: str, start: int) -> int:
    """Where the parenthesis closes that was opened before `start`."""
    depth, position = 1, start
    while depth:
        string = _STRING.match(text, position)
        if string:
            position = string.end()
            continue
        depth += {"(": 1, ")": -1}.get(text[position], 0)
        position += 1
    return position - 1


def _split(text: str, separator: str) -> list[str]:
    """Split at separators that are in no string and in no brackets; C++'s `::` is two of them."""
    parts, depth, start, position = [], 0, 0, 0
    while position < len(text):
        string = _STRING.match(text, position)
        if string:
            position = string.end()
            continue
        character = text[position]
        depth += {"(": 1, "[": 1, ")": -1, "]": -1}.get(character, 0)
        if character == separator and not depth:
            parts.append(text[start:position])
            start = position + 1
        position += 1
    return [*parts, text[start:]]

"""Writing result files: complete or not at all, with one clear line when that is impossible."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from intswin.models.errors import IntswinError


def write_file(path: str | Path, data: bytes) -> Path:
    """Write `data` to `path`, as `write_atomically` does."""
    return write_atomically(path, lambda temporary: temporary.write_bytes(data))


def write_atomically(path: str | Path, write: Callable[[Path], object]) -> Path:
    """Call `write` on a temporary file beside `path`, then rename it; makes the folder.

    Raises:
        IntswinError: the folder is read-only, the disk is full, or `path` is not a plain file. What
            was at `path` before is still there then, and no temporary file is.
    """
    path = Path(path)
    temporary = _temporary_beside(path)
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    return path


def check_writable(path: str | Path) -> None:
    """Find out that `path` cannot be written before hours or seconds are spent on its contents.

    Raises:
        IntswinError: as `write_file` would for an empty file.
    """
    path = Path(path)
    temporary = _temporary_beside(path)
    try:
        temporary.open("xb").close()
        temporary.unlink()
    except OSError as error:
        raise _cannot_write(path, error) from error


def _temporary_beside(path: Path) -> Path:
    # Renaming onto a folder fails late, renaming onto a device such as /dev/full replaces it.
    if path.exists() and not path.is_file():
        raise IntswinError(f"cannot write {path}: it exists and is not a plain file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_write(path, error) from error
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def _cannot_write(path: Path, error: OSError) -> IntswinError:
    return IntswinError(f"cannot write {path}: {error.strerror or error}")

"""The one file that `intswin compile` makes: a compiled network and everything known about it.

Layout: 8 bytes of magic, the SHA-256 (32 bytes) of all that follows, and an uncompressed zip of

- `library.so`     the compiled Relax executable, weights included;
- `metadata.json`  network, classes, preprocessing, scales, target, versions, checks;
- `graph.npz`      the integer network (models/integer_graph.py), so that the compiled code can be
                   compared with the NumPy reference without torch.

The bytes depend on the contents alone, so compiling twice gives the same file. The checksum finds
damage, not malice: `library.so` is native code, so load only artifacts that you trust.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from intswin.models.errors import IntswinError
from intswin.models.files import write_file
from intswin.models.integer_graph import IntegerGraph

MAGIC = b"INTSWIN\x01"  # the last byte is the version of the layout
DIGEST_BYTES = hashlib.sha256().digest_size


@dataclass(frozen=True)
class Artifact:
    """A checked artifact.

    Attributes:
        library: bytes of the shared library.
        metadata: the JSON object that the pipeline stored.
        graph_bytes: IntegerGraph.to_bytes(); parsed by `graph` on demand, prediction needs none.
        size: bytes of the whole file.
    """

    path: Path
    library: bytes
    metadata: dict[str, Any]
    graph_bytes: bytes
    size: int

    def graph(self) -> IntegerGraph:
        """The integer network."""
        return IntegerGraph.from_bytes(self.graph_bytes)


def write(path: str | Path, library: bytes, metadata: dict[str, Any], graph: IntegerGraph) -> Path:
    """Store a compiled network at `path`; the file is complete or absent.

    Raises:
        IntswinError: it cannot be written there.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, data in (
            ("library.so", library),
            ("metadata.json", json.dumps(metadata, indent=1, sort_keys=True).encode()),
            ("graph.npz", graph.to_bytes()),
        ):
            archive.writestr(zipfile.ZipInfo(name), data)  # ZipInfo's default time is 1980-01-01
    body = buffer.getvalue()
    return write_file(path, MAGIC + hashlib.sha256(body).digest() + body)


def read(path: str | Path) -> Artifact:
    """Read an artifact and check it against its SHA-256.

    Raises:
        IntswinError: missing, unreadable, not an artifact, truncated or damaged anywhere.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise IntswinError(
            f"{path}: no such artifact; make one with: intswin compile --output {path}"
        ) from error
    except OSError as error:
        raise IntswinError(f"cannot read {path}: {error.strerror or error}") from error
    if data[: len(MAGIC) - 1] != MAGIC[:-1]:
        raise IntswinError(f"{path} is not an intswin artifact (or its first bytes are damaged)")
    if data[: len(MAGIC)] != MAGIC:
        raise IntswinError(f"{path} has another artifact version or is damaged; compile it again")
    start = len(MAGIC) + DIGEST_BYTES
    digest, body = data[len(MAGIC) : start], memoryview(data)[start:]
    if hashlib.sha256(body).digest() != digest:
        raise IntswinError(
            f"{path} is damaged (its SHA-256 does not match); copy or compile it again"
        )
    with zipfile.ZipFile(io.BytesIO(body)) as archive:
        return Artifact(
            path=path,
            library=archive.read("library.so"),
            metadata=json.loads(archive.read("metadata.json")),
            graph_bytes=archive.read("graph.npz"),
            size=len(data),
        )

"""The artifact file: what goes in comes out, damage is found, nothing partial is left."""

import errno
import os
import resource

import numpy as np
import pytest

from intswin.compile import artifact
from intswin.models.errors import IntswinError
from intswin.models.files import check_writable, write_file
from intswin.models.integer_graph import IntegerGraph, Node, TensorSpec

METADATA = {"network": "tiny", "classes": ["a", "b"], "logit_scale": 0.125}


def tiny_graph():
    weight = np.arange(-96, 96, dtype=np.int8).reshape(4, 48)
    vector = np.arange(4, dtype=np.int32)
    patches = Node(
        "patches", "patchify", ["image"], {}, {"patch": 4}, TensorSpec((4, 48), "uint8", 1 / 255)
    )
    linear = Node(
        name="linear_0",
        op="linear",
        inputs=["patches"],
        tensors={"weight": weight, "bias": vector, "pre": vector, "mult": vector},
        attrs={"out": "u8", "zero_point": 0, "frac": 7, "activation": "none"},
        out=TensorSpec((4, 4), "uint8", 0.5),
    )
    return IntegerGraph(TensorSpec((8, 8, 3), "uint8", 1 / 255), [patches, linear])


@pytest.fixture
def stored(tmp_path):
    path = tmp_path / "tiny.intswin"
    artifact.write(path, b"\x7fELF library", METADATA, tiny_graph())
    return path


def test_reads_what_was_written(stored):
    read = artifact.read(stored)
    assert read.library == b"\x7fELF library"
    assert read.metadata == METADATA
    assert read.size == stored.stat().st_size
    graph, expected = read.graph(), tiny_graph()
    assert graph.input == expected.input
    for node, wanted in zip(graph.nodes, expected.nodes, strict=True):
        assert (node.name, node.op, node.inputs) == (wanted.name, wanted.op, wanted.inputs)
        assert (node.attrs, node.out) == (wanted.attrs, wanted.out)
        assert node.tensors.keys() == wanted.tensors.keys()
        for key, tensor in node.tensors.items():
            assert tensor.dtype == wanted.tensors[key].dtype
            np.testing.assert_array_equal(tensor, wanted.tensors[key])


def test_same_contents_same_bytes(tmp_path, stored):
    again = tmp_path / "again.intswin"
    reordered = dict(reversed(METADATA.items()))
    artifact.write(again, b"\x7fELF library", reordered, tiny_graph())
    assert again.read_bytes() == stored.read_bytes()


def test_every_flipped_byte_is_found(stored):
    data = stored.read_bytes()
    for position in range(0, len(data), 7):
        damaged = bytearray(data)
        damaged[position] ^= 1
        stored.write_bytes(damaged)
        with pytest.raises(IntswinError):
            artifact.read(stored)


def test_every_truncation_is_found(stored):
    data = stored.read_bytes()
    for length in (0, 1, 7, 8, 20, 39, 40, 41, len(data) // 2, len(data) - 1):
        stored.write_bytes(data[:length])
        with pytest.raises(IntswinError):
            artifact.read(stored)
    stored.write_bytes(data + b"\0")
    with pytest.raises(IntswinError, match="damaged"):
        artifact.read(stored)


@pytest.mark.parametrize("contents", [b"", b"\x89PNG\r\n\x1a\n", b"x" * 4096])
def test_other_files_are_refused(tmp_path, contents):
    path = tmp_path / "other"
    path.write_bytes(contents)
    with pytest.raises(IntswinError, match="not an intswin artifact"):
        artifact.read(path)
    with pytest.raises(IntswinError, match="no such artifact"):
        artifact.read(tmp_path / "absent")
    with pytest.raises(IntswinError, match="cannot read"):
        artifact.read(tmp_path)


def test_full_disk_leaves_the_old_file_and_nothing_else(stored):
    before = stored.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(IntswinError, match=os.strerror(errno.EFBIG)):
            artifact.write(stored, bytes(5000), METADATA, tiny_graph())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert stored.read_bytes() == before
    assert list(stored.parent.iterdir()) == [stored]


@pytest.mark.parametrize("write", [check_writable, lambda path: write_file(path, b"data")])
def test_unwritable_places_are_refused(tmp_path, write):
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file" / "below", "/proc/intswin", "/dev/full"):
        with pytest.raises(IntswinError, match="cannot write"):
            write(path)
    assert not os.path.isfile("/dev/full")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_check_writable_leaves_nothing(tmp_path):
    check_writable(tmp_path / "new" / "file")
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "kept").write_text("kept")
    check_writable(tmp_path / "kept")
    assert (tmp_path / "kept").read_text() == "kept"

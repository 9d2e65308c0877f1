"""Whole networks: chunks do not matter, nothing leaves int32, Python integers agree."""

import io
import json

import numpy as np
import pytest
import python_integers

import graphs
from intswin.models import integer_reference
from intswin.models.errors import IntswinError
from intswin.models.integer_graph import IntegerGraph
from intswin.models.integer_reference import run, run_all

MAKERS = {
    "swin-relu": graphs.tiny_swin_graph,
    "swin-igelu": lambda rng: graphs.tiny_swin_graph(rng, activation="igelu"),
    "swin-shiftgelu": lambda rng: graphs.tiny_swin_graph(rng, activation="shiftgelu"),
    "vit-igelu": graphs.tiny_vit_graph,
}


def images_for(graph: IntegerGraph, count: int) -> np.ndarray:
    return graphs.random_images(np.random.default_rng(7), graph, count)


@pytest.mark.parametrize("name", MAKERS)
def test_every_tensor_equals_python_integers(name):
    graph = MAKERS[name](np.random.default_rng(3))
    values = run_all(graph, images_for(graph, 1))
    assert list(values) == ["image", *(n.name for n in graph.nodes)]
    for node in graph.nodes:
        expected = python_integers.run(node, [values[i] for i in node.inputs])
        np.testing.assert_array_equal(values[node.name], expected, err_msg=node.name)
        assert values[node.name].dtype == node.out.dtype


@pytest.mark.parametrize("name", MAKERS)
def test_logits_do_not_depend_on_chunks(name, monkeypatch):
    graph = MAKERS[name](np.random.default_rng(4))
    images = images_for(graph, 5)
    logits = run(graph, images)
    assert logits.shape == (5, 5) and logits.dtype == np.int32
    assert len(np.unique(logits, axis=0)) >= 3
    monkeypatch.setattr(integer_reference, "_CHUNK_ELEMENTS", 1)
    np.testing.assert_array_equal(run(graph, images), logits)
    np.testing.assert_array_equal(run(graph, images, checked=True), logits)
    last = run_all(graph, images)[graph.nodes[-1].name]
    np.testing.assert_array_equal(last[:, 0], logits)


def test_survives_serialization():
    graph = MAKERS["swin-igelu"](np.random.default_rng(5))
    images = images_for(graph, 2)
    again = IntegerGraph.from_bytes(graph.to_bytes())
    np.testing.assert_array_equal(run(again, images), run(graph, images))


def test_reads_graphs_from_before_part_scales():
    graph = MAKERS["swin-relu"](np.random.default_rng(5))
    with np.load(io.BytesIO(graph.to_bytes())) as archive:
        arrays = dict(archive)
    header = json.loads(arrays["graph"].tobytes())
    for spec in (header["input"], *(node["out"] for node in header["nodes"])):
        del spec["part_scales"]
    buffer = io.BytesIO()
    np.savez(buffer, **{**arrays, "graph": np.frombuffer(json.dumps(header).encode(), np.uint8)})
    images = images_for(graph, 2)
    np.testing.assert_array_equal(
        run(IntegerGraph.from_bytes(buffer.getvalue()), images), run(graph, images)
    )


def test_no_images():
    graph = MAKERS["vit-igelu"](np.random.default_rng(5))
    assert run(graph, images_for(graph, 0)).shape == (0, 5)


@pytest.mark.parametrize(
    "images", [np.zeros((1, 32, 32, 3), np.float32), np.zeros((1, 32, 16, 3), np.uint8)]
)
def test_refuses_other_images(images):
    graph = MAKERS["swin-relu"](np.random.default_rng(5))
    with pytest.raises(IntswinError, match=r"takes uint8 \(32, 32, 3\)"):
        run(graph, images)

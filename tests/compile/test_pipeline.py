"""The whole way: every network and activation, compiled, equals the reference in every bit."""

import dataclasses
import functools
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from intswin.compile import runtime
from intswin.compile.accuracy import evaluate_artifact
from intswin.compile.artifact import read
from intswin.compile.evaluate import evaluate, layer_errors
from intswin.compile.import_model import export_onnx
from intswin.compile.names import ACTIVATIONS
from intswin.compile.pipeline import (
    CompileOptions,
    compile_network,
    load_calibration,
    load_float_network,
    quantize_network,
    quantize_pass,
)
from intswin.compile.targets import get_target
from intswin.compile.verify_integer_only import verify_integer_only
from intswin.models.data import open_images
from intswin.models.errors import IntswinError
from intswin.models.integer_reference import run
from intswin.models.swin import ASSETS, create_model

PHOTOS = ASSETS / "photos"
compiled_once = functools.cache(compile_network)


def crops(count, size=224):
    """Real images: crops of the demo photos, uint8 (count, size, size, 3)."""
    photos = sorted(path for path in PHOTOS.iterdir() if path.suffix in (".jpg", ".png"))
    rng = np.random.default_rng(0)
    images = []
    for i in range(count):
        with Image.open(photos[i % len(photos)]) as photo:
            rgb = photo.convert("RGB")
            width, height = rgb.size
            side = int(min(width, height) * rng.uniform(0.5, 1.0))
            left, top = rng.integers(0, width - side + 1), rng.integers(0, height - side + 1)
            box = (int(left), int(top), int(left) + side, int(top) + side)
            images.append(np.asarray(rgb.resize((size, size), box=box)))
    return np.stack(images)


@pytest.mark.parametrize(
    ("activation", "batch"),
    [
        *(("relu", 1), ("igelu", 1), pytest.param("shiftgelu", 1, marks=pytest.mark.slow)),
        *(pytest.param(name, 4, marks=pytest.mark.slow) for name in ACTIVATIONS),
    ],
)
def test_swin_micro_is_bit_exact(activation, batch):
    """The embedded networks on 16 real images."""
    compiled = compiled_once(CompileOptions(activation=activation, batch=batch))
    images = crops(16)
    machine = runtime.CompiledNetwork(compiled.library, compiled.metadata)
    np.testing.assert_array_equal(machine.logits(images), run(compiled.graph, images))


@pytest.mark.parametrize(
    "activation",
    ["relu", *(pytest.param(name, marks=pytest.mark.slow) for name in ("igelu", "shiftgelu"))],
)
def test_swin_tiny_is_bit_exact(activation):
    """Random weights, 2 real images."""
    options = CompileOptions(network="swin_tiny_patch4_window7_224", activation=activation)
    compiled = compile_network(dataclasses.replace(options, calibration_images=2))
    images = crops(2)
    machine = runtime.CompiledNetwork(compiled.library, compiled.metadata)
    np.testing.assert_array_equal(machine.logits(images), run(compiled.graph, images))


def test_same_options_same_library_and_graph(tmp_path):
    first, second = compiled_once(CompileOptions()), compile_network(CompileOptions())
    assert first.graph.to_bytes() == second.graph.to_bytes()
    paths = [first.save(tmp_path / "a"), second.save(tmp_path / "b")]
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_as_a_relax_pass():
    """A float32 module goes in and a module without a float comes out."""
    options = CompileOptions(activation="igelu", batch=2)
    network = load_float_network(options)
    target = get_target("llvm")
    transform = quantize_pass(
        options, load_calibration(options, network), network.preprocess, target
    )
    module = transform(network.module)
    verify_integer_only(module)
    assert [int(d) for d in module["main"].params[0].ty.shape] == [2, 224, 224, 3]
    assert [int(d) for d in module["main"].ret_ty.shape] == [2, 10]


def test_relu_of_a_gelu_onnx_is_refused(tmp_path):
    path = tmp_path / "gelu.onnx"
    export_onnx(create_model("swin_micro", activation="gelu"), (224, 224), path)
    with pytest.raises(IntswinError, match="--activation igelu"):
        load_float_network(CompileOptions(onnx=path))
    network = load_float_network(CompileOptions(onnx=path, activation="igelu"))
    assert network.preprocess.image_size == 224


@pytest.fixture
def labeled(tmp_path):
    """A folder of class folders named like the network's classes, with crops in two of them."""
    card = json.loads(CompileOptions().checkpoint_path.with_suffix(".json").read_text())
    for i, name in enumerate(card["classes"]):
        folder = tmp_path / "data" / name.replace(" ", "_")
        folder.mkdir(parents=True)
        Image.fromarray(crops(10)[i]).save(folder / "photo.png")
    return tmp_path / "data"


def test_evaluate_table(labeled, tmp_path):
    """Three forms; the compiled one equals the reference on all 10 images."""
    rows = evaluate(CompileOptions(activation="igelu"), labeled)
    assert [row.form for row in rows] == ["float torch", "integer reference", "compiled for llvm"]
    reference, compiled = rows[1:]
    assert compiled.bit_exact == 10
    assert (compiled.top1, compiled.top5) == (reference.top1, reference.top5)
    assert reference.agreement >= 80
    path = compiled_once(CompileOptions(activation="igelu")).save(tmp_path / "a.intswin")
    again = evaluate_artifact(read(path), labeled)
    assert [row.form for row in again] == ["integer reference", "compiled for llvm"]
    assert again[1].bit_exact == 10
    assert again[1].top1 == compiled.top1


def test_evaluate_refuses_other_classes(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.fromarray(crops(1)[0]).save(tmp_path / name / "x.png")
    with pytest.raises(IntswinError, match="2 classes and the network 10"):
        evaluate(CompileOptions(), tmp_path)


def test_evaluate_refuses_unlabeled():
    with pytest.raises(IntswinError, match="no labels"):
        evaluate(CompileOptions(), PHOTOS)


def test_layer_errors_find_the_layer_that_loses():
    """Every tensor of the embedded network is well above noise; a broken layer stands out."""
    options = CompileOptions()
    network = load_float_network(options)
    quantized = quantize_network(options, network, load_calibration(options, network))
    errors = layer_errors(network, quantized, crops(2))
    assert len(errors) == len(quantized.views)
    assert min(error.snr_db for error in errors) > 15
    broken = next(n for n in quantized.graph.nodes if n.name == errors[20].node)
    broken.tensors[next(k for k in ("mult", "gamma", "params") if k in broken.tensors)] //= 2
    again = layer_errors(network, quantized, crops(2))
    drops = [before.snr_db - after.snr_db for before, after in zip(errors, again, strict=True)]
    assert max(abs(drop) for drop in drops[:20]) < 1e-9
    assert drops[20] > 10


@pytest.mark.data
def test_accuracy_on_the_validation_pack(validation_pack):
    """Integer-only within half a point of float, every image bit-exact."""
    for activation in ("relu", "igelu"):
        rows = evaluate(CompileOptions(activation=activation, batch=4), validation_pack, 400)
        assert rows[2].top1 >= rows[0].top1 - 0.5
        assert rows[2].bit_exact == len(open_images(validation_pack, _preprocess(), 400))


def _preprocess():
    return load_float_network(CompileOptions()).preprocess


@pytest.fixture
def validation_pack():
    folder = os.environ.get("INTSWIN_DATA")
    if not folder:
        pytest.skip("INTSWIN_DATA names no folder with imagenette2_224_val.npz")
    return Path(folder) / "imagenette2_224_val.npz"

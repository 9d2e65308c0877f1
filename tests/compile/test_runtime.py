"""Running artifacts: batches, threads, wrong input, other machines, and a machine without torch."""

import platform
import subprocess
import sys
import threading

import numpy as np
import pytest

from intswin.compile import artifact, host_cpu, runtime
from intswin.compile.tvm_runtime import aligned_empty
from intswin.models.errors import IntswinError
from intswin.models.integer_graph import IntegerGraph, TensorSpec
from intswin.models.preprocess import Preprocess

SIZE, BATCH, CLASSES = 8, 2, 5
WEIGHT = np.random.default_rng(0).integers(-128, 128, (CLASSES, SIZE * SIZE * 3), np.int32)
EMPTY_GRAPH = IntegerGraph(TensorSpec((SIZE, SIZE, 3), "uint8", 1 / 255), [])


def expected_logits(images):
    return images.reshape(-1, SIZE * SIZE * 3).astype(np.int32) @ WEIGHT.T


def metadata(**changes):
    return {
        "batch": BATCH,
        "classes": [f"class {i}" for i in range(CLASSES)],
        "preprocessing": Preprocess(image_size=SIZE).to_json(),
        "logit_scale": 1e-5,
        "target": {"name": "llvm", "kind": "llvm", "machine": platform.machine(), "features": []},
        **changes,
    }


def compile_matmul(folder):
    """Bytes of one matrix multiplication compiled by TVM for a plain CPU."""
    import tvm
    from tvm import relax, te

    def flatten(image):
        return te.compute(
            (BATCH, SIZE * SIZE * 3),
            lambda b, i: image[b, i // (SIZE * 3), i // 3 % SIZE, i % 3].astype("int32"),
        )

    def multiply(pixels, weight):
        k = te.reduce_axis((0, SIZE * SIZE * 3), "k")
        return te.compute(
            (BATCH, CLASSES), lambda b, n: te.sum(pixels[b, k] * weight[n, k], axis=k)
        )

    builder = relax.BlockBuilder()
    image = relax.Var("image", relax.TensorType((BATCH, SIZE, SIZE, 3), "uint8"))
    with builder.function("main", [image]):
        with builder.dataflow():
            pixels = builder.emit_te(flatten, image)
            logits = builder.emit_te(multiply, pixels, relax.const(WEIGHT, "int32"))
            output = builder.emit_output(logits)
        builder.emit_func_output(output)
    path = folder / "library.so"
    tvm.compile(builder.finalize(), target="llvm").export_library(str(path))
    return path.read_bytes()


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return compile_matmul(tmp_path_factory.mktemp("library"))


def test_compiling_again_gives_the_same_bytes(library, tmp_path):
    assert compile_matmul(tmp_path) == library


@pytest.fixture(scope="module")
def stored(library, tmp_path_factory):
    path = tmp_path_factory.mktemp("artifact") / "matmul.intswin"
    return artifact.write(path, library, metadata(), EMPTY_GRAPH)


@pytest.fixture(scope="module")
def network(stored):
    return runtime.load(stored)


def images(count, seed=1):
    shape = (count, SIZE, SIZE, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def test_logits_of_one_batch(network):
    batch = images(BATCH)
    logits = network(batch)
    assert logits.dtype == np.int32
    np.testing.assert_array_equal(logits, expected_logits(batch))
    network(images(BATCH, seed=2))
    np.testing.assert_array_equal(logits, expected_logits(batch))  # a result stays what it was


def test_pixels_in_any_memory_layout(network):
    wide = images(2 * BATCH)
    np.testing.assert_array_equal(network(wide[::2]), expected_logits(wide[::2]))
    flipped = images(BATCH)[:, :, ::-1]
    np.testing.assert_array_equal(network(flipped), expected_logits(flipped))


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7])
def test_logits_of_any_number_of_images(network, count):
    batch = images(count)
    np.testing.assert_array_equal(network.logits(batch), expected_logits(batch))


def test_predict(network, tmp_path):
    from PIL import Image

    batch = images(3)
    paths = []
    for i, pixels in enumerate(batch):
        paths.append(tmp_path / f"{i}.png")
        Image.fromarray(pixels).save(paths[-1])
    real = expected_logits(batch) * 1e-5
    probabilities = np.exp(real) / np.exp(real).sum(axis=1, keepdims=True)
    for given in (batch, list(batch), paths, [str(path) for path in paths]):
        predictions = network.predict(given, top=CLASSES)
        for ranked, row in zip(predictions, probabilities, strict=True):
            assert [p.index for p in ranked] == list(np.argsort(-row))
            assert ranked[0].label == f"class {row.argmax()}"
            np.testing.assert_allclose(
                [p.probability for p in ranked], np.sort(row)[::-1], rtol=1e-6
            )
    assert network.predict(paths[0])[0][0].index == probabilities[0].argmax()
    assert network.predict([]) == []


def test_many_threads_at_once(network):
    wrong = []

    def work(seed):
        for step in range(50):
            batch = images(BATCH, seed=1000 * seed + step)
            if not np.array_equal(network(batch), expected_logits(batch)):
                wrong.append((seed, step))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_kernel_times(network):
    times = network.kernel_times(images(BATCH))
    kernels = [(name, seconds) for name, seconds in times if not name.startswith("vm.")]
    assert len(kernels) == 2
    assert all(0 < seconds < 1 for _, seconds in kernels)
    batch = images(BATCH, seed=3)
    np.testing.assert_array_equal(network(batch), expected_logits(batch))  # and back to normal


@pytest.mark.parametrize(
    "bad",
    [
        np.zeros((BATCH, SIZE + 1, SIZE, 3), np.uint8),
        np.zeros((BATCH, SIZE, SIZE, 4), np.uint8),
        np.zeros((BATCH, 3, SIZE, SIZE), np.uint8),
        np.zeros((SIZE, SIZE, 3), np.uint8),
        np.zeros((BATCH, SIZE, SIZE, 3), np.float32),
        [[1, 2], [3, 4]],
    ],
)
def test_wrong_images_are_refused(network, bad):
    for call in (network, network.logits, network.predict):
        with pytest.raises(IntswinError, match=r"takes uint8 \(8, 8, 3\)"):
            call(bad if call is not network.predict or np.ndim(bad) != 3 else [bad[:-1]])


def test_another_batch_is_refused(network):
    with pytest.raises(IntswinError, match="got 3 images, and the artifact is compiled for batch"):
        network(images(3))


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ({"machine": "riscv64"}, "is for riscv64 and this machine is"),
        ({"features": ["sse2", "made_up_512"]}, "this CPU lacks made_up_512"),
        ({"kind": "cuda", "name": "cuda-v100"}, "it has no NVIDIA driver|no GPU|its code is for"),
    ],
)
@pytest.mark.skipif(platform.machine() != "x86_64", reason="names x86 instruction sets")
def test_another_machines_artifact_is_refused(library, tmp_path, target, message):
    changed = metadata(target={**metadata()["target"], **target})
    path = artifact.write(tmp_path / "other.intswin", library, changed, EMPTY_GRAPH)
    with pytest.raises(IntswinError, match=message) as error:
        runtime.load(path)
    assert "intswin compile --target llvm" in str(error.value)


def test_requirements_of_targets():
    from tvm.target import Target

    needs = host_cpu.requirements(Target({"kind": "llvm", "mcpu": "cascadelake"}))
    assert needs["machine"] == platform.machine()
    arm = Target({"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mattr": ["+dotprod"]})
    assert host_cpu.requirements(arm) == {
        "kind": "llvm",
        "mcpu": "",
        "machine": "aarch64",
        "features": ["asimd", "asimddp"],
    }
    if platform.machine() == "x86_64":
        assert {"sse2", "avx2", "fma", "avx512_vnni"} <= set(needs["features"])
        assert "avx512_vbmi2" not in needs["features"]
        assert "sse2" in host_cpu.cpu_features()


def test_aligned_empty():
    for shape in [(1,), (3, 5, 7), (2, 224, 224, 3)]:
        array = aligned_empty(shape, "int16")
        assert array.shape == shape
        assert array.ctypes.data % 64 == 0
        assert array.flags.c_contiguous


LATE_IMPORTS = """
import sys
import numpy as np
from intswin.compile import runtime
network = runtime.load(sys.argv[1])
assert "torch" not in sys.modules and "tvm" not in sys.modules
before = network(np.full((2, 8, 8, 3), 7, np.uint8))
import tvm
from tvm import relax
assert "torch" in sys.modules
assert np.array_equal(network(np.full((2, 8, 8, 3), 7, np.uint8)), before)
assert tvm.runtime.tensor(np.arange(3)).numpy().sum() == 3
"""


def test_loads_without_torch_and_tvm_imports_later(stored):
    pytest.importorskip("torch")
    subprocess.run([sys.executable, "-c", LATE_IMPORTS, stored], check=True)

"""What the user gets wrong ends in one line on stderr, exit code 2, and no file."""

import os
import platform

import numpy as np
import pytest

from command import run_forked
from intswin.compile import artifact
from intswin.models.swin import embedded_checkpoint


def check_failure(folder, *arguments, says, **options):
    """Run a command that must fail, in an otherwise empty folder."""
    before = sorted(folder.rglob("*"))
    result = run_forked(*arguments, cwd=folder, **options)
    assert result.returncode == 2, result.stderr
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("intswin: error: ")
    assert says in lines[0]
    assert result.stdout == ""
    after = [path for path in sorted(folder.rglob("*")) if path.name != "out"]
    assert after == before


@pytest.fixture
def photo(tmp_path):
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    path = tmp_path / "photo.png"
    Image.fromarray(pixels).save(path)
    return path


def test_usage(tmp_path):
    check_failure(tmp_path, "compile", "--colour", "red", says="--colour")
    check_failure(tmp_path, "predict", says="photos")
    check_failure(tmp_path, "guess", says="guess")


def test_missing_checkpoint(tmp_path):
    check_failure(tmp_path, "compile", "--checkpoint", "absent.safetensors", says="absent")


def test_truncated_checkpoint(tmp_path):
    data = embedded_checkpoint("relu").read_bytes()
    (tmp_path / "half.safetensors").write_bytes(data[: len(data) // 2])
    check_failure(tmp_path, "compile", "--checkpoint", "half.safetensors", says="half.safetensors")


def test_wrong_class_count(tmp_path):
    checkpoint = embedded_checkpoint("relu")
    arguments = ["compile", "--checkpoint", checkpoint, "--num-classes", 7]
    check_failure(tmp_path, *arguments, says="class")


def test_unknown_target(tmp_path):
    check_failure(tmp_path, "compile", "--target", "abacus", says="unknown target 'abacus'")


def test_unknown_activation(tmp_path):
    check_failure(tmp_path, "compile", "--activation", "tanh", says="unknown activation 'tanh'")


def test_empty_calibration_folder(tmp_path):
    (tmp_path / "empty").mkdir()
    check_failure(tmp_path, "compile", "--calibration", "empty", says="empty holds no photo")


def test_wrong_image_size_of_onnx(tmp_path):
    from onnx import TensorProto, helper, save

    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "oblong",
        [value("x", TensorProto.FLOAT, [1, 3, 224, 192])],
        [value("y", TensorProto.FLOAT, [1, 3, 224, 192])],
    )
    opset = [helper.make_opsetid("", 18)]
    save(helper.make_model(graph, opset_imports=opset), str(tmp_path / "oblong.onnx"))
    check_failure(tmp_path, "compile", "--onnx", "oblong.onnx", says="224x192")


def test_not_an_image(tmp_path, micro_artifact, photo):
    (tmp_path / "text.jpg").write_text("not a photo")
    data = photo.read_bytes()
    (tmp_path / "half.png").write_bytes(data[: len(data) // 2])
    for name in ("text.jpg", "half.png", "absent.jpg", "."):
        check_failure(
            tmp_path,
            "predict",
            name,
            "--artifact",
            micro_artifact,
            says=name.strip(".") or "folder",
        )


def test_missing_artifact(tmp_path, photo):
    check_failure(tmp_path, "predict", photo, "--artifact", "absent.intswin", says="absent.intswin")
    check_failure(tmp_path, "inspect", "absent.intswin", says="absent.intswin")


@pytest.mark.parametrize("place", [0, 5, 7, 8, 39, 40, 100, 0.3, 0.5, 0.9, -1])
def test_one_flipped_byte(tmp_path, micro_artifact, photo, place):
    data = bytearray(micro_artifact.read_bytes())
    data[int(place * len(data)) if isinstance(place, float) else place] ^= 4
    (tmp_path / "flipped.intswin").write_bytes(data)
    check_failure(tmp_path, "predict", photo, "--artifact", "flipped.intswin", says="damaged")


def test_truncated_artifact(tmp_path, micro_artifact, photo):
    data = micro_artifact.read_bytes()
    for length in (0, 30, len(data) // 2, len(data) - 1):
        (tmp_path / "short.intswin").write_bytes(data[:length])
        check_failure(tmp_path, "inspect", "short.intswin", says="damaged")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"machine": "riscv64"}, f"riscv64 and this machine is {platform.machine()}"),
        ({"features": ["no_such_instructions"]}, "this CPU lacks no_such_instructions"),
        ({"kind": "cuda", "name": "cuda-h100", "arch": "sm_90a"}, "cannot run CUDA code"),
    ],
)
def test_artifact_of_another_machine(tmp_path, micro_artifact, photo, changes, says):
    stored = artifact.read(micro_artifact)
    metadata = {**stored.metadata, "target": {**stored.metadata["target"], **changes}}
    artifact.write(tmp_path / "other.intswin", stored.library, metadata, stored.graph())
    check_failure(tmp_path, "predict", photo, "--artifact", "other.intswin", says=says)
    check_failure(
        tmp_path, "predict", photo, "--artifact", "other.intswin", says="compile --target llvm"
    )


@pytest.mark.parametrize("command", ["compile", "calibrate", "bench"])
def test_output_that_cannot_be_written(tmp_path, command):
    """Found out before anything is computed, so this is quick."""
    (tmp_path / "file").touch()
    for output in ("/proc/intswin/file", "file/below", ".", "/dev/full"):
        check_failure(tmp_path, command, "--output", output, says="cannot write", timeout=20)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_output(tmp_path):
    (tmp_path / "locked").mkdir(mode=0o555)
    check_failure(tmp_path, "compile", "--output", "locked/x", says="Permission denied")


def test_disk_full(tmp_path):
    """A limit on the size of files stands in for a full disk: write() fails halfway."""
    check_failure(
        tmp_path,
        *("calibrate", "--calibration-images", 1, "--output", "full.json"),
        says="cannot write full.json: File too large",
        limit=("RLIMIT_FSIZE", 1000),
    )

"""The CUDA runtime on the fake GPU: tests in processes of their own, in its environment."""

import subprocess
import sys
from pathlib import Path

import pytest
from fake_gpu import environment

HERE = Path(__file__).parent


def python(*arguments, **settings):
    """Run Python on the fake GPU; what it printed."""
    command = [sys.executable, *map(str, arguments)]
    result = subprocess.run(
        command,
        env=environment(**settings),
        cwd=HERE.parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-8000:] + result.stderr[-2000:]
    return result.stdout


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("networks")
    python("-m", "fake_gpu.tiny", folder, "cuda-h100", "cuda-a100")
    return folder


def run_tests(*arguments, **settings):
    output = python("-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments, **settings)
    assert " passed" in output
    assert "skipped" not in output


def test_without_torch(networks):
    for name in ("checks", "in_network_checks"):
        run_tests(HERE / f"fake_gpu/{name}.py", FAKE_GPU_NETWORKS=networks)


def test_tuning(tmp_path):
    """Candidates are launched, checked and timed by graphs."""
    python(HERE / "tune_program.py", tmp_path, 3, "cuda-h100")
    lines = (tmp_path / "journal.jsonl").read_text().splitlines()
    assert len(lines) == 3
    assert all('"seconds"' in line for line in lines)


def test_clusters_are_launched():
    """TVM's runtime tells the driver how many blocks a cluster has."""
    python(HERE / "cluster_program.py")


@pytest.mark.slow
def test_with_torch():
    """The shorter ones of the tests for a real GPU, so that they are right when there is one."""
    names = "in_torch_out or stream_is_used or own_capture or capture_by or unfit or too_large"
    run_tests(HERE.parent / "gpu", "-k", names)

"""What several test files need and is expensive to make."""

import contextlib
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from command import run_intswin

REPOSITORY = Path(__file__).parents[2]


@contextlib.contextmanager
def _locked(path):
    """One pytest-xdist worker at a time."""
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory):
    """A folder that all pytest-xdist workers share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def micro_artifact(shared_folder):
    """The embedded ReLU swin_micro, compiled once by the command's defaults."""
    path = shared_folder / "out" / "swin_micro_relu_llvm_b1.intswin"
    with _locked(shared_folder / "micro.lock"):
        if not path.exists():
            result = run_intswin("compile", cwd=shared_folder)
            assert result.returncode == 0, result.stderr
    return path


@pytest.fixture(scope="session")
def runtime_python(shared_folder):
    """The interpreter of a venv with the runtime dependencies alone: no torch, no timm."""
    folder = shared_folder / "runtime-venv"
    python = folder / "bin" / "python"
    with _locked(shared_folder / "venv.lock"):
        if not (folder / "ready").exists():
            subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
            install = [python, "-m", "pip", "install", "--quiet", REPOSITORY]
            subprocess.run(install, check=True)
            (folder / "ready").touch()
    return python

"""Every test here needs an NVIDIA GPU, and is skipped with the reason where none can be used.

On the fake one of tests/compile/fake_gpu, which is slow, a tiny network takes swin_micro's place.
"""

import functools
import os
from pathlib import Path

import pytest

from intswin.compile import cuda_driver
from intswin.compile.pipeline import CompileOptions, compile_network
from intswin.models.errors import IntswinError

HERE = Path(__file__).parent
TARGETS = {(7, 0): "v100", (7, 5): "t4", (8, 0): "a100", (8, 9): "rtx4090", (9, 0): "h100"}


def unusable():
    try:
        cuda_driver.gpu()
    except IntswinError as error:
        return str(error)
    return ""


def pytest_collection_modifyitems(items):
    own = [item for item in items if HERE in item.path.parents]
    reason = unusable() if own else ""
    for item in own:
        item.add_marker(pytest.mark.gpu)
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def target_name():
    """The target whose machine code the GPU runs, else V100 code through its PTX."""
    return f"cuda-{TARGETS.get(cuda_driver.gpu().capability, 'v100')}"


@functools.cache  # minutes of compiling
def compile_pair(activation, target_name):
    """A network for two images."""
    if "FAKE_GPU" in os.environ:
        from fake_gpu.tiny import compile_tiny

        return compile_tiny(activation, target_name)
    return compile_network(CompileOptions(activation=activation, target=target_name, batch=2))


@pytest.fixture(scope="session", params=["relu", "igelu", "shiftgelu"])
def compiled(request, target_name):
    """Swin_micro, or what stands for it."""
    return compile_pair(request.param, target_name)


@pytest.fixture(scope="session")
def relu(target_name):
    """With ReLU."""
    return compile_pair("relu", target_name)

"""A GPU for tests and dry runs: CUDA's libraries as far as we, TVM and torch use them.

`environment` makes any Python program see a GPU called "fake GPU (emulated by the CPU)": the real
code runs, from TVM's VM and allocator and CUDA code down to libcudart.so.13 and libcuda.so.1, which
are compiled from the C++ here. Kernels run on the CPU by cuda_emulator, and networks have to be
compiled in the same environment, which replaces NVRTC. Streams run as late as possible, device
memory cannot be touched by the host, and calls that a capture forbids fail: streams.cpp.

Times mean nothing. Torch has its memory, streams and graphs there, but none of its kernels.

    python tests/compile/fake_gpu/run.py scripts/check_cuda.py --networks swin_micro --batch 1 ..

Settings, by the environment: FAKE_GPU_CAPABILITY (90), FAKE_GPU_MEMORY (bytes),
FAKE_GPU_PROCESSORS, FAKE_GPU_DRIVER (13000), FAKE_GPU_FAULT (a kernel that fails).
"""

from __future__ import annotations

import os
from pathlib import Path

_HERE = Path(__file__).parent


def environment(**settings: object) -> dict[str, str]:
    """The environment of a process with the fake GPU; `settings` such as FAKE_GPU_MEMORY.

    Raises:
        IntswinError: CUDA's headers are not installed.
    """
    from fake_gpu.library import build

    folder = build()
    # Torch's libraries would find the real ones by their own search path: these come first.
    before = os.environ.get("LD_PRELOAD", "").split(":")
    preload = [str(folder / "libcudart.so.13"), str(folder / "libcuda.so.1"), *filter(None, before)]
    paths = [_HERE / "start", _HERE.parent, _HERE.parents[1]]
    paths += filter(None, os.environ.get("PYTHONPATH", "").split(":"))
    return {
        **os.environ,
        "LD_PRELOAD": ":".join(preload),
        "PYTHONPATH": ":".join(map(str, paths)),
        "FAKE_GPU": "1",
        **{name: str(value) for name, value in settings.items()},
    }

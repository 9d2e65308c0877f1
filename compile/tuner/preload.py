"""What the server process of the tuner's workers imports, once: TVM without torch.

A worker is a fork of that process. TVM imports torch where it finds it, which takes most of the
time, and no worker needs it. Nothing else may import this module.
"""

import sys

sys.modules["torch"] = None  # type: ignore[assignment]  # makes `import torch` fail

import intswin.compile.tuner.worker  # noqa: E402, F401

"""Run a Python program on the fake GPU: python run.py [-m MODULE | SCRIPT] ARGUMENTS...

In a scratch folder that looks like the repository, so that no artifact, log or table of a dry run
lies where real ones do.
"""

import contextlib
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from fake_gpu import environment
from fake_gpu.library import build

scratch = build().parent / "work"
scratch.mkdir(exist_ok=True)
for name in ("pyproject.toml", "scripts", "tests"):
    with contextlib.suppress(FileExistsError):
        (scratch / name).symlink_to(Path(__file__).parents[3] / name)
print(f"fake GPU; working in {scratch}", file=sys.stderr)
os.chdir(scratch)
os.execve(sys.executable, [sys.executable, *sys.argv[1:]], environment())

"""What this CPU can do at most: int8 multiply-accumulates, and bytes from memory and from cache.

A short C program measures it, compiled for this machine, with as many threads as the network has:
what bounds every competitor of a benchmark must not come from our own compiler. `tuner/peak.py` is
another measurement: what the instructions of the target that is tuned for reach, which need not be
the best of this CPU, where there may be no C compiler.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from intswin.models.errors import IntswinError

TIMEOUT = 120  # seconds
_C_SOURCE = Path(__file__).with_suffix(".c")


@dataclass(frozen=True)
class CpuPeak:
    """Limits of some threads together.

    Attributes:
        instruction: the multiply-accumulate that was measured.
        gops: its int8 operations, 10^9 a second; a multiply-accumulate is two.
        memory_gbs: reading an array larger than the caches, 10^9 bytes a second.
        cache_gbs: reading an array of 256 KiB a thread.
    """

    instruction: str
    gops: float
    memory_gbs: float
    cache_gbs: float


def measure(threads: int) -> CpuPeak:
    """Compile and run the microbenchmark; takes two seconds.

    Raises:
        IntswinError: there is no C compiler, or it cannot compile for this machine.
    """
    compiler = os.environ.get("CC", "cc")
    with tempfile.TemporaryDirectory(prefix="intswin-") as folder:
        program = Path(folder) / "cpu_peak"
        command = [compiler, "-O3", "-march=native", "-pthread", str(_C_SOURCE), "-o", str(program)]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
            run = [str(program), str(threads)]
            ran = subprocess.run(run, check=True, capture_output=True, text=True, timeout=TIMEOUT)
        except FileNotFoundError as error:
            raise IntswinError(f"no C compiler called {compiler}: install gcc") from error
        except subprocess.SubprocessError as error:
            reason = " ".join((getattr(error, "stderr", None) or "").split())[:200]
            raise IntswinError(f"the CPU's peak cannot be measured: {reason or error}") from error
    return CpuPeak(**json.loads(ran.stdout))

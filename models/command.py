"""The command line that a result was made with, for the result's record."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path


def intswin_command() -> str:
    """The command `intswin` that runs."""
    return shlex.join(["intswin", *sys.argv[1:]])


def script_command() -> str:
    """The script that runs, as one starts it in the repository's root."""
    return shlex.join(["python", f"scripts/{Path(sys.argv[0]).name}", *sys.argv[1:]])

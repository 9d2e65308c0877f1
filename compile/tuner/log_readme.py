"""The README.md of a tuning log: where it comes from."""

from __future__ import annotations

import datetime
import platform
from pathlib import Path

import tvm
import tvm_ffi

from intswin.compile import tuning_log
from intswin.compile.tuner.store import JOURNAL
from intswin.models.command import script_command
from intswin.models.files import write_file


def write_log_readme(folder: Path, tuned: str, machine: str, note: str = "") -> Path:
    """Write it, as of today and by this command; returns its path.

    Args:
        folder: of the log.
        tuned: the networks, activations, batches and the target.
        machine: what measured.
        note: more about it, a paragraph.

    Raises:
        IntswinError: the folder cannot be written.
    """
    log = tuning_log.read_log(folder)
    journal = folder / JOURNAL
    trials = len(journal.read_text().splitlines()) if journal.exists() else 0
    kept = sum(map(len, log.records.values()))
    date = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d")
    text = f"""# Tuning log of {folder.name}

- Networks: {tuned}.
- {machine}.
- Date: {date}. Last command, which goes on where earlier ones stopped: `{script_command()}`.
- Versions: apache-tvm {tvm.__version__}, apache-tvm-ffi {tvm_ffi.__version__}, \
Python {platform.python_version()}.
- {trials} trials, {kept} records; {len(log.records)} of the kernels are faster than by default.
{f"{chr(10)}{note}{chr(10)}" if note else ""}
The files are MetaSchedule's JSON database; docs/tuning.md says how `intswin compile` uses them.
"""
    return write_file(folder / "README.md", text.encode())

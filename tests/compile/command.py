"""The command line in a process of its own."""

import subprocess
import sys


def run_intswin(*arguments, cwd, **options):
    """Run the command as a user does."""
    return subprocess.run(
        [sys.executable, "-m", "intswin.compile.cli", *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
        **{"timeout": 300, **options},
    )

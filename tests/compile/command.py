"""The command line in a process of its own."""

import functools
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from pathlib import Path


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


def run_forked(*arguments, cwd, timeout=300, limit=None, script=None):
    """The same in a fork of a process that has imported torch and TVM: ten seconds sooner.

    `limit`: a name of the module resource and the value of this limit. `script`: a file to run
    instead.
    """
    command = [str(script or "intswin"), *map(str, arguments)]
    with tempfile.TemporaryDirectory() as folder:
        outputs = [str(Path(folder, name)) for name in ("stdout", "stderr")]
        job = command, str(cwd), dict(os.environ), limit, outputs
        server = _server()
        server.stdin.write(json.dumps(job) + "\n")
        child = int(server.stdout.readline())
        if not select.select([server.stdout], [], [], timeout)[0]:
            os.kill(child, signal.SIGKILL)
            server.stdout.readline()
            raise subprocess.TimeoutExpired(command, timeout)
        code = int(server.stdout.readline())
        texts = [Path(path).read_text() for path in outputs]
    return subprocess.CompletedProcess(command, code, *texts)


@functools.cache
def _server():
    """One for all tests of this process, with which it ends."""
    return subprocess.Popen(
        [sys.executable, Path(__file__).with_name("command_server.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    )

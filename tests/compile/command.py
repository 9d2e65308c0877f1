"""The command line in a process of its own."""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["intswin.compile.pipeline"])


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


def run_forked(*arguments, cwd, timeout=300, before=None, script=None):
    """The same in a fork of a process that has imported torch and TVM: ten seconds sooner.

    `before`, which can be pickled, is called there first. `script`: a file to run instead.
    """
    command = [str(script or "intswin"), *map(str, arguments)]
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder, name) for name in ("stdout", "stderr")]
        process = _FORKS.Process(
            target=_main, args=(command, cwd, dict(os.environ), before, *outputs)
        )
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired(command, timeout)
        texts = [path.read_text() for path in outputs]
    return subprocess.CompletedProcess(command, process.exitcode, *texts)


def _main(command, cwd, environment, before, stdout, stderr):
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    for descriptor, path in ((0, os.devnull), (1, stdout), (2, stderr)):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), descriptor)
    if before:
        before()
    sys.argv = command
    if command[0] == "intswin":
        runpy.run_module("intswin.compile.cli", run_name="__main__")
    else:
        runpy.run_path(command[0], run_name="__main__")

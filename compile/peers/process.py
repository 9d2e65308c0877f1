"""The coordinator's end of a worker process."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import IO, Any

from intswin.compile.peers.task import Task

PREPARE_TIMEOUT = 1800.0  # seconds
LOAD_TIMEOUT = 1200.0
STOP_TIMEOUT = 5.0


class CompetitorError(Exception):
    """A competitor cannot be measured; the message is the reason."""


class Worker:
    """A running worker. `stop` it, or use it in a `with` statement."""

    def __init__(self, step: str, task: Task) -> None:
        self._task = task
        log = task.path(f"{task.competitor.name}_{step}.log")
        module = importlib.import_module(task.competitor.module)
        environment = {**os.environ, **module.environment(task.threads)}
        if step == "prepare":
            # Several prepare at a time, and threads that spin at barriers starve the others'.
            environment["OMP_WAIT_POLICY"] = "PASSIVE"
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "intswin.compile.peers.worker", step, task.to_json()],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
            )
        self._buffer = b""

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def answer(self, timeout: float) -> dict[str, Any]:
        """The next answer.

        Raises:
            CompetitorError: it is an error, the process ended, or `timeout` seconds passed.
        """
        end = time.monotonic() + timeout
        while b"\n" not in self._buffer:
            left = end - time.monotonic()
            if left <= 0 or not select.select([self._stdout], [], [], left)[0]:
                self._process.kill()
                raise CompetitorError(f"no answer in {timeout:.0f} s")
            data = os.read(self._stdout.fileno(), 1 << 16)
            if not data:
                raise CompetitorError(f"the process ended with status {self._process.wait()}")
            self._buffer += data
        line, self._buffer = self._buffer.split(b"\n", 1)
        reply = json.loads(line)
        if "error" in reply:
            raise CompetitorError(reply["error"])
        return reply

    def ask(self, request: dict[str, Any], timeout: float) -> dict[str, Any]:
        """Send a request and wait; errors as `answer` has."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            raise CompetitorError("the process ended") from None
        return self.answer(timeout)

    def cpu_seconds(self) -> float:
        """Processor time that all its threads have used so far."""
        try:
            with open(f"/proc/{self._process.pid}/stat") as file:
                fields = file.read().rsplit(")", 1)[1].split()
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._stdout.close()

    @property
    def _stdout(self) -> IO[bytes]:
        assert self._process.stdout is not None
        return self._process.stdout


def prepare(task: Task) -> dict[str, Any]:
    """Run the step `prepare`; seconds and peak memory (MB) of it.

    Raises:
        CompetitorError: it failed.
    """
    with Worker("prepare", task) as worker:
        return worker.answer(PREPARE_TIMEOUT)


@contextlib.contextmanager
def served(task: Task) -> Iterator[tuple[Worker, dict[str, Any]]]:
    """Load one competitor that was prepared: the worker and its first answer.

    Raises:
        CompetitorError: it failed.
    """
    with Worker("serve", task) as worker:
        yield worker, worker.answer(LOAD_TIMEOUT)

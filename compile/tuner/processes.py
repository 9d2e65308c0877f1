"""Warm worker processes that can be killed: a candidate that hangs or crashes costs one of them.

Workers are forks of a server process that has imported TVM, so that the first one is ready after
seconds and each further one, also in place of a killed one, after milliseconds.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import queue
import signal
import sys
import threading
import types
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Any

_PRELOAD = "intswin.compile.tuner.preload"
_PR_SET_PDEATHSIG = 1
_starting = threading.Lock()


class WorkerError(Exception):
    """Why a call has no result: what the function raised, a crash, or no answer in time."""


class Worker:
    """One process, started when it is first needed."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([_PRELOAD])
        self._process: Any = None
        self._pipe: Connection | None = None
        self._ending = threading.Lock()  # Pool.close kills while the thread of a call may do so too

    def call(self, seconds: float, function: Callable[..., Any], *arguments: Any) -> Any:
        """`function(*arguments)` in the process; both must be picklable.

        Raises:
            WorkerError: the function raised, or the process died or did not answer within
                `seconds`; in the latter cases the next call starts a new process.
        """
        if self._process is None:
            self._start()
        pipe = self._pipe
        assert pipe is not None
        try:
            pipe.send((function, arguments))
            if not pipe.poll(seconds):
                raise WorkerError(f"no answer in {seconds:g} s")
            done, result = pipe.recv()
        except (OSError, EOFError) as error:
            code = self.kill()
            raise WorkerError(f"the process died (exit code {code})") from error
        except BaseException:  # also an interrupt: the answer must not be taken for a later one's
            self.kill()
            raise
        if not done:
            raise WorkerError(result)
        return result

    def kill(self) -> int | None:
        """End the process at once and give its exit code."""
        with self._ending:
            if self._process is None:
                return None
            assert self._pipe is not None
            self._pipe.close()
            self._process.kill()
            self._process.join()
            code = self._process.exitcode
            self._process = self._pipe = None
            return code

    def _start(self) -> None:
        self._pipe, theirs = self._context.Pipe()
        self._process = self._context.Process(target=_serve, args=(theirs,), daemon=True)
        with _no_main_module():
            self._process.start()
        theirs.close()
        # The fork is fast, but the server may still be importing TVM: not the candidate's fault.
        self._pipe.recv()


class Pool:
    """Some workers for calls that may run at the same time."""

    def __init__(self, size: int) -> None:
        self._idle: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        self._workers = [Worker() for _ in range(size)]
        for worker in self._workers:
            self._idle.put(worker)
        self._threads = ThreadPoolExecutor(size)

    def map(
        self, seconds: float, function: Callable[..., Any], arguments: Iterable[tuple]
    ) -> list[Any]:
        """The results in order, a WorkerError in place of each that failed."""
        return list(self.results(seconds, function, arguments))

    def results(
        self, seconds: float, function: Callable[..., Any], arguments: Iterable[tuple]
    ) -> Iterator[Any]:
        """`map`, each result as soon as those before it are there."""

        def call(one: tuple) -> Any:
            with self._worker() as worker:
                try:
                    return worker.call(seconds, function, *one)
                except WorkerError as error:
                    return error

        return self._threads.map(call, arguments)

    def close(self) -> None:
        """End all processes; calls that still run fail."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for worker in self._workers:
            worker.kill()
        self._threads.shutdown()

    @contextlib.contextmanager
    def _worker(self) -> Iterator[Worker]:
        worker = self._idle.get()
        try:
            yield worker
        finally:
            self._idle.put(worker)


@contextlib.contextmanager
def _no_main_module() -> Iterator[None]:
    """Keep multiprocessing from importing the program's main module in the new process.

    It would do so for functions that are defined there. Ours are not, and a main module that
    imports torch would cost each worker seconds.
    """
    with _starting:
        main = sys.modules["__main__"]
        sys.modules["__main__"] = types.ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = main


def _serve(pipe: Connection) -> None:
    """The process: answers calls until the other end is closed."""
    # The server ends when the tuner does, however that happens; a hanging worker must end as well.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the tuner decides what an interrupt means
    pipe.send("ready")
    while True:
        try:
            function, arguments = pipe.recv()
        except EOFError:
            return
        try:
            answer = (True, function(*arguments))
        except Exception as error:
            lines = f"{type(error).__name__}: {error}".strip().splitlines()
            answer = (False, lines[0] if len(lines) == 1 else f"{lines[0]} ... {lines[-1]}")
        pipe.send(answer)

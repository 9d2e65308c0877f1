"""Time kernels on the GPU as a network runs them: back to back, recorded as a CUDA graph."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any

from intswin.compile.cuda_driver import CudaRuntime


@contextlib.contextmanager
def recording(cuda: CudaRuntime, stream: int) -> Iterator[Callable[[], int]]:
    """Record the stream; the yielded function ends it and gives the executable graph."""
    cuda.begin_capture(stream)
    done = False

    def finish() -> int:
        nonlocal done
        done = True
        return cuda.instantiate(cuda.end_capture(stream))

    try:
        yield finish
    finally:
        if not done:
            cuda.abandon_capture(stream)


def time_launches(
    cuda: CudaRuntime, stream: int, launch: Callable[[], Any], launches: int, replays: int
) -> list[float]:
    """Seconds of one launch, a number for each replay of a graph of some launches.

    The gap between two kernels of a graph is part of it. `launch` puts one kernel into the stream,
    which is loaded already.
    """
    cuda.synchronize(stream)
    with recording(cuda, stream) as finish:
        for _ in range(launches):
            launch()
        graph = finish()
    events = [cuda.new_event() for _ in range(replays + 1)]
    cuda.launch_graph(graph, stream)
    cuda.record(events[0], stream)
    for event in events[1:]:
        cuda.launch_graph(graph, stream)
        cuda.record(event, stream)
    cuda.synchronize(stream)
    spans = [cuda.seconds(*pair) / launches for pair in itertools.pairwise(events)]
    cuda.free_graph(graph)
    for event in events:
        cuda.free_event(event)
    return spans

"""Time kernels on the GPU as a network runs them: back to back, recorded as CUDA graphs."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
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
    graph = record_graph(cuda, stream, [launch] * launches)
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


def time_graphs(
    cuda: CudaRuntime, stream: int, graphs: Sequence[int], replays: int, rounds: int
) -> list[list[float]]:
    """Seconds of one replay of each graph, a number for each round: drifts of the clock meet all.

    In a round each graph is replayed some times in a row, once more before that is measured, and
    each round begins with another one.
    """
    events = [[(cuda.new_event(), cuda.new_event()) for _ in range(rounds)] for _ in graphs]
    for number in range(rounds):
        for turn in range(len(graphs)):
            index = (number + turn) % len(graphs)
            start, end = events[index][number]
            cuda.launch_graph(graphs[index], stream)
            cuda.record(start, stream)
            for _ in range(replays):
                cuda.launch_graph(graphs[index], stream)
            cuda.record(end, stream)
    cuda.synchronize(stream)
    spans = [[cuda.seconds(*pair) / replays for pair in pairs] for pairs in events]
    for event in itertools.chain.from_iterable(itertools.chain.from_iterable(events)):
        cuda.free_event(event)
    return spans


def record_graph(cuda: CudaRuntime, stream: int, launches: Sequence[Callable[[], Any]]) -> int:
    """An executable graph of launches into a stream; their kernels are loaded already."""
    cuda.synchronize(stream)
    with recording(cuda, stream) as finish:
        for launch in launches:
            launch()
        return finish()

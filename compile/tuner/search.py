"""Which tiles to try next: random ones, and neighbours of the best.

The space of a GEMM has some thousand points, of which a few dozen are measured, so half of a batch
explores and half changes one or two fields of the fastest tiles so far. Tiles that won for similar
kernels (the same matrix with another epilogue or batch) are tried first.
"""

from __future__ import annotations

import random
from collections.abc import Iterable

from intswin.compile.tuner import space
from intswin.compile.tuner.space import Shape, Tile
from intswin.compile.tuner.store import Trials

_ELITE = 4  # tiles whose neighbours are tried
_CHANGE = 0.25  # the chance of each field to change
_ATTEMPTS = 50  # at something new, for each tile


def propose(
    shape: Shape, trials: Trials, hints: Iterable[Tile], count: int, seed: int
) -> list[Tile]:
    """At most `count` different tiles that are not in `trials`; fewer where the space is used up.

    The default comes first of all: everything else is compared with it.
    """
    rng = random.Random(f"{seed} {shape} {len(trials)}")
    chosen: list[Tile] = []

    def add(tile: Tile) -> None:
        if tile not in trials and tile not in chosen and len(chosen) < count:
            chosen.append(tile)

    add(space.default_tile(shape))
    for tile in hints:
        add(_draw(shape, rng, tile, 0.0))
    times = {tile: seconds for tile, seconds in trials.items() if seconds is not None}
    elite = sorted(times, key=lambda tile: times[tile])[:_ELITE]
    for _ in range(count * _ATTEMPTS):
        if len(chosen) >= count:
            break
        explore = len(times) <= _ELITE or len(chosen) % 2
        parent = None if explore else rng.choice(elite)
        add(_draw(shape, rng, parent, _CHANGE))
    return chosen


def _draw(shape: Shape, rng: random.Random, parent: Tile | None, change: float) -> Tile:
    """A random tile that keeps a field of `parent` where possible, but by the chance `change`."""
    made: dict[str, int] = {}
    for field in space.fields(shape):
        odds = space.candidates(shape, field, made)
        keep = parent is not None and rng.random() >= change
        value = getattr(parent, field) if keep else 0
        made[field] = value if value in odds and keep else _drawn(rng, odds)
    return space.decided(shape, made)


def _drawn(rng: random.Random, odds: dict[int, int]) -> int:
    return rng.choices(list(odds), list(odds.values()))[0]

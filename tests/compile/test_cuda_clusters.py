"""The emulator's clusters of blocks: what they compute, and which mistakes are found."""

import re

import numpy as np
import pytest
from cuda_source import run, zeros

from cuda_emulator import EmulationError

FUNCTIONS = ["shared_address", "map_shared", "load_cluster_16", "cluster_arrive", "cluster_wait"]
# A block writes 64 words to its own shared memory and reads those of the next block.
EXCHANGE = """
  extern __shared__ int own[];
  int rank, r[4], l = threadIdx.x, blocks = BLOCKS;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank) :);
  own[l] = x[blockIdx.x * 64 + l];
  intswin_cluster_arrive();  // 0
  intswin_cluster_wait();  // 0
  unsigned address = intswin_shared_address(own + l / 4 * 4);
  intswin_load_cluster_16(r, intswin_map_shared(address, (rank + 1) % blocks));
  intswin_cluster_arrive();  // 1
  y[blockIdx.x * 64 + l] = r[l % 4];
  intswin_cluster_wait();  // 1
"""
RANKS = 4


def exchange(body=EXCHANGE, cluster=RANKS, blocks=8, **options):
    x = np.arange(blocks * 64, dtype=np.int32)
    y = zeros(blocks * 64)
    options = {"threads": 64, "dynamic_shared": 256, **options}
    functions = [f"intswin_{name}" for name in FUNCTIONS]
    body = body.replace("BLOCKS", str(cluster))
    y = run(body, {"x": x, "y": y}, blocks=blocks, cluster=cluster, functions=functions, **options)
    return x.reshape(-1, 64), y.reshape(-1, 64)


@pytest.mark.parametrize("races", [False, True])
@pytest.mark.parametrize("cluster", [1, 2, 4, 8])
def test_blocks_read_each_others_shared_memory(cluster, races):
    x, y = exchange(cluster=cluster, races=races)
    b = np.arange(len(x))
    np.testing.assert_array_equal(y, x[b // cluster * cluster + (b + 1) % cluster])


def test_each_block_has_its_own_barriers():
    body = EXCHANGE.replace("own[l] =", "if (rank % 2) __syncthreads(); own[l] =")
    x, y = exchange(body, races=True)
    np.testing.assert_array_equal(y[0], x[1])


def without(line):
    """The exchange less the lines with this comment."""
    body = re.sub(rf"  intswin_cluster_\w+\(\);  // {line}\n", "", EXCHANGE)
    assert body != EXCHANGE
    return body


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (without(0), "no barrier between|has left|leaves"),
        (without(1), "has left the kernel|the block leaves, and no barrier.cluster"),
        (EXCHANGE.replace("own[l] =", "own[l + 1] ="), "outside of dynamic shared memory"),
        (EXCHANGE.replace("% blocks)", ")"), "mapa: block 4 of a cluster of 4"),
        (EXCHANGE.replace("shared(address", "shared(address + 208"), "cluster: outside of shared"),
        (EXCHANGE.replace("own + l / 4 * 4", "own + l"), "not aligned to 16 bytes"),
        (
            EXCHANGE.replace("  intswin_cluster_wait();  // 1", ""),
            "left the kernel without barrier.cluster.wait",
        ),
        (
            EXCHANGE.replace("  intswin_cluster_wait();  // 0", ""),
            "arrive without barrier.cluster.wait|race on",
        ),
        (
            EXCHANGE.replace("  intswin_cluster_arrive();  // 1", ""),
            "wait without barrier.cluster.arrive",
        ),
        (EXCHANGE.replace("own[l] =", "if (rank == 1) return; own[l] ="), "left before|deadlock"),
        (EXCHANGE.replace("own[l] =", "if (l == 1) return; own[l] ="), "left|divergent"),
        (
            EXCHANGE.replace("own[l] =", "if (rank == 1) intswin_cluster_arrive(); own[l] ="),
            "arrive without barrier.cluster.wait",
        ),
    ],
)
def test_mistakes_are_found(body, message):
    with pytest.raises(EmulationError, match=message):
        exchange(body, races=True)


# The barrier 0, and what is done in its two halves.
SPLIT = EXCHANGE.replace("intswin_cluster_wait();  // 0", "HERE intswin_cluster_wait();  // 0")


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("own[l] = 1;", "race on .* of another block of the cluster|written by thread"),
        ("own[l ^ 1] = 1;", "written by thread .*, written by this one"),
    ],
)
def test_what_follows_the_arrival_is_not_ordered(statement, message):
    with pytest.raises(EmulationError, match=message):
        exchange(SPLIT.replace("HERE", statement), races=True)


def test_memory_that_is_still_read_must_not_be_written():
    body = EXCHANGE.replace("y[block", "own[l] = 0; y[block")
    with pytest.raises(EmulationError, match=r"race on .*: read by .*, written by this one"):
        exchange(body, races=True)
    assert exchange(EXCHANGE + "own[l] = 0;", races=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blocks": 6}, "6 blocks are no whole clusters of 4"),
        ({"threads": 48}, "no whole warps"),
        ({"body": "__shared__ int s[4]; s[0] = 1;" + EXCHANGE}, "static shared memory"),
    ],
)
def test_what_is_not_emulated(options, message):
    with pytest.raises(EmulationError, match=message):
        exchange(**options)

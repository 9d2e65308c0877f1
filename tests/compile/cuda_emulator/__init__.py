"""Runs kernels scheduled for CUDA on a machine without a GPU.

The CUDA C++ that TVM generates is compiled by g++ (12 or newer) against `include/emulator.h` and
executed in a process of its own: clusters of blocks one after another (a block alone, where there
are none), the threads of a cluster as fibers. Inline PTX is emulated instruction by instruction
(include/ptx.h). `emulate` says what is found.

Not found: an access outside of one shared array but inside shared memory; a read less than a page
in front of an array; a misaligned access at a constant offset; what ptxas or the hardware limits
(registers, size of shared memory, that a cluster fits the GPU), a missing wgmma.fence or
fence.proxy.async. TMA and memory ordering between clusters are not emulated; nor are writes to the
shared memory of another block, and static shared memory in clusters. Libraries are kept in the
temporary folder, by the hash of their source.
"""

from cuda_emulator.emulate import emulate, emulate_source
from cuda_emulator.errors import EmulationError
from cuda_emulator.network import emulate_network

__all__ = ["EmulationError", "emulate", "emulate_network", "emulate_source"]

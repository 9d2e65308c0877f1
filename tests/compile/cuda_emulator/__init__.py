"""Runs kernels scheduled for CUDA on a machine without a GPU.

The CUDA C++ that TVM generates is compiled by g++ against `include/emulator.h` and executed: blocks
one after another, the threads of a block as fibers. See `emulate` for what is found.
"""

from cuda_emulator.emulate import emulate, emulate_source
from cuda_emulator.errors import EmulationError
from cuda_emulator.network import emulate_network

__all__ = ["EmulationError", "emulate", "emulate_network", "emulate_source"]

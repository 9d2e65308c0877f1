"""Run a kernel's body, written in CUDA C++, on the emulator."""

import numpy as np

from cuda_emulator import emulate_source
from cuda_emulator.lowering import Launch
from intswin.compile.schedules.cuda_device_functions import source_of


def run(
    body,
    arrays,
    threads=32,
    blocks=1,
    *,
    functions=(),
    dynamic_shared=0,
    cluster=1,
    races=False,
    arch=90,
    dependent=False,
    activations=(),
):
    """Run `body` as a kernel whose parameters are the arrays; the last one is the output."""
    types = {"int8": "signed char", "uint8": "unsigned char", "int32": "int"}
    parameters = ", ".join(f"{types[str(a.dtype)]}* {name}" for name, a in arrays.items())
    source = "".join(source_of(name) for name in functions)
    source += f'extern "C" __global__ void kernel({parameters}) {{\n{body}\n}}'
    extents = (blocks, 1, 1, threads, 1, 1)
    launches = [Launch("kernel", tuple(arrays), extents, dynamic_shared, cluster, dependent)]
    emulate_source(source, launches, arrays, races=races, arch=arch, activations=activations)
    return list(arrays.values())[-1]


def zeros(*shape, dtype="int32"):
    return np.zeros(shape, dtype)

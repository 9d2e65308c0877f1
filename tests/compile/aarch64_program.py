"""A C program that runs an integer network's compiled kernels without TVM's runtime.

There is no TVM wheel to run under qemu, so this calls the kernels of an object file one after the
other, as the Relax function `main` does, through TVM's C calling convention.
"""

import subprocess

import numpy as np
import tvm
from tvm import relax

from intswin.compile.build import build
from intswin.compile.emit import emit
from intswin.compile.targets import get_target

_PRELUDE = r"""
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
typedef struct { int32_t type, id; } Device;
typedef struct {
  void *data; Device device; int32_t ndim; uint8_t code, bits; uint16_t lanes;
  int64_t *shape, *strides; uint64_t byte_offset;
} Tensor;                                                  /* DLTensor */
typedef struct { int32_t type_index; uint32_t zero; void *value; } Any;  /* TVMFFIAny */
typedef struct { void *handle; int32_t num_task; } Group;  /* TVMParallelGroupEnv */
typedef int (*Lambda)(int task, Group *group, void *data);
static int launch(Lambda f, void *data, int tasks) {
  Group group = {0, 3};                                    /* three tasks, one after the other */
  for (int task = 0; task < 3; ++task) if (f(task, &group, data)) return 1;
  return 0;
}
extern int (*__TVMBackendParallelLaunch)(Lambda, void *, int);
void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int32_t n) {
  for (int i = 0; i < n; ++i) fputs(parts[i], stderr);
}
"""
_MAIN = r"""
int main(int argc, char **argv) {
  FILE *file = fopen(argv[1], "rb");
  __TVMBackendParallelLaunch = launch;
"""
_CODES = {"i": 0, "u": 1}


class _Program:
    def __init__(self):
        self.declarations, self.calls, self.blob = [], [], []

    def tensor(self, shape, dtype, values=None):
        """Declare a tensor; one with `values` is read from the blob."""
        index = len(self.declarations)
        dtype = np.dtype(dtype)
        extents = ", ".join(map(str, shape))
        size = int(np.prod(shape)) * dtype.itemsize
        self.declarations.append(
            f"static int64_t s{index}[] = {{{extents}}};\n"
            f"static uint8_t d{index}[{size}] __attribute__((aligned(64)));\n"
            f"static Tensor t{index} = {{d{index}, {{1, 0}}, {len(shape)}, {_CODES[dtype.kind]}, "
            f"{dtype.itemsize * 8}, 1, s{index}, 0, 0}};\n"
        )
        if values is not None:
            self.blob.append(np.ascontiguousarray(values).tobytes())
            self.calls.append(f"if (fread(d{index}, 1, {size}, file) != {size}) return 2;")
        return index

    def call(self, kernel, tensors):
        arguments = ", ".join(f"{{7, 0, &t{t}}}" for t in tensors)  # 7: a DLTensor pointer
        self.declarations.append(f"extern int __tvm_ffi_{kernel}(void *, Any *, int, Any *);\n")
        self.calls.append(
            f"{{ Any a[] = {{{arguments}}}; Any r = {{0}};"
            f" if (__tvm_ffi_{kernel}(0, a, {len(tensors)}, &r)) return 3; }}"
        )

    def source(self, output):
        end = [f"fwrite(d{output}, 1, sizeof d{output}, stdout);", "return 0;", "}"]
        return _PRELUDE + "".join(self.declarations) + _MAIN + "\n".join([*self.calls, *end])


def run_network(graph, image, folder):
    """Logits (B, classes) of `graph` compiled for aarch64 and run by qemu on image (B, H, W, 3)."""
    target = get_target("llvm-aarch64")
    mod = emit(graph, image.shape[0], target)
    kernels = build(mod, target).mod.imports[0]
    kernels.write_to_file(str(folder / "kernels.o"), "o")
    source, blob = _translate(mod["main"], image)
    (folder / "main.c").write_text(source)
    (folder / "blob").write_bytes(blob)
    command = "aarch64-linux-gnu-gcc -static -O1 -o program main.c kernels.o"
    subprocess.run(command.split(), cwd=folder, check=True)
    result = subprocess.run(
        ["qemu-aarch64", "-cpu", "cortex-a57", "./program", "blob"],
        cwd=folder,
        capture_output=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr.decode()
    return np.frombuffer(result.stdout, np.int32).reshape(image.shape[0], -1)


def _translate(main, image):
    """The C program and the constants of a Relax function of call_tir and reshape."""
    program = _Program()
    tensors = {main.params[0]: program.tensor(image.shape, image.dtype, image)}

    def index(expr):
        if isinstance(expr, relax.Var):
            return tensors[expr]
        values = expr.value.numpy() if hasattr(expr, "value") else expr.data.numpy()
        return program.tensor(values.shape, values.dtype, values)

    output = None
    for block in main.body.blocks:
        for binding in block.bindings:
            call = binding.value
            if isinstance(call, relax.Var):
                output = tensors[call]
            elif call.op == tvm.ir.Op.get("relax.call_tir"):
                arguments = [index(argument) for argument in call.args[1]]
                shape = [int(extent) for extent in call.ty.shape.values]
                output = program.tensor(shape, str(call.ty.dtype))
                program.call(call.args[0].name_hint, [*arguments, output])
            else:
                assert call.op == tvm.ir.Op.get("relax.reshape")
                output = tensors[call.args[0]]
            tensors[binding.var] = output
    return program.source(output), b"".join(program.blob)

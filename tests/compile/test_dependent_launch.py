"""Kernels of sm_90 that start before the one before them has ended."""

import numpy as np
import pytest
import tvm
from cuda_source import run, zeros
from tvm import te
from tvm.tirx import get_tir_pipeline
from tvm.tirx.transform import BindTarget

from cuda_emulator import EmulationError
from intswin.compile.dependent_launch import start_early
from intswin.compile.schedules import cuda_layer_norm, cuda_layer_norm_space
from intswin.compile.schedules.layer_norm import LayerNormShape
from intswin.compile.targets import get_target

TAG = "tirx.use_programtic_dependent_launch"
FUNCTIONS = ["intswin_wait_for_grid", "intswin_load_volatile_4"]


def waiting_kernel(images=1):
    shape = LayerNormShape(images, 49, 49, 1, 96, False, "uint8", 3)
    return cuda_layer_norm.layer_norm_kernel(shape, cuda_layer_norm_space.default_tile(shape))


def plain_kernel():
    x = te.placeholder((64,), "int32", "x")
    sch = tvm.s_tir.Schedule(te.create_prim_func([x, te.compute((64,), lambda i: x[i] + 1, "y")]))
    sch.bind(*sch.get_loops(sch.get_sblock("y")), "threadIdx.x")
    return sch.mod["main"].with_attr("tirx.noalias", True)


def lowered(func, target_name):
    """The kernel, when it is a function of its own, before and after the pass."""
    target = get_target(target_name)
    mod = tvm.IRModule({"main": func.with_attr("global_symbol", "main")})
    lower, _, _ = get_tir_pipeline("s_tir")
    with target:
        mod = lower(BindTarget(target)(mod))
    return mod["main_kernel"], start_early(mod)["main_kernel"]


def tags_of(func):
    return [str(tag) for tag in func.attrs["tirx.kernel_launch_params"]]


@pytest.mark.parametrize("make", [waiting_kernel, plain_kernel])
def test_before_sm_90_nothing_is_changed(make):
    before, after = lowered(make(), "cuda-a100")
    tvm.ir.assert_structural_equal(before, after)


def test_a_large_kernel_is_not_changed():
    before, after = lowered(waiting_kernel(1000), "cuda-h100")
    tvm.ir.assert_structural_equal(before, after)


def test_a_kernel_that_waits_keeps_its_body():
    before, after = lowered(waiting_kernel(), "cuda-h100")
    assert [tag for tag in tags_of(after) if tag != TAG] == tags_of(before)
    assert TAG in tags_of(after)
    assert after.attrs["tirx.noalias"]
    tvm.ir.assert_structural_equal(before.body, after.body)


def test_another_kernel_waits_at_once_and_has_no_constants_for_the_compiler():
    _, after = lowered(plain_kernel(), "cuda-h100")
    assert TAG in tags_of(after)
    assert "tirx.noalias" not in after.attrs
    text = str(after.body)
    assert text.index("intswin_wait_for_grid") < text.index("threadIdx.x")


def test_the_tag_of_dynamic_shared_memory_stays_the_last():
    _, kernel = lowered(plain_kernel(), "cuda-h100")
    shared = "tirx.use_dyn_shared_memory"
    kernel = kernel.with_attr("tirx.kernel_launch_params", ["threadIdx.x", shared])
    (after,) = start_early(tvm.IRModule({"k": kernel})).functions.values()
    assert tags_of(after) == ["threadIdx.x", TAG, shared]


def started_early(body, **options):
    """A kernel that reads activations x and constants w."""
    arrays = {"x": np.arange(64, dtype=np.int32), "w": np.full(64, 7, np.int32), "y": zeros(64)}
    options = {"functions": FUNCTIONS, "dependent": True, "activations": ["x"], **options}
    return run(body, arrays, 64, races=True, **options)


GOOD = """
  int i = threadIdx.x, w_i = w[i], x_i;
  intswin_wait_for_grid();
  intswin_load_volatile_4(&x_i, x + i);
  y[i] = x_i + w_i;
"""
WAIT, LOAD = "intswin_wait_for_grid();", "intswin_load_volatile_4(&x_i, x + i);"


def test_constants_may_be_read_before_the_wait():
    np.testing.assert_array_equal(started_early(GOOD), np.arange(64) + 7)


@pytest.mark.parametrize("load", [LOAD, "x_i = x[i];"])
def test_activations_read_before_the_wait_are_found(load):
    body = GOOD.replace(LOAD, "").replace(WAIT, load + WAIT)
    with pytest.raises(EmulationError, match="byte 0 of x is read before griddepcontrol"):
        started_early(body)


def test_outputs_written_before_the_wait_are_found():
    with pytest.raises(EmulationError, match="of y is written before griddepcontrol"):
        started_early(GOOD.replace(WAIT, "y[i] = 0;" + WAIT))


def test_a_thread_that_does_not_wait_is_found():
    with pytest.raises(EmulationError, match="left the kernel without griddepcontrol"):
        started_early(GOOD.replace(WAIT, "if (i == 3) return;" + WAIT))


def test_without_the_launch_attribute_there_is_nothing_to_wait_for():
    body = GOOD.replace(LOAD, "").replace(WAIT, LOAD)
    np.testing.assert_array_equal(started_early(body, dependent=False), np.arange(64) + 7)

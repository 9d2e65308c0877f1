"""CUDA libraries made without a GPU hold the code that was asked for, and say what is missing."""

import numpy as np
import pytest
import tvm
from tvm import relax
from tvm.script import tirx as T

import graphs
from command import run_intswin
from intswin.compile import cuda_code, cuda_toolchain
from intswin.compile.build import build_kernel, build_with_report, export
from intswin.compile.cuda_stub_driver import load_cuda_backend
from intswin.compile.names import TARGET_NAMES
from intswin.compile.pipeline import CompileOptions, compile_network
from intswin.compile.schedules import cuda_device_functions
from intswin.compile.targets import get_target
from intswin.compile.verify_integer_only import FloatOperationError, verify_integer_only
from intswin.models.errors import IntswinError
from norm_mlp import random_norm_mlp
from operator_runner import emit_operator


def needs(name):
    """A target, skipped where NVRTC for it is not installed."""
    try:
        cuda_toolchain.check_installed(get_target(name))
    except IntswinError as error:
        return pytest.param(name, marks=pytest.mark.skip(reason=str(error)))
    return pytest.param(name)


CUDA_TARGETS = [needs(name) for name in TARGET_NAMES if name.startswith("cuda")]
# The machine code and the PTX of each; sm_90a has none that another GPU could use.
CODE = {
    "cuda-v100": [("cubin", "sm_70"), ("ptx", "compute_70")],
    "cuda-t4": [("cubin", "sm_75"), ("ptx", "compute_75")],
    "cuda-a100": [("cubin", "sm_80"), ("ptx", "compute_80")],
    "cuda-rtx4090": [("cubin", "sm_89"), ("ptx", "compute_89")],
    "cuda-h100": [("cubin", "sm_90")],
}

# What a GEMM multiplies by. The PTX that a library holds says so.
INSTRUCTIONS = {
    "cuda-v100": b"dp4a.u32.s32",
    "cuda-t4": b"mma.sync.aligned.m8n8k16.row.col.s32.u8.s8.s32",
    "cuda-a100": b"mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32",
    "cuda-rtx4090": b"mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32",
}


def library(name, folder, case=None):
    """A library of one operator for a target, and the report of what was checked."""
    target = get_target(name)
    case = case or graphs.random_linear(np.random.default_rng(0), 49, 96, 64)
    executable, report = build_with_report(emit_operator(case, 1, target), target)
    export(executable, folder / "library.so", target)
    return (folder / "library.so").read_bytes(), report


@pytest.mark.parametrize("name", CUDA_TARGETS)
def test_library_holds_the_code_that_was_asked_for(name, tmp_path):
    data, report = library(name, tmp_path)
    codes = cuda_code.read(data)
    assert [(code.kind, code.arch) for code in codes] == CODE[name]
    assert report.functions == ["linear_kernel"]
    assert all(code.kernels == ["linear_kernel"] for code in codes)
    assert all(code.size > 2000 for code in codes)
    assert b"__global__" not in data  # no source
    multiply = "intswin_dp4a_u8s8" if name == "cuda-v100" else "intswin_mma_u8s8"
    assert report.device_functions[multiply] > 0
    if name in INSTRUCTIONS:
        used = {words for words in INSTRUCTIONS.values() if words in data}
        assert used == {INSTRUCTIONS[name]}
        assert (b"cp.async" in data) is (name in ("cuda-a100", "cuda-rtx4090"))
    assert not [dtype for dtype in report.operations if "float" in dtype]


@pytest.mark.parametrize("name", [needs("cuda-h100")])
def test_a_large_gemm_is_computed_by_wgmma(name, tmp_path):
    case = graphs.random_linear(np.random.default_rng(0), 1568, 256, 64)
    data, report = library(name, tmp_path, case)
    assert [(code.kind, code.arch) for code in cuda_code.read(data)] == CODE[name]
    assert [f for f in report.device_functions if f.startswith("intswin_wgmma_n")]
    assert "intswin_mma_u8s8" not in report.device_functions


@pytest.mark.parametrize("name", [needs("cuda-h100")])
def test_an_mlp_is_computed_by_clusters(name, tmp_path):
    """Its weights are too large for one block: the machine code has the cluster's instructions."""
    case, _ = random_norm_mlp(np.random.default_rng(0), 16, 384, 1536)
    data, report = library(name, tmp_path, case)
    (code,) = cuda_code.read(data)
    assert (code.kind, code.arch, code.kernels) == (*CODE[name][0], ["norm_mlp_kernel"])
    for function in ("map_shared", "load_cluster_16", "cluster_arrive", "cluster_wait"):
        assert report.device_functions[f"intswin_{function}"] > 0
    assert b"clusterCtaIdx.x" in data  # what the launch is told


@pytest.mark.parametrize("name", [needs("cuda-a100")])
def test_equal_inputs_give_equal_libraries(name, tmp_path):
    assert library(name, tmp_path)[0] == library(name, tmp_path)[0]


@pytest.mark.parametrize("name", [needs("cuda-a100")])
def test_code_that_was_not_asked_for_is_refused(name, tmp_path):
    data, report = library(name, tmp_path)
    kernels = report.functions
    assert len(cuda_code.read_checked(data, "sm_80", "compute_80", kernels)) == 2
    with pytest.raises(IntswinError, match=r"holds cubin sm_80, ptx compute_80 instead of cubin s"):
        cuda_code.read_checked(data, "sm_90a", None, kernels)
    with pytest.raises(IntswinError, match="lacks kernels: other_kernel"):
        cuda_code.read_checked(data, "sm_80", "compute_80", [*kernels, "other_kernel"])
    with pytest.raises(IntswinError, match="holds no GPU code instead of cubin sm_80"):
        cuda_code.read_checked(data[: data.index(b"\x7fELF", 4)], "sm_80", None, kernels)


def test_cut_off_cubin_is_none():
    header = b"\x7fELF\x02\x01\x01\x33" + bytes(10) + b"\xbe\x00"
    assert cuda_code.read(b"before" + header) == []
    assert cuda_code.read(header + bytes(100)) == []


@pytest.mark.parametrize(("name", "release"), [("cuda-v100", 12), ("cuda-h100", 13)])
def test_missing_package_names_the_extra(monkeypatch, name, release):
    monkeypatch.setattr(cuda_toolchain, "_pip_folders", list)
    monkeypatch.setattr(cuda_toolchain, "_toolkit_folders", list)
    arch = get_target(name).attrs["arch"]
    says = rf"^NVRTC {release} \(with its headers\), .*{arch}"
    wanted = rf"{says}.* run: pip install 'intswin\[cuda{release}\]'$"
    with pytest.raises(IntswinError, match=wanted):
        compile_network(CompileOptions(target=name))
    with pytest.raises(IntswinError, match=r"^nvFatbin, .* run: pip install 'intswin\[cuda1\d\]'$"):
        cuda_toolchain.fatbin(b"", b"", str(arch))


@pytest.mark.parametrize("name", [needs("cuda-v100"), needs("cuda-a100")])
def test_error_in_the_source(name):
    target = get_target(name)
    arch, toolkit = str(target.attrs["arch"]), cuda_toolchain.find_toolkit(target)
    with pytest.raises(IntswinError) as error:
        cuda_toolchain.compile_source("__global__ void f() {\n  g();\n  h();\n}", arch, toolkit)
    assert str(error.value) == (
        f'the CUDA kernels do not compile for {arch}: kernels.cu(2): error: identifier "g" is '
        "undefined"
    )


@pytest.mark.parametrize("name", [needs("cuda-a100")])
def test_unknown_architecture(name):
    toolkit = cuda_toolchain.find_toolkit(get_target(name))
    with pytest.raises(IntswinError, match=r"do not compile for sm_11: .*invalid value for"):
        cuda_toolchain.compile_source("", "sm_11", toolkit)


def kernel_calling(name, source):
    """A module of one kernel that calls a device function."""

    @T.prim_func(s_tir=True)
    def main(x: T.Buffer((32,), "int32"), y: T.Buffer((32,), "int32")):
        for i in T.thread_binding(32, thread="threadIdx.x"):
            with T.sblock("y"):
                vi = T.axis.spatial(32, i)
                y[vi] = T.cuda.func_call(name, x[vi], source_code=source, return_type="int32")

    return tvm.IRModule({"main": main.with_attr("tirx.is_scheduled", True)})


@pytest.mark.parametrize("name", [needs("cuda-a100")])
def test_error_in_a_device_function(name):
    """TVM's callback fails with the same line."""
    broken = "__device__ int broken(int x) { return y; }\n"
    with pytest.raises(IntswinError, match=r'error: identifier "y" is undefined'):
        build_kernel(kernel_calling("broken", broken), get_target(name))


def test_device_functions_are_the_known_ones():
    name = "intswin_leading_zeros"
    source = cuda_device_functions.source_of(name)
    report = verify_integer_only(kernel_calling(name, source))
    assert report.device_functions == {name: 1}
    for called, other in (("secret", "__device__ int secret(int x)"), (name, source + " ")):
        with pytest.raises(FloatOperationError, match=f"main: a call that cannot .*{called}"):
            verify_integer_only(kernel_calling(called, other))


@pytest.mark.parametrize("name", [needs("cuda-a100")])
def test_kernel_without_a_gpu_schedule(name):
    """What has no thread would be compiled for the host, and read the GPU's memory there."""
    case = graphs.random_gather_rows(np.random.default_rng(0), 4, 8, 2)
    target = get_target(name)
    mod = emit_operator(case, 1, target)
    for gvar, func in mod.functions.items():
        if not isinstance(func, relax.Function):
            mod[gvar] = func.with_attr("tirx.is_scheduled", True)
    with pytest.raises(RuntimeError, match="gather_rows has no schedule for a GPU"):
        build_with_report(mod, target)


@pytest.mark.parametrize("name", [needs("cuda-a100")])
def test_stub_driver_is_no_gpu(name):
    """Compiling leaves a process that sees as many GPUs as before: none, without a driver."""
    import torch

    before = torch.cuda.is_available()
    load_cuda_backend()
    assert tvm.cuda(0).exist is before
    assert torch.cuda.is_available() is before


@pytest.mark.parametrize("activation", ["relu"])
@pytest.mark.parametrize("name", [needs("cuda-v100")])
def test_command(tmp_path, name, activation):
    result = run_intswin(
        *("compile", "--target", name, "--activation", activation, "--output", "v100.intswin"),
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    result = run_intswin("inspect", "v100.intswin", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    for text in ("cuda-v100 (sm_70, host x86_64", "cubin", "compute_70", "attention_kernel"):
        assert text in result.stdout

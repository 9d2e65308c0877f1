"""Targets by name."""

import pytest
import tvm

from intswin.compile import targets
from intswin.models.errors import IntswinError


def test_features_decide_between_cpus():
    v3, arm = targets.get_target("llvm-x86-64-v3"), targets.get_target("llvm-aarch64")
    assert targets.has_avx2(v3)
    assert not targets.has_vnni(v3)
    assert not targets.has_avx2(arm)
    assert "aarch64" in str(arm.attrs["mtriple"])


def test_this_cpu_is_detected():
    host = targets.get_target("llvm")
    assert str(host.attrs["mcpu"]) == tvm.target.codegen.llvm_get_system_cpu()
    assert int(host.attrs["num-cores"]) >= 1


def test_unknown_name_lists_the_known():
    with pytest.raises(IntswinError, match=r"unknown target 'gpu'.*llvm-aarch64"):
        targets.get_target("gpu")


@pytest.mark.parametrize(
    ("name", "arch", "number", "mma"),
    [
        ("cuda-v100", "sm_70", 70, False),
        ("cuda-t4", "sm_75", 75, True),
        ("cuda-a100", "sm_80", 80, True),
        ("cuda-rtx4090", "sm_89", 89, True),
        ("cuda-h100", "sm_90a", 90, True),
    ],
)
def test_cuda_targets(name, arch, number, mma):
    target = targets.get_target(name)
    assert targets.is_cuda(target)
    assert str(target.attrs["arch"]) == arch
    assert targets.cuda_arch(target) == number
    assert targets.has_mma(target) is mma
    assert targets.has_wgmma(target) is (name == "cuda-h100")
    assert target.host.kind.name == "llvm"
    assert not targets.has_avx2(target)


def test_cpu_targets_are_not_cuda():
    assert not targets.is_cuda(targets.get_target("llvm-x86-64-v3"))
    assert not targets.has_mma(targets.get_target("llvm-x86-64-v3"))


def test_versions(monkeypatch):
    targets.check_versions()
    monkeypatch.setattr(targets.tvm_ffi, "__version__", "0.1.15")
    with pytest.raises(IntswinError, match=r"apache-tvm-ffi 0.1.15 is installed; run pip install"):
        targets.check_versions()

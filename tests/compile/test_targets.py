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


@pytest.mark.parametrize("name", [n for n in targets.TARGET_NAMES if n.startswith("cuda")])
def test_cuda_is_reserved(name):
    with pytest.raises(IntswinError, match=f"target {name} is not available yet"):
        targets.get_target(name)


def test_versions(monkeypatch):
    targets.check_versions()
    monkeypatch.setattr(targets.tvm_ffi, "__version__", "0.1.15")
    with pytest.raises(IntswinError, match=r"apache-tvm-ffi 0.1.15 is installed; run pip install"):
        targets.check_versions()

"""Every target that compiles has its script; scripts for a GPU say so where there is none."""

from pathlib import Path

import pytest

from command import run_forked
from intswin.compile.names import TARGET_NAMES

SCRIPTS = Path(__file__).parents[2] / "scripts"
CPU_TARGETS = [name for name in TARGET_NAMES if not name.startswith("cuda")]
CUDA_TARGETS = [name for name in TARGET_NAMES if name.startswith("cuda")]


@pytest.mark.parametrize("target", CPU_TARGETS)
def test_compile_script_of_target(tmp_path, target):
    """It compiles for its own target: a wrong checkpoint is refused only after the arguments."""
    script = SCRIPTS / f"compile_{target.replace('-', '_')}.py"
    result = run_forked("--checkpoint", "none.pth", cwd=tmp_path, script=script)
    assert result.returncode == 2
    assert "none.pth: no such checkpoint" in result.stderr
    assert f'"{target}"' in script.read_text()


@pytest.mark.parametrize("target", CUDA_TARGETS)
def test_compile_script_of_cuda_target(target):
    """Not run: without NVRTC it says so first (test_cuda_build.py)."""
    source = (SCRIPTS / f"compile_{target.replace('-', '_')}.py").read_text()
    assert f'sys.argv[1:1] = ["compile", "--target", "{target}"]' in source
    compile(source, target, "exec")


@pytest.mark.parametrize("name", ["check_cuda", "bench_gpu", "tune_cuda"])
def test_scripts_for_a_gpu_compile_nothing_without_one(tmp_path, monkeypatch, name):
    """One line within seconds, not after minutes of compiling."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    result = run_forked(cwd=tmp_path, script=SCRIPTS / f"{name}.py", timeout=60)
    assert result.returncode == 2, result.stderr
    assert result.stderr.startswith("error: this machine cannot run CUDA code: ")
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""
    assert not list(tmp_path.iterdir())

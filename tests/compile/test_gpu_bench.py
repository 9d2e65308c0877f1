"""The GPU benchmark's race and report, with stand-ins for networks and for the GPU's clock."""

import json
import time

import pytest

from intswin.compile import gpu_bench, gpu_bench_report, gpu_peak
from intswin.compile.gpu_artifacts import ArtifactSpec, build_missing
from intswin.compile.gpu_bench import Contestant, race, speedups
from intswin.compile.operator_profile import OperatorTime
from intswin.models.errors import IntswinError


@pytest.fixture
def clock(monkeypatch):
    """Calls return the seconds that they "take"; nothing waits."""
    monkeypatch.setattr(gpu_bench, "WARM_UP_SECONDS", 0.0)
    calls = []

    def time_calls(call, count):
        calls.append((call, count))
        return sum(call() for _ in range(count))

    time_calls.calls = calls
    return time_calls


def contestant(name, seconds, build_seconds=0.0):
    return Contestant(name, name.upper(), lambda: lambda: seconds, build_seconds)


def run(contestants, clock, seconds_left=60.0):
    said = []
    deadline = time.monotonic() + seconds_left
    return race(contestants, 8, clock, deadline, 0.05, said.append), said


def test_medians_and_ratios(clock):
    rows, _ = run([contestant("ours-relu", 1e-3), contestant("torch-eager-gelu", 3e-3)], clock)
    assert rows["ours-relu"]["median_ms"] == 1.0
    assert rows["ours-relu"]["images_per_s"] == 8000
    assert rows["torch-eager-gelu"]["ratio"] == 3.0
    assert len(rows["ours-relu"]["samples_ms"]) >= gpu_bench.FEWEST_ROUNDS
    assert speedups(rows) == {"torch-eager-gelu": 3.0, "fastest-torch": 3.0}


def test_turns_are_interleaved_and_rotated(clock):
    rows, _ = run([contestant("a", 1e-3), contestant("b", 2e-3), contestant("c", 1.0)], clock)
    timed = [count for _, count in clock.calls if count != 3]
    assert timed[:12] == [1, 4, 1, 2, 1, 1, 1, 2, 1, 1, 1, 4]
    assert [rows[name]["calls_a_sample"] for name in "abc"] == [4, 2, 1]


def test_a_failure_and_a_lack_of_time_leave_the_others(clock):
    def fail():
        raise RuntimeError("inductor says:\nno")

    def refuse():
        raise IntswinError("no such artifact")

    contestants = [
        Contestant("ours-relu", "ours", refuse),
        contestant("torch-eager-gelu", 2e-3),
        Contestant("torch-graph-gelu", "graph", fail),
        contestant("torch-max-autotune-gelu", 1e-3, build_seconds=100.0),
    ]
    rows, said = run(contestants, clock)
    assert rows["ours-relu"]["reason"] == "no such artifact"
    assert rows["torch-graph-gelu"]["reason"] == "inductor says: ... no"
    assert "no time left" in rows["torch-max-autotune-gelu"]["reason"]
    assert "median_ms" in rows["torch-eager-gelu"] and "ratio" not in rows["torch-eager-gelu"]
    assert speedups(rows) == {}
    assert any("FAILED: inductor says: ... no" in line for line in said)


def test_one_that_fails_later_is_named(clock):
    calls = iter([1e-3] * 9)  # enough to be built

    def later():
        try:
            return next(calls)
        except StopIteration:
            raise RuntimeError("CUDA error: unspecified launch failure\nmore") from None

    contestants = [contestant("a", 1e-3), Contestant("b", "B", lambda: later, 0.0)]
    with pytest.raises(
        IntswinError, match=r"^b failed while it was timed: CUDA error: .* failure$"
    ):
        run(contestants, clock)


def test_what_is_known_is_kept_before_a_slow_one_is_built(clock):
    kept = []

    def build():
        assert [list(rows) for rows in kept] == [["ours-relu", "torch-eager-gelu"]]
        assert kept[0]["torch-eager-gelu"]["ratio"] == 2.0
        return lambda: 1e-3

    contestants = [contestant("ours-relu", 1e-3), contestant("torch-eager-gelu", 2e-3)]
    slow = Contestant("torch-max-autotune-gelu", "slow", build, gpu_bench.SLOW_SECONDS)
    deadline = time.monotonic() + 1000
    rows = race([*contestants, slow], 8, clock, deadline, 0.05, lambda _: None, kept.append)
    assert rows["torch-max-autotune-gelu"]["ratio"] == 1.0
    assert len(kept) == 1


def test_report(clock, tmp_path):
    contestants = [contestant("torch-eager-gelu", 3e-3), contestant("ours-relu", 1e-3)]
    rows, _ = run([*contestants, contestant("torch-graph-gelu", 1e-3, 1e6)], clock)
    case = {"network": "swin_tiny_patch4", "batch": 8, "rows": rows, "speedups": speedups(rows)}
    empty = {"network": "swin_base", "batch": 32, "rows": {}, "speedups": {}}
    result = {"device": "Some GPU", "driver": "13.0", "cases": [case, empty]}
    paths = gpu_bench_report.write(result, tmp_path / "bench.json")
    assert json.loads(paths[0].read_text()) == result
    assert paths[1].read_bytes().startswith(b"\x89PNG")
    table = gpu_bench_report.table(result)
    assert [str(cell) for cell in table.columns[0].cells] == ["OURS-RELU", "TORCH-EAGER-GELU"]
    assert list(table.columns[1].cells) == ["1.000 (0.33)", "3.000 (1.00)"]
    lines = list(gpu_bench_report.conclusions(result))
    assert lines[0] == (
        "swin_tiny batch 8: ReLU is faster by: torch-eager-gelu 3.00x, fastest-torch 3.00x"
    )
    assert "no time left" in lines[1]
    assert lines[2] == "swin_base batch 32: ReLU is faster by: not measured"


def test_peak():
    peak = gpu_peak.data_sheet("NVIDIA H100 80GB HBM3")
    assert (peak.tops, peak.gbs) == (1979, 3350)
    assert gpu_peak.data_sheet("NVIDIA H100 PCIe").gbs == 2000
    assert gpu_peak.data_sheet("NVIDIA A100-SXM4-40GB").gbs == 1555
    assert gpu_peak.data_sheet("NVIDIA GeForce RTX 4090 Laptop GPU") is None
    busy = OperatorTime("linear", "linear", 2, 20.0, operations=19_790_000_000, bytes=1)
    moving = OperatorTime("copy", "patchify", 1, 20.0, operations=0, bytes=33_500_000)
    assert peak.least_us(busy) == pytest.approx(10)
    assert peak.least_us(moving) == pytest.approx(10)
    shares = list(gpu_peak.table("network", [busy, moving], peak).columns[-1].cells)
    assert shares == ["50", "50", "50"]
    assert gpu_peak.to_json([busy], peak)[0]["least_us"] == 10.0
    gpu_peak.table("network", [busy], None)


def test_names_of_artifacts(tmp_path):
    spec = ArtifactSpec("swin_micro", "relu", "cuda-h100", 32)
    assert spec.path(tmp_path).name == "swin_micro_relu_cuda-h100_b32.intswin"


def test_builders_that_do_not_finish_are_ended(tmp_path):
    said = []
    spec = ArtifactSpec("swin_micro", "relu", "llvm", 1)
    start = time.monotonic()
    failures = build_missing([spec], tmp_path, False, 1, said.append, seconds=0.5)
    assert failures == {spec: "not done after 0 s"}
    assert time.monotonic() - start < 10
    assert not list(tmp_path.iterdir())

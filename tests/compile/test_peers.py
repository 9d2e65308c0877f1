"""The comparison's protocol and report, with competitors that need no framework."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from intswin.compile.peers import coordinator, process, report
from intswin.compile.peers.competitors import COMPETITORS
from intswin.compile.peers.process import CompetitorError, Worker
from intswin.compile.peers.task import Competitor, Task, peak_memory_mb

ROUNDS = 3


def fake(variant, name=None, packages=()):
    return Competitor(
        name or variant, f"Fake {variant}", "fake_competitors", variant, "relu", packages
    )


def task_of(folder, competitor):
    return Task(competitor, "network", 2, 2, str(folder), "photos")


@pytest.fixture(autouse=True)
def fakes(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    monkeypatch.setattr(coordinator, "INPUTS", fake("", "inputs"))
    monkeypatch.setattr(coordinator, "IDLE_SECONDS", 0.2)
    monkeypatch.setattr(coordinator, "BURST_TIMEOUT", 3.0)


def race_of(folder, *competitors):
    tasks = [task_of(folder, competitor) for competitor in competitors]
    return coordinator.run(tasks, ROUNDS, 4, lambda message: None)


@pytest.fixture(scope="module")
def race(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        fakes.__wrapped__(patch)
        variants = "slow dies hangs raises wrong short inexact unloadable".split()
        return race_of(
            tmp_path_factory.mktemp("race"),
            fake("exact", "ours-relu"),
            *(fake(variant) for variant in variants),
            Competitor("unprepared", "", "fake_competitors", "unprepared", "gelu"),
            fake("absent", packages=("no-such-package",)),
        )


def entrant_of(race, name):
    return next(e for e in race.entrants if e.task.competitor.name == name)


def test_good_ones_are_measured_in_every_round(race):
    for name in ("ours-relu", "slow"):
        entrant = entrant_of(race, name)
        assert entrant.reason == ""
        assert len(entrant.rounds) == ROUNDS
        assert all(len(times) >= coordinator.BURST_CALLS[0] for times in entrant.rounds)
    assert all(t >= 0.02 for times in entrant_of(race, "slow").rounds for t in times)
    assert entrant_of(race, "ours-relu").first["bit_exact"] is True
    assert entrant_of(race, "slow").cosine == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("dies", "failed in round"),
        ("hangs", "no answer in 3 s"),
        ("raises", "RuntimeError: out of memory"),
        ("wrong", "wrong output: cosine"),
        ("short", "wrong output: shape (1, 10) instead of (2, 10)"),
        ("inexact", "wrong output: not equal to the integer reference"),
        ("unloadable", "ValueError: no such kernel"),
        ("unprepared", "RuntimeError: cannot convert this network"),
        ("absent", "no-such-package is not installed"),
    ],
)
def test_who_fails_is_out_with_a_reason(race, name, reason):
    entrant = entrant_of(race, name)
    assert reason in entrant.reason
    assert entrant.worker is None


def test_idle_workers_use_no_core(race):
    assert race.idle_cores < 0.1


def test_no_process_is_left(race):
    folder = entrant_of(race, "slow").task.folder
    running = subprocess.run(["ps", "ax", "-o", "args"], capture_output=True, text=True, check=True)
    assert folder not in running.stdout


@pytest.fixture(scope="module")
def result(race):
    return {
        "network": "network",
        "threads": 2,
        "cpu": "Some CPU",
        "load_before": [0.1, 0, 0],
        "batches": [report.batch_result(race, 2)],
    }


def test_rows_of_the_report(result):
    (part,) = result["batches"]
    rows = part["competitors"]
    assert len(rows) == 11
    slow = rows["slow"]
    assert slow["median_ms"] >= 20
    assert slow["images_per_s"] == pytest.approx(2000 / slow["median_ms"], rel=1e-3)
    assert slow["ratio"] == pytest.approx(
        slow["median_ms"] / rows["ours-relu"]["median_ms"], rel=1e-3
    )
    assert len(slow["round_median_ms"]) == ROUNDS
    assert rows["ours-relu"]["bit_exact"] is True
    assert part["ratio_to"] == "ours-relu"
    assert part["fastest_peer"] == "slow"
    assert part["fastest_peer_ratio"] == slow["ratio"]
    assert "median_ms" not in rows["wrong"]


def test_table_and_files(result, tmp_path):
    console = Console(width=160, record=True, file=open("/dev/null", "w"))
    for table in report.tables(result):
        console.print(table)
    text = console.export_text()
    assert text.index("Fake exact") < text.index("Fake slow") < text.index("not measured")
    assert "not measured: wrong output: cosine" in text
    document, picture = report.write(result, tmp_path / "results" / "peers.json")
    assert json.loads(document.read_text()) == result
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_busy_machine_is_reported(result):
    assert report.warnings({**result, "batches": []}) == []
    part = {**result["batches"][0], "foreign_cores": 1.5, "idle_workers_cores": 0.0}
    busy = {**result, "load_before": [2.0, 0, 0], "batches": [part]}
    before, foreign = report.warnings(busy)
    assert "load average 2.00" in before
    assert "1.50 cores" in foreign


def test_nobody_left_is_a_report_too(tmp_path):
    part = report.batch_result(race_of(tmp_path, fake("wrong")), 2)
    result = {"network": "n", "threads": 1, "cpu": "", "batches": [part]}
    assert part["ratio_to"] is None
    assert list(report.conclusions(result)) == ["batch 2: nothing was measured"]
    assert [path.suffix for path in report.write(result, tmp_path / "r.json")] == [".json"]
    assert len(list(report.tables(result))) == 1


def test_a_worker_ends_when_its_coordinator_does(tmp_path):
    with Worker("serve", task_of(tmp_path, fake("good"))) as worker:
        worker.answer(60)
        start = time.monotonic()
    assert time.monotonic() - start < process.STOP_TIMEOUT


def test_a_worker_that_is_gone_is_an_error(tmp_path):
    with Worker("serve", task_of(tmp_path, fake("dies"))) as worker:
        worker.answer(60)
        with pytest.raises(CompetitorError, match="ended with status 3"):
            worker.ask({"do": "time", "calls": 9}, 60)
        with pytest.raises(CompetitorError, match="ended"):
            worker.ask({"do": "time", "calls": 1}, 60)


def test_a_task_survives_json(tmp_path):
    task = task_of(tmp_path, COMPETITORS[-1])
    assert Task.from_json(task.to_json()) == task


def test_names_are_unique():
    assert len({competitor.name for competitor in COMPETITORS}) == len(COMPETITORS)


def test_script_names_competitors_when_nobody_is_chosen(tmp_path):
    script = Path(__file__).parents[2] / "scripts" / "bench_cpu.py"
    ran = subprocess.run(
        [sys.executable, script, "--only", "caffe"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 2
    assert "openvino-int8-relu" in ran.stderr


def test_peak_memory_is_not_that_of_the_parent():
    program = "from intswin.compile.peers.task import peak_memory_mb; print(peak_memory_mb())"
    ballast = np.ones(100 << 20, np.uint8)
    assert peak_memory_mb() >= len(ballast) / 2**20
    child = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert 10 < float(child.stdout) < len(ballast) / 2**20

"""Tuning jobs: what they survive, what they refuse, and what they do not let through."""

import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from tune_program import ONE_CASE, tune_small

import graphs
from command import run_intswin
from intswin.compile import cli, tune, tuning_log
from intswin.compile.schedules.gemm_space import GemmShape, default_tile
from intswin.compile.targets import get_target
from intswin.compile.tuner import machines as machines_module
from intswin.compile.tuner import worker
from intswin.compile.tuner.machines import Machines
from intswin.compile.tuner.processes import Pool, Worker, WorkerError
from intswin.compile.tuner.search import propose
from intswin.compile.tuner.store import JOURNAL, Store
from intswin.compile.tuner.tasks import extract_tasks
from intswin.models.errors import IntswinError
from operator_runner import emit_operator

PROGRAM = Path(__file__).with_name("tune_program.py")
TARGET = get_target("llvm")


@pytest.fixture(scope="module")
def machines():
    local = Machines.local(TARGET)
    yield local
    local.close()


def small_task(**options):
    case = graphs.random_linear(np.random.default_rng(0), 49, 64, 128, **options)
    (task,) = extract_tasks([(emit_operator(case, 1, TARGET), 1)], TARGET)
    return task


def built(task, path, tile=None):
    return worker.build(task.workload_json, str(TARGET), tile, str(path))


def journal(folder):
    path = folder / JOURNAL
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def start_job(folder, trials):
    paths = [str(PROGRAM.parents[1]), str(PROGRAM.parent)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.Popen(
        [sys.executable, PROGRAM, folder, str(trials)],
        env=environment,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )


def processes_of_session(session):
    with contextlib.suppress(ProcessLookupError):
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    fields = (entry / "stat").read_text().rpartition(")")[2].split()
                    if int(fields[3]) == session and fields[0] != "Z":
                        yield int(entry.name)


def wait_until(condition, seconds):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def test_killed_job_goes_on(tmp_path):
    job = start_job(tmp_path, 32)
    wait_until(lambda: journal(tmp_path) or job.poll() is not None, 60)
    os.kill(job.pid, signal.SIGKILL)
    job.wait()
    wait_until(lambda: not list(processes_of_session(job.pid)), 10)
    before = (tmp_path / JOURNAL).read_text()
    assert 0 < len(before.splitlines()) < 32
    (tmp_path / JOURNAL).write_text(before + '{"workload": "1", "ti')  # as a full disk leaves it
    tune_small(tmp_path, 32, cases=ONE_CASE)
    lines = (tmp_path / JOURNAL).read_text().splitlines()
    assert lines[: len(before.splitlines())] == before.splitlines()
    entries = [json.loads(line) for line in lines if not line.endswith('"ti')]
    tried = {(entry["workload"], tuple(entry["tile"])) for entry in entries}
    assert len(tried) == len(entries) == 32, "nothing is measured twice"
    log = tuning_log.read_log(tmp_path)
    assert not log.broken
    assert all(len(records) <= 3 for records in log.records.values())
    assert tuning_log.stored_fingerprint(tmp_path) == tuning_log.fingerprint(TARGET)


def test_one_process_a_log(tmp_path):
    folder = tmp_path / "tuning_logs" / tuning_log.log_name(TARGET)
    store = Store(folder, TARGET)
    try:
        with pytest.raises(IntswinError, match="another process is tuning"):
            Store(folder, TARGET)
        result = run_intswin("tune", "--trials", 1, cwd=tmp_path)
        assert result.returncode == 2
        assert result.stderr.startswith("intswin: error: another process is tuning into")
        assert result.stderr.count("\n") == 1
    finally:
        store.close()
    Store(folder, TARGET).close()


def test_lock_ends_with_its_process(tmp_path):
    Store(tmp_path, TARGET).close()
    with (tmp_path / ".lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_wrong_kernels_are_rejected(tmp_path, machines):
    """The same arguments, but one bit less in the last shift."""
    task, other = small_task(zero_point=0), small_task(zero_point=128)
    assert task.key != other.key
    reference, right = built(task, tmp_path / "0.so"), built(task, tmp_path / "1.so")
    wrong = built(other, tmp_path / "2.so")
    results = machines.measure(task.spec, reference, [wrong, right], 1.0)
    assert isinstance(results[0], WorkerError)
    assert "numbers are wrong" in str(results[0])
    assert 0 < results[1] < 1
    assert isinstance(machines.compare(task.spec, reference, [right, wrong], 1), WorkerError)


def c_kernel(path, body):
    """A library with a kernel written in C."""
    source = path.with_suffix(".c")
    source.write_text(f"int __tvm_ffi_main(void* s, void* a, int n, void* r) {{ {body} }}\n")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", path, source], check=True)
    return str(path)


def test_hanging_and_crashing_kernels_end(tmp_path, machines, monkeypatch):
    monkeypatch.setattr(machines_module, "RUN_SECONDS", 3.0)
    task = small_task(zero_point=0)
    reference, right = built(task, tmp_path / "0.so"), built(task, tmp_path / "1.so")
    hanging = c_kernel(tmp_path / "2.so", "for (volatile int i = 0;; i++);")
    crashing = c_kernel(tmp_path / "3.so", "return *(volatile int*)8;")
    idle = c_kernel(tmp_path / "4.so", "return 0;")
    results = machines.measure(task.spec, reference, [hanging, crashing, idle, right], 1.0)
    assert str(results[0]) == "no answer in 3 s"
    assert str(results[1]) == f"the process died (exit code {-signal.SIGSEGV})"
    assert "numbers are wrong" in str(results[2])
    assert 0 < results[3] < 1


def test_workers_stay_warm():
    pool = Pool(1)
    try:
        first = pool.map(10, os.getpid, [(), ()])
        assert first[0] == first[1] != os.getpid()
        failed, again = pool.map(10, divmod, [(1, 0), (7, 2)])
        assert "ZeroDivisionError" in str(failed)
        assert again == (3, 1)
        assert pool.map(10, os.getpid, [()]) == first[:1], "an exception costs no process"
    finally:
        pool.close()


def test_interrupted_call_kills_its_worker():
    one = Worker()
    pid = one.call(10, os.getpid)
    with pytest.raises(WorkerError):
        one.call(0.2, time.sleep, 60)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert one.call(10, os.getpid) != pid
    one.kill()


def test_a_pool_is_closed_under_running_calls():
    """The threads of the calls and the one that closes kill the same workers."""
    for _ in range(5):
        pool = Pool(4)
        pool.map(10, os.getpid, [()] * 8)
        results = pool.results(60, time.sleep, [(60,)] * 4)
        time.sleep(0.1)
        start = time.monotonic()
        pool.close()
        assert all(isinstance(result, WorkerError) for result in results)
        assert time.monotonic() - start < 10


def test_equal_kernels_are_one_task():
    rng = np.random.default_rng(0)
    cases = [graphs.random_linear(rng, 49, 64, 128, zero_point=0) for _ in range(2)]
    cases.append(graphs.random_linear(rng, 49, 64, 128, activation="igelu"))
    tasks = extract_tasks([(emit_operator(case, 1, TARGET), 1) for case in cases], TARGET)
    assert [task.calls for task in tasks] == [2, 1]
    assert tasks[0].spec.operations == 2 * 49 * 64 * 128
    assert tasks[1].spec.description == "1x49x64 -> 128 u8 igelu"


@pytest.mark.parametrize("layout", ["vnni", "avx2", "plain"])
def test_search_proposes_new_tiles(layout):
    shape = GemmShape(layout, 8, 196, 24, 96)
    trials = {}
    for number in range(4):
        tiles = propose(shape, trials, [], 16, seed=0)
        assert len(set(tiles)) == 16
        assert not trials.keys() & set(tiles)
        if not number:
            assert tiles[0] == default_tile(shape)
        trials |= {tile: 1.0 / tile.rows for tile in tiles}
    hint = next(iter(propose(shape, {}, [], 16, seed=9)[5:]))
    assert propose(shape, {}, [hint], 2, seed=1)[1] == hint


def test_search_ends_with_the_space():
    shape = GemmShape("vnni", 1, 1, 1, 1)
    assert propose(shape, {}, [], 16, seed=0)
    everything = dict.fromkeys(propose(shape, {}, [], 16, seed=0), 1.0)
    assert propose(shape, everything, [], 16, seed=0) == []


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory):
    """A Swin of two blocks with ReLU, heads of 16 and 32 channels, and three classes."""
    from timm.models import SwinTransformer

    from intswin.compile.import_model import export_onnx
    from intswin.models.activation import replace_activation

    model = SwinTransformer(
        img_size=64, num_classes=3, embed_dim=16, depths=(1, 1), num_heads=(1, 1), window_size=4
    )
    path = tmp_path_factory.mktemp("onnx") / "small.onnx"
    export_onnx(replace_activation(model, "relu"), (64, 64), path)
    return path


def test_an_onnx_file_is_tuned_instead_of_a_network(tmp_path, onnx_file):
    arguments = ("--onnx", onnx_file, "--trials", 1, "--logs", tmp_path)
    result = run_intswin("tune", *arguments, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert f"reading {onnx_file} relu" in "".join(result.stdout.splitlines())
    entries = journal(tmp_path / tuning_log.log_name(TARGET))
    # patches, qkv, projection, fc1, fc2 of two blocks, patch merging, and the classifier
    assert len(entries) == len({entry["workload"] for entry in entries}) == 11
    assert [entry for entry in entries if "error" in entry] == []
    assert "1x1x32 -> 3 i32" in result.stdout


def test_a_missing_onnx_file_is_one_line(tmp_path, monkeypatch, capsys):
    arguments = ["intswin", "tune", "--onnx", "absent.onnx", "--logs", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    stderr = capsys.readouterr().err
    assert stderr.startswith("intswin: error: no ONNX file at absent.onnx")
    assert stderr.count("\n") == 1


def test_number_of_classes():
    options = tune.TuneOptions(("swin_micro",), num_classes=7)
    (graph,) = tune.read_networks(options, Console(quiet=True))
    assert graph.nodes[-1].out.shape == (1, 7)


def test_foreign_code_is_not_measured_here():
    with pytest.raises(IntswinError, match="use --rpc-tracker"):
        Machines.local(get_target("llvm-aarch64"))


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@contextlib.contextmanager
def fleet(key, servers):
    """TVM's tracker and servers on this machine; gives the tracker's host:port."""
    pytest.importorskip("tornado")
    pytest.importorskip("cloudpickle")
    python = [sys.executable, "-m"]
    environment = {**os.environ, "TVM_NUM_THREADS": "1"}
    options = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": environment}
    port = free_port()
    address = f"127.0.0.1:{port}"
    ports = ["--port", str(port), "--port-end", str(port + 1)]
    commands = [["tvm.exec.rpc_tracker", "--host", "127.0.0.1", *ports]]
    commands += [
        ["tvm.exec.rpc_server", "--host", "127.0.0.1", "--tracker", address, "--key", key]
    ] * servers
    processes = [
        subprocess.Popen([*python, *command], start_new_session=True, **options)
        for command in commands
    ]
    try:
        yield address
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def test_two_rpc_servers_tune(tmp_path):
    from intswin.compile.tuner import remote

    with fleet("board", 2) as address:

        def ready():
            with contextlib.suppress(IntswinError):
                return remote.count_servers(remote.parse_address(address), "board") == 2

        wait_until(ready, 60)
        with pytest.raises(IntswinError, match="no server with key other"):
            Machines.behind_tracker(address, "other")
        (task,) = tune_small(tmp_path, 8, cases=ONE_CASE, rpc_tracker=address, rpc_key="board")
    entries = journal(tmp_path)
    assert len(entries) == 8
    assert [entry for entry in entries if "error" in entry] == []
    assert {entry["workload"] for entry in entries} == {task.key}


def test_no_tracker():
    with pytest.raises(IntswinError, match="no RPC tracker answers"):
        Machines.behind_tracker(f"127.0.0.1:{free_port()}", "board")
    with pytest.raises(IntswinError, match="host:port"):
        Machines.behind_tracker("nowhere", "board")

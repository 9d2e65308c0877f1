"""Logs as the compiler reads them, and the tiles that they may hold."""

import json
import logging
import shutil

import numpy as np
import pytest
import tvm
from tune_program import CASES, tune_small
from tvm import relax, s_tir, tirx
from tvm.s_tir import meta_schedule as ms
from tvm_ffi import structural_equal

import graphs
from intswin.compile import tune, tuning_log
from intswin.compile.build import build
from intswin.compile.schedules.gemm import sample_linear, schedule_linear
from intswin.compile.targets import get_target
from intswin.compile.tuner import space
from intswin.compile.tuner.store import JOURNAL, Store
from intswin.models import integer_ops
from intswin.models.errors import IntswinError
from operator_runner import TARGETS, emit_operator

TARGET = get_target("llvm")
NAME = tuning_log.log_name(TARGET)


@pytest.fixture(scope="module")
def tuned_logs(tmp_path_factory):
    """Logs of a short job, whose records need not be faster than the default."""
    logs = tmp_path_factory.mktemp("logs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tune, "_WORTH", 100.0)
        tune_small(logs / NAME, 12)
    return logs


@pytest.fixture
def logs(tuned_logs, tmp_path, monkeypatch):
    """A copy that a test may spoil, where the compiler looks."""
    copy = tmp_path / "tuning_logs"
    shutil.copytree(tuned_logs, copy)
    monkeypatch.setenv(tuning_log.FOLDERS_VARIABLE, str(copy))
    return copy


def kernel(mod):
    (func,) = (f for f in mod.functions.values() if isinstance(f, tirx.PrimFunc))
    return func


def tuned_kernels():
    """The kernels of CASES as they are compiled; None for those that no record is used for."""
    kernels = {}
    for name, case in CASES.items():
        mod = tuning_log.apply_tuned_schedules(emit_operator(case, 1, TARGET), TARGET)
        func = kernel(mod)
        kernels[name] = func if "tirx.is_scheduled" in func.attrs else None
    return kernels


def record_lines(logs):
    return (logs / NAME / tuning_log.RECORDS).read_text().splitlines()


def test_compile_uses_the_best_record(logs):
    log = tuning_log.read_log(logs / NAME)
    assert not log.broken
    assert len(log.records) == len(CASES)
    for case in CASES.values():
        mod = emit_operator(case, 1, TARGET)
        workload = tuning_log.workload_module(kernel(mod))
        trace = log.records[tuning_log.workload_hash(workload)][0].trace
        tile = space.tile_of_trace(trace, TARGET)
        expected = s_tir.Schedule(workload)
        schedule_linear(expected, TARGET, tile)
        default = s_tir.Schedule(workload)
        schedule_linear(default, TARGET)
        actual = kernel(tuning_log.apply_tuned_schedules(mod, TARGET))
        assert "tirx.is_scheduled" in actual.attrs
        assert structural_equal(actual.body, expected.mod["main"].body, map_free_vars=True)
        assert not structural_equal(actual.body, default.mod["main"].body, map_free_vars=True)


def test_tuned_code_is_bit_exact(logs):
    rng = np.random.default_rng(5)
    for case in CASES.values():
        machine = relax.VirtualMachine(build(emit_operator(case, 1, TARGET), TARGET), tvm.cpu())
        for extreme in (False, True):
            inputs = case.inputs(rng, 1, extreme)
            actual = machine["main"](*map(tvm.runtime.tensor, inputs)).numpy()
            expected = integer_ops.execute(case.node, inputs)
            np.testing.assert_array_equal(actual, expected, strict=True)


def test_same_log_same_schedule(logs):
    first, second = tuned_kernels(), tuned_kernels()
    assert all(structural_equal(first[name], second[name]) for name in CASES)


def test_what_was_emitted_is_left_alone(logs):
    for case in CASES.values():
        mod = emit_operator(case, 1, TARGET)
        tuning_log.apply_tuned_schedules(mod, TARGET)
        assert structural_equal(mod, emit_operator(case, 1, TARGET), map_free_vars=True)


def test_tvm_reads_the_log(logs):
    files = [str(logs / NAME / name) for name in (tuning_log.WORKLOADS, tuning_log.RECORDS)]
    database = ms.database.JSONDatabase(*files)
    for case in CASES.values():
        workload = tuning_log.workload_module(kernel(emit_operator(case, 1, TARGET)))
        record = database.query_tuning_record(workload, TARGET, "main")
        best = tuning_log.read_log(logs / NAME).records[tuning_log.workload_hash(workload)][0]
        assert float(record.run_secs[0]) == pytest.approx(best.seconds)


def test_broken_lines_are_skipped_with_one_warning(logs, caplog):
    path = logs / NAME / tuning_log.RECORDS
    lines = record_lines(logs)
    path.write_text("\n".join(["{half a li", *lines, "[7,[[],[1.0]]]", "[0]", lines[0][:-9]]))
    with caplog.at_level(logging.WARNING):
        assert all(tuned_kernels().values())
    assert [record.getMessage() for record in caplog.records] == [
        f"{logs / NAME}: 4 broken lines are skipped"
    ]


def test_broken_workload_keeps_the_others(logs):
    path = logs / NAME / tuning_log.WORKLOADS
    lines = path.read_text().splitlines()
    path.write_text("\n".join(["\x00torn", *lines[1:]]))
    assert sorted(func is None for func in tuned_kernels().values()) == [False, True]


def test_forgotten_records(logs):
    (forgotten, _), *others = tuning_log.read_log(logs / NAME).records.items()
    store = Store(logs / NAME, TARGET)
    store.forget([forgotten])
    store.close()
    log = tuning_log.read_log(logs / NAME)
    assert not log.broken
    assert list(log.records.items()) == others
    assert sorted(func is None for func in tuned_kernels().values()) == [False, True]


def test_what_was_forgotten_is_not_tried_again(logs):
    store = Store(logs / NAME, TARGET)
    store.forget(list(store.log.records))
    store.close()
    journal = (logs / NAME / JOURNAL).read_text()
    tune_small(logs / NAME, 12)
    assert (logs / NAME / JOURNAL).read_text() == journal
    assert not tuning_log.read_log(logs / NAME).records


def test_record_that_does_not_apply_falls_back(logs, caplog):
    path = logs / NAME / tuning_log.RECORDS
    path.write_text("\n".join(record_lines(logs)).replace('"acc"', '"no such block"'))
    assert not any(tuned_kernels().values())
    assert "does not apply" in caplog.text


@pytest.mark.parametrize(("key", "value"), [("tvm", "0.1"), ("definitions", "x"), ("features", [])])
def test_foreign_log_is_not_used(logs, caplog, key, value):
    path = logs / NAME / tuning_log.FINGERPRINT
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with caplog.at_level(logging.WARNING):
        assert not any(tuned_kernels().values())
    (warning,) = caplog.records
    assert f"other {key}" in warning.getMessage()
    with pytest.raises(IntswinError, match=f"other {key}.*--move-aside"):
        Store(logs / NAME, TARGET)
    store = Store(logs / NAME, TARGET, move_aside=True)
    store.close()
    assert not store.log.records
    old = logs / f"{NAME}.old1"
    assert tuning_log.read_log(old).records
    assert tuning_log.stored_fingerprint(old)[key] == value


def test_fingerprint_tells_targets_apart():
    fingerprints = [tuning_log.fingerprint(get_target(name)) for name in TARGETS]
    for other in fingerprints[1:]:
        assert tuning_log.differences(fingerprints[0], other)
    assert not tuning_log.differences(fingerprints[0], tuning_log.fingerprint(TARGET))


def test_no_logs_no_warning(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv(tuning_log.FOLDERS_VARIABLE, str(tmp_path))
    assert not any(tuned_kernels().values())
    assert not caplog.records


_EPILOGUES = {
    "relu": {"zero_point": 0},
    "igelu": {"activation": "igelu"},
    "shiftgelu": {"activation": "shiftgelu"},
    "residual": {"out": "i16", "residual": True},
}


@pytest.mark.parametrize("epilogue", _EPILOGUES)
@pytest.mark.parametrize("target_name", TARGETS)
def test_any_tile_is_bit_exact(target_name, epilogue):
    """Random tiles, for a matrix that is padded in every direction."""
    target = get_target(target_name)
    rng = np.random.default_rng(2)
    case = graphs.random_linear(rng, 17, 66, 90, **_EPILOGUES[epilogue])
    mod = emit_operator(case, 2, target)
    (gvar,) = (g for g, f in mod.functions.items() if isinstance(f, tirx.PrimFunc))
    inputs = case.inputs(rng, 2)
    expected = integer_ops.execute(case.node, inputs)
    tiles = set()
    for seed in (1, 2):
        schedule = s_tir.Schedule(tuning_log.workload_module(mod[gvar]), seed=seed)
        tiles.add(sample_linear(schedule))
        func = schedule.mod["main"].without_attr("global_symbol")
        sampled = tvm.IRModule(mod.functions, attrs=mod.attrs)
        sampled[gvar] = func.with_attr("tirx.is_scheduled", True)
        machine = relax.VirtualMachine(build(sampled, target), tvm.cpu())
        actual = machine["main"](*map(tvm.runtime.tensor, inputs)).numpy()
        np.testing.assert_array_equal(actual, expected, strict=True)
    assert len(tiles) == 2


@pytest.mark.parametrize("activation", ["relu", pytest.param("igelu", marks=pytest.mark.slow)])
@pytest.mark.parametrize("target_name", TARGETS)
def test_networks_with_the_packaged_logs(target_name, activation, monkeypatch):
    from intswin.compile import pipeline
    from intswin.compile.emit import emit
    from intswin.models import integer_reference

    packaged = tuning_log.folders()[-1]
    target = get_target(target_name)
    if not (packaged / tuning_log.log_name(target)).exists():
        pytest.skip("no log for this CPU")
    monkeypatch.setenv(tuning_log.FOLDERS_VARIABLE, str(packaged))
    options = pipeline.CompileOptions(activation=activation)
    network = pipeline.load_float_network(options)
    calibration = pipeline.load_calibration(options, network)
    graph = pipeline.quantize_network(options, network, calibration).graph
    mod = emit(graph, 1, target)
    tuned = tuning_log.apply_tuned_schedules(mod, target)
    assert any(not func.same_as(mod[gvar]) for gvar, func in tuned.functions.items())
    images = graphs.random_images(np.random.default_rng(0), graph, 1)
    machine = relax.VirtualMachine(build(mod, target), tvm.cpu())
    actual = machine["main"](tvm.runtime.tensor(images)).numpy()
    np.testing.assert_array_equal(actual, integer_reference.run(graph, images), strict=True)

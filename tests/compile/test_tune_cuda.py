"""Tuning for CUDA without a GPU: candidates are compiled; a stand-in says how fast they are."""

import dataclasses
import itertools
import time

import numpy as np
import pytest
import tvm
from rich.console import Console
from tvm import tirx
from tvm_ffi import structural_equal

import graphs
from cuda_emulator import emulate
from intswin.compile import tune, tuning_log
from intswin.compile.schedules.cuda_layer_norm_space import LayerNormTile
from intswin.compile.schedules.cuda_norm_attention_space import NormAttentionTile
from intswin.compile.schedules.cuda_norm_gemm_space import NormGemmTile
from intswin.compile.schedules.cuda_norm_mlp_space import NormMlpTile
from intswin.compile.targets import get_target
from intswin.compile.tuner import cuda_worker, space
from intswin.compile.tuner import machines as machines_module
from intswin.compile.tuner.cuda_data import random_problem
from intswin.compile.tuner.kernel_data import KernelSpec
from intswin.compile.tuner.search import propose
from intswin.compile.tuner.store import Store
from intswin.compile.tuner.tasks import extract_tasks
from intswin.compile.tuner.worker import WrongResultError
from intswin.models.errors import IntswinError
from norm_attention import random_norm_attention
from norm_linear import random_norm_linear
from norm_mlp import random_norm_mlp
from norm_msa import random_norm_msa
from operator_runner import emit_operator

H100, V100 = get_target("cuda-h100"), get_target("cuda-v100")
RNG = np.random.default_rng(0)
CASE = graphs.random_linear(RNG, 49, 64, 128, zero_point=0)
FORMS = {
    "relu": CASE,
    "residual": graphs.random_linear(RNG, 49, 128, 64, out="i16", residual=True),
    "igelu": graphs.random_linear(RNG, 7, 48, 40, activation="igelu"),
    "shiftgelu": graphs.random_linear(RNG, 7, 48, 40, activation="shiftgelu"),
    "odd": graphs.random_linear(RNG, 5, 6, 3, out="i32"),
}
ATTENTION = graphs.random_attention(RNG, 4, 20, 2, 32, patterns=2)
LAYER_NORM = graphs.random_layer_norm(RNG, 49, 96)
NORM_LINEAR, *_ = random_norm_linear(RNG, 49, 64, 128, zero_point=0)
NORM_ATTENTION, _ = random_norm_attention(RNG, 4, 20, 2, 64, patterns=2)
NORM_MLP, _ = random_norm_mlp(RNG, 20, 32, 64, zero_point=0)
NORM_MSA, _ = random_norm_msa(RNG, 4, 20, 2, patterns=2)
OTHERS = {
    "attention": ATTENTION,
    "no bias": graphs.random_attention(RNG, 1, 5, 1, 16, patterns=0),
    "layer_norm": LAYER_NORM,
    "merging": graphs.random_layer_norm(RNG, 5, 24, "i16", group=4),
}
FUSED = {
    "norm_linear igelu": random_norm_linear(RNG, 7, 32, 40, activation="igelu")[0],
    "norm_linear merging": random_norm_linear(RNG, 5, 24, 40, group=4, out="i16")[0],
    "norm_attention": NORM_ATTENTION,
    "norm_attention no bias": random_norm_attention(RNG, 1, 5, 1, 32, patterns=0)[0],
    "norm_msa": NORM_MSA,
    "norm_mlp": NORM_MLP,
    "norm_mlp igelu": random_norm_mlp(RNG, 7, 32, 64, activation="igelu")[0],
}


class FakeMachines:
    """A GPU on which larger libraries are slower, and the default is slowest."""

    def __init__(self):
        self.libraries = []

    def measure(self, spec, reference, candidates, give_up):
        assert spec.target
        return [self._seconds(path, reference) for path in candidates]

    def compare(self, spec, reference, candidates, rounds):
        return [self._seconds(path, reference) for path in candidates]

    def peak(self, target, folder):
        return 1e15

    def close(self):
        pass

    def _seconds(self, path, reference):
        data = open(path, "rb").read()
        assert b"\x7fELF" in data[4:]  # machine code of a GPU inside
        self.libraries.append(data)
        return 1e-3 if path == reference else len(data) * 1e-9


@pytest.fixture
def fake(monkeypatch):
    found = FakeMachines()
    monkeypatch.setattr(machines_module.Machines, "local", lambda _target: found)
    return found


def prim_func(mod):
    (func,) = [f for f in mod.functions.values() if isinstance(f, tirx.PrimFunc)]
    return func


def with_tile(mod, target, tile):
    """The kernel of an emitted operator."""
    described = tvm.IRModule({"main": prim_func(mod).with_attr("global_symbol", "main")})
    return space.finished(space.decide(described, target, tile), target)["main"]


def run(folder, case, target, trials):
    tasks = extract_tasks([(emit_operator(case, 2, target), 2)], target)
    store = Store(folder, target)
    try:
        options = tune.TuneOptions((), trials=trials)
        console = Console(highlight=False, width=120)
        tune.run_job(tasks, target, store, options, time.monotonic() + 300, console)
    finally:
        store.close()
    return tasks


@pytest.mark.parametrize(
    ("case", "target"),
    [
        pytest.param(CASE, H100, id="h100"),
        pytest.param(CASE, V100, id="v100", marks=pytest.mark.slow),
        pytest.param(ATTENTION, H100, id="attention", marks=pytest.mark.slow),
        pytest.param(LAYER_NORM, V100, id="layer_norm"),
    ],
)
def test_a_job_writes_records_that_compile_uses(tmp_path, fake, monkeypatch, case, target, capsys):
    folder = tmp_path / tuning_log.log_name(target)
    (task,) = run(folder, case, target, 4)
    log = tuning_log.read_log(folder)
    assert len((folder / "journal.jsonl").read_text().splitlines()) == 4
    assert not log.broken
    (records,) = log.records.values()
    best = space.tile_of_trace(records[0].trace, target)
    assert best != space.default_tile(task.shape)
    mod = emit_operator(case, 2, target)
    expected = with_tile(mod, target, best)
    monkeypatch.setenv(tuning_log.FOLDERS_VARIABLE, str(tmp_path))
    kernel = prim_func(tuning_log.apply_tuned_schedules(mod, target))
    assert "tirx.is_scheduled" in kernel.attrs
    assert structural_equal(kernel.body, expected.body, map_free_vars=True)
    # It goes on where it stopped: the journal is read, in the target's own kinds of tiles.
    before = len(fake.libraries)
    run(folder, case, target, 5)
    assert len((folder / "journal.jsonl").read_text().splitlines()) == 5
    assert len(fake.libraries) - before < 5
    assert "4/4" in capsys.readouterr().out


@pytest.mark.parametrize("target", [H100, V100], ids=["h100", "v100"])
@pytest.mark.parametrize("form", FORMS)
def test_random_problems_fit_what_the_kernel_computes(target, form):
    """The description of the kernel, run on the CPU, gives what the reference expects."""
    mod = emit_operator(FORMS[form], 3, target)
    workload = tuning_log.workload_module(prim_func(mod))
    spec = KernelSpec.of(workload["main"], target)
    library = tvm.tirx.build(workload, tvm.target.Target("llvm"))
    out = tvm.runtime.empty(*spec.arguments[-1])
    for seed in range(3):
        problem = random_problem(spec, np.random.default_rng(seed))
        library["main"](*map(tvm.runtime.tensor, problem.arguments), out)
        actual = out.numpy().reshape(-1, out.shape[-1])[problem.rows]
        assert np.array_equal(actual, problem.expected)
        assert len(np.unique(actual)) > 5


@pytest.mark.parametrize(
    ("case", "target"),
    [*itertools.product(OTHERS.values(), [H100, V100]), *((case, H100) for case in FUSED.values())],
    ids=[*(f"{form}-{of}" for form in OTHERS for of in ("h100", "v100")), *FUSED],
)
def test_random_problems_of_other_operators(case, target):
    """The default kernel, emulated, gives what the reference expects."""
    tasks = extract_tasks([(emit_operator(case, 3, target), 3)], target)
    if target is V100 and case.node.op == "attention":
        assert not tasks  # the kernel for dp4a has no space
        return
    (task,) = tasks
    kernel = space.finished(space.decide(task.module, target, None), target)
    for seed in range(3):
        problem = random_problem(task.spec, np.random.default_rng(seed))
        out = np.zeros(*task.spec.arguments[-1])
        emulate(kernel, target, [*problem.arguments, out])
        actual = out.reshape(-1, out.shape[-1])[problem.rows]
        assert np.array_equal(actual, problem.expected)
        assert len(np.unique(actual)) > 30


@pytest.mark.parametrize(
    ("case", "description", "operations"),
    [
        (CASE, "3x49x64 -> 128 u8", 2 * 147 * 64 * 128),
        (ATTENTION, "attention 3x4 windows of 20, 2 heads of 32", 2 * 2 * 12 * 2 * 20 * 20 * 32),
        (LAYER_NORM, "layer_norm 3x49x96 uint8", 8 * 147 * 96),
        (FUSED["norm_linear igelu"], "layer_norm, 3x7x32 -> 40 u8 igelu", 2 * 21 * 32 * 40),
        (FUSED["norm_linear merging"], "layer_norm, 3x5x96 -> 40 i16", 2 * 15 * 96 * 40),
        (
            NORM_ATTENTION,
            "layer_norm, qkv of 64 channels, attention 3x4 windows of 20, 2 heads",
            2 * 3 * 80 * 64 * 192 + 2 * 2 * 12 * 2 * 20 * 20 * 32,
        ),
        (
            NORM_MSA,
            "layer_norm, qkv of 64 channels, attention 3x4 windows of 20, 2 heads, projection",
            2 * 3 * 80 * 64 * (192 + 64) + 2 * 2 * 12 * 2 * 20 * 20 * 32,
        ),
        (NORM_MLP, "layer_norm, 3x20x32 -> 64 -> 32", 4 * 60 * 32 * 64),
        (FUSED["norm_mlp igelu"], "layer_norm, 3x7x32 -> 64 igelu -> 32", 4 * 21 * 32 * 64),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_a_task_is_called_and_has_to_do(case, description, operations):
    (task,) = extract_tasks([(emit_operator(case, 3, H100), 3)], H100)
    assert (task.spec.description, task.spec.operations) == (description, operations)


@pytest.mark.parametrize(
    ("case", "target", "tile", "in_code"),
    [
        (LAYER_NORM, V100, LayerNormTile(lanes=32, warps=1), True),
        (NORM_LINEAR, H100, NormGemmTile(16, 32, 32, 1, 1, 1, 2, 32), False),
        (NORM_ATTENTION, H100, NormAttentionTile(1, 1, 1, 4), False),
        (NORM_MSA, H100, NormAttentionTile(2, 1, 1, 4), False),
        (NORM_MLP, H100, NormMlpTile(16, 2, 1, 1, 1, 1, 1, 32, 1), False),
    ],
    ids=["layer_norm", "norm_linear", "norm_attention", "norm_msa", "norm_mlp"],
)
def test_a_record_serves_every_shift(tmp_path, monkeypatch, case, target, tile, in_code):
    """Layers that differ in it alone are one task; it is in the code or an argument."""
    mod = emit_operator(case, 2, target)
    tasks = extract_tasks([(mod, 2)], target)
    store = Store(tmp_path / tuning_log.log_name(target), target)
    assert tile != space.default_tile(tasks[0].shape)
    store.add_record(tasks[0], space.decide(tasks[0].module, target, tile), 1e-6)
    store.close()
    monkeypatch.setenv(tuning_log.FOLDERS_VARIABLE, str(tmp_path))
    attrs = {**case.node.attrs, "shift": case.node.attrs["shift"] + 3}
    other = graphs.Case(dataclasses.replace(case.node, attrs=attrs), case.specs)
    mods = [mod, emit_operator(other, 2, target)]
    assert [task.key for task in extract_tasks([(mods[1], 2)], target)] == [tasks[0].key]
    kernels = [prim_func(tuning_log.apply_tuned_schedules(mod, target)) for mod in mods]
    expected = [with_tile(mod, target, tile) for mod in mods]
    for kernel, right in zip(kernels, expected, strict=True):
        assert structural_equal(kernel.body, right.body, map_free_vars=True)
    same = structural_equal(*(kernel.body for kernel in kernels), map_free_vars=True)
    assert same is not in_code


def test_problems_of_many_images_are_a_sample():
    (task,) = extract_tasks([(emit_operator(LAYER_NORM, 500, H100), 500)], H100)
    problem = random_problem(task.spec, np.random.default_rng(0))
    images = problem.rows.reshape(-1, 49)[:, 0] // 49
    assert len(images) == len(set(images)) == 130
    assert (images[0], images[-1]) == (0, 499)
    assert problem.expected.shape == (130 * 49, 96)


def test_rows_of_large_problems_are_a_sample():
    mod = emit_operator(CASE, 60, H100)
    spec = KernelSpec.of(prim_func(mod), H100)
    rows = random_problem(spec, np.random.default_rng(0)).rows
    assert len(rows) == len(set(rows)) == 1024
    assert (rows[0], rows[-1]) == (0, 60 * 49 - 1)
    assert (np.diff(rows) > 0).all()


def test_one_wrong_number_is_found():
    expected = np.zeros((3, 1 << 20), np.int16)
    actual = expected.copy()
    cuda_worker._compare(actual, expected)
    actual[2, -1] = 1
    with pytest.raises(WrongResultError, match="1 of 3145728 numbers are wrong"):
        cuda_worker._compare(actual, expected)


@pytest.mark.parametrize(
    "case",
    [CASE, ATTENTION, LAYER_NORM, NORM_LINEAR, NORM_ATTENTION, NORM_MLP],
    ids=lambda case: case.node.op,
)
def test_proposals_are_of_the_space(case):
    (task,) = extract_tasks([(emit_operator(case, 2, H100), 2)], H100)
    tiles = propose(task.shape, {}, [], 12, seed=0)
    assert len(set(tiles)) == 12
    assert tiles[0] == space.default_tile(task.shape)
    for tile in tiles[1:]:
        made = {}
        for field in space.fields(task.shape):
            assert getattr(tile, field) in space.candidates(task.shape, field, made)
            made[field] = getattr(tile, field)
    assert space.tile(H100, list(vars(tiles[0]).values())) == tiles[0]
    with pytest.raises(TypeError, match="no tile has 1 decisions"):
        space.tile(H100, [1])


def test_without_a_gpu(monkeypatch):
    monkeypatch.setattr(
        machines_module.cuda_runtime, "check_runs_here", lambda _code: ("there is no GPU", "")
    )
    with pytest.raises(IntswinError, match="cannot be measured here: there is no GPU"):
        machines_module.Machines.local(H100)

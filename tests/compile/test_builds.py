"""Candidates built ahead: they are used, nothing else is built, and what is damaged is not used."""

import pytest
from tune_program import ONE_CASE, tune_small

from intswin.compile.targets import get_target
from intswin.compile.tune import TuneOptions
from intswin.compile.tuner import space, worker
from intswin.compile.tuner.builds import Builds
from intswin.compile.tuner.prepare import next_candidates
from intswin.compile.tuner.processes import Pool, WorkerError
from intswin.compile.tuner.search import propose
from intswin.compile.tuner.state import State
from intswin.compile.tuner.store import Store
from intswin.compile.tuner.tasks import extract_tasks
from intswin.models.errors import IntswinError
from operator_runner import emit_operator

TARGET = get_target("llvm")
PREPARED = 4


@pytest.fixture
def made(monkeypatch):
    """The arguments of all builds."""
    found, results = [], Pool.results

    def counted(self, seconds, function, arguments):
        arguments = list(arguments)
        if function is worker.build:
            found.extend(arguments)
        return results(self, seconds, function, arguments)

    monkeypatch.setattr(Pool, "results", counted)
    return found


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("builds")
    prepare(folder, folder / "log")
    return folder


@pytest.fixture
def builds(prepared, tmp_path):
    """A copy."""
    (source,) = prepared.glob("llvm-*")
    (tmp_path / "builds" / source.name).mkdir(parents=True)
    for path in source.iterdir():
        (tmp_path / "builds" / source.name / path.name).write_bytes(path.read_bytes())
    return tmp_path / "builds"


def prepare(folder, log):
    return tune_small(log, PREPARED, cases=ONE_CASE, builds=folder, prepare=True)


def tune_built(folder, log, trials=PREPARED, **options):
    return tune_small(log, trials, cases=ONE_CASE, builds=folder, **options)


def trials(log):
    store = Store(log, TARGET)
    store.close()
    (found,) = store.trials.values()
    return found


def files(folder):
    return sorted(folder.glob("*/*"))


def the_task(target=TARGET):
    (case,) = ONE_CASE.values()
    (task,) = extract_tasks([(emit_operator(case, 1, target), 1)], target)
    return task


def test_what_is_prepared_is_tried_first(builds, tmp_path, made):
    before = files(builds)
    assert len(before) == PREPARED
    tune_built(builds, tmp_path / "log")
    assert not made
    found = trials(tmp_path / "log")
    assert set(found) == set(Builds(builds, TARGET).tiles(the_task()))
    assert all(found.values())
    assert files(builds) == before
    # Then it goes on as without them.
    tune_built(builds, tmp_path / "log", PREPARED + 2)
    assert len(made) == 2
    assert len(trials(tmp_path / "log")) == PREPARED + 2


def test_preparing_goes_on_where_it_stopped(builds, tmp_path, made):
    lost = files(builds)[0]
    data = lost.read_bytes()
    lost.unlink()
    prepare(builds, tmp_path / "log")
    assert len(made) == 1
    assert lost.read_bytes() == data
    assert not (tmp_path / "log/journal.jsonl").exists()
    # The log knows what was tried: the next batch is prepared.
    tune_built(builds, tmp_path / "log")
    made.clear()
    tune_built(builds, tmp_path / "log", PREPARED + 3, prepare=True)
    assert len(files(builds)) >= PREPARED + 3
    assert {tile for _, _, tile, _ in made}.isdisjoint(trials(tmp_path / "log"))


def test_nothing_else_is_built(builds, tmp_path, made, capsys):
    tune_built(builds, tmp_path / "log", 20, built_only=True)
    assert not made
    assert len(trials(tmp_path / "log")) == PREPARED
    assert "every tile was tried" in capsys.readouterr().out


def test_a_damaged_file_is_not_used(builds, tmp_path, made, capsys):
    task = the_task()
    damaged = Builds(builds, TARGET)
    tile = damaged.tiles(task)[-1]
    path = damaged.get(task, tile)
    with open(path, "r+b") as file:
        file.truncate(1000)
    tune_built(builds, tmp_path / "log", built_only=True)
    assert set(trials(tmp_path / "log")) == set(damaged.tiles(task)) - {tile}
    assert "1 broken files are not used" in " ".join(capsys.readouterr().out.split())
    prepare(builds, tmp_path / "other log")
    assert [arguments[2] for arguments in made] == [tile]
    assert not Builds(builds, TARGET).broken


def test_failures_are_remembered(builds, tmp_path, made):
    task, known = the_task(), Builds(builds, TARGET)
    tile = next(
        tile
        for rows in space.candidates(task.shape, space.fields(task.shape)[0], {})
        if (tile := _first_tile(task.shape, rows)) not in known.tiles(task)
    )
    known.add(task, tile, WorkerError("too many registers"))
    tune_built(builds, tmp_path / "log", 20, built_only=True)
    assert not made
    assert trials(tmp_path / "log")[tile] is None
    assert "not built: too many registers" in (tmp_path / "log/journal.jsonl").read_text()


def test_without_the_default_nothing_is_compared(builds, tmp_path, made, capsys):
    task = the_task()
    library = Builds(builds, TARGET).get(task, space.default_tile(task.shape))
    next(path for path in files(builds) if str(path) == library).unlink()
    tune_built(builds, tmp_path / "log", built_only=True)
    assert not made
    assert not (tmp_path / "log/journal.jsonl").exists()
    assert "is not built" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["llvm-aarch64", "cuda-h100"])
def test_builds_of_another_target_are_not_taken(builds, name):
    target = get_target(name)
    other, task = Builds(builds, target), the_task(target)
    assert not other.tiles(task)
    assert other.get(task, space.default_tile(task.shape)) is None
    with pytest.raises(IntswinError, match=f"no builds of this version for .*{name[:4]}"):
        other.check_any()


def test_options():
    with pytest.raises(IntswinError, match="need a folder: --builds FOLDER"):
        TuneOptions((), built_only=True)
    with pytest.raises(IntswinError, match="use 1 or more"):
        TuneOptions((), jobs=0)


def _first_tile(shape, first):
    made = {}
    for field in space.fields(shape):
        made[field] = min(space.candidates(shape, field, made)) if made else first
    return space.decided(shape, made)


def test_what_is_best_for_the_same_matrix_is_built_ahead(tmp_path):
    (case,) = ONE_CASE.values()
    mods = [(emit_operator(case, batch, TARGET), batch) for batch in (1, 3)]
    tasks = extract_tasks(mods, TARGET)
    best = propose(tasks[0].shape, {}, [], 9, seed=5)[-1]
    store = Store(tmp_path / "log", TARGET)
    builds = Builds(tmp_path / "builds", TARGET)

    def candidates():
        states = [State(task, TARGET, store, PREPARED) for task in tasks]
        return [t for state, t in next_candidates(states, builds, 0) if state is states[1]]

    assert best not in candidates()
    store.add_record(tasks[0], space.decide(tasks[0].module, TARGET, best), 1e-6)
    store.close()
    store = Store(tmp_path / "log", TARGET)
    assert best in candidates()
    store.close()

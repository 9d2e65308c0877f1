"""Table, plot and JSON of the rows that experiment_distill.py has done so far."""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import pyplot

from intswin.models.files import write_file

matplotlib.use("Agg")
COLUMNS = {
    "float_top1": "float top-1 %",
    "int8_top1": "int8 top-1 %, PTQ",
    "qat_int8_top1": "int8 top-1 %, QAT",
    "seconds": "training s",
}


def main() -> None:
    """Parse the flags and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("out/experiment_distill"))
    parser.add_argument("--results", type=Path, default=Path("docs/results"))
    arguments = parser.parse_args()
    print(write_results(arguments.work, arguments.results, []))


def write_results(work: Path, results: Path, order: list[str]) -> str:
    """Write JSON, table and plot of a work folder's rows; returns the table.

    Args:
        work: folder with a JSON file for each row and seed.
        results: folder to write distill_NETWORK.{json,md,png} to.
        order: names of rows, first ones first; others follow.
    """
    done = [json.loads(path.read_text()) for path in sorted(work.glob("*_[0-9]*.json"))]
    if not done:
        return "no row is done"
    rows = [name for name in order if any(fields["row"] == name for fields in done)]
    rows += sorted({fields["row"] for fields in done} - set(rows))
    done.sort(key=lambda fields: (rows.index(fields["row"]), fields["seed"]))
    results.mkdir(parents=True, exist_ok=True)
    stem = results / f"distill_{done[0]['run']['arguments']['network']}"
    write_file(stem.with_suffix(".json"), (json.dumps(done, indent=1) + "\n").encode())
    table = _table(done, rows)
    write_file(stem.with_suffix(".md"), table.encode())
    _plot(done, rows, stem.with_suffix(".png"))
    return table


def slug(row: str) -> str:
    """A row's name in file names."""
    return "".join(c if c.isalnum() else "-" for c in row)


def _mean_and_spread(values: list[float]) -> str:
    if not values:
        return "-"
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{spread}"


def _table(done: list[dict[str, Any]], rows: list[str]) -> str:
    lines = ["| row | seeds | " + " | ".join(COLUMNS.values()) + " |"]
    lines.append("|---" * (len(COLUMNS) + 2) + "|")
    for row in rows:
        own = [fields for fields in done if fields["row"] == row]
        cells = [_mean_and_spread([f[c] for f in own if c in f]) for c in COLUMNS]
        lines.append(f"| {row} | {len(own)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + f"\n\nMean over seeds ± standard deviation. {_where(done)}.\n"


def _where(done: list[dict[str, Any]]) -> str:
    """On what the rows were made; which ones, if not all on the same."""
    machines: dict[str, list[str]] = {}
    for fields in done:
        run = fields["run"]
        rows = machines.setdefault(f"{run['device']}, torch {run['torch']}, {run['date']}", [])
        if fields["row"] not in rows:
            rows.append(fields["row"])
    if len(machines) == 1:
        return next(iter(machines))
    return "; ".join(f"{machine}: {', '.join(rows)}" for machine, rows in machines.items())


def _plot(done: list[dict[str, Any]], rows: list[str], path: Path) -> None:
    figure, axis = pyplot.subplots(figsize=(8, 1 + 0.5 * len(rows)))
    for place, (column, marker) in enumerate(zip(list(COLUMNS)[:3], "osD", strict=True)):
        points = [(f[column], rows.index(f["row"])) for f in done if column in f]
        if points:
            x, y = zip(*points, strict=True)
            shifted = [v + 0.15 * (place - 1) for v in y]
            axis.plot(x, shifted, marker, label=COLUMNS[column], alpha=0.7)
    axis.set_yticks(range(len(rows)), rows)
    axis.invert_yaxis()
    axis.set_xlabel("top-1 %, one mark a seed")
    axis.grid(axis="x", alpha=0.3)
    axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


if __name__ == "__main__":
    main()

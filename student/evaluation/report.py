"""The numbers of an evaluation: a table on screen, metrics.json, and CSV tables."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

from distill.errors import InputError
from distill.files import write_durably
from student.evaluation.comparison import Comparison
from student.evaluation.verdict import measured, shown, words

Value = str | float | int | None
Rows = list[list[Value]]


def write_numbers(
    output: Path, results: dict[str, Any], keyframe_miou: dict[str, dict[str, float]], comparison: Comparison
) -> None:
    """Write metrics.json, summary.csv, per_class.csv, keyframes.csv and robustness.csv; print verdict and summary.

    Args:
        output: the folder.
        results: what `student.evaluation.main.Evaluation.run` returns, and `verdict` if there is one.
        keyframe_miou: source -> sample token -> mIoU.
        comparison: what was scored.

    Raises:
        InputError: something cannot be written.
    """
    summary, per_class = _summary(results), _per_class(results)
    tables = {"summary": summary, "per_class": per_class, "keyframes": _keyframes(keyframe_miou, comparison)}
    robustness = _robustness(results)
    if len(robustness) > 1:
        tables["robustness"] = robustness
    try:
        write_durably(output / "metrics.json", f"{json.dumps(results, indent=2)}\n".encode())
        for name, rows in tables.items():
            with open(output / f"{name}.csv", "w", newline="", encoding="utf-8") as stream:
                csv.writer(stream).writerows([[_text(value) for value in row] for row in rows])
    except OSError as error:
        raise InputError(f"{output}: cannot write here ({error}): choose another output=") from error
    if "verdict" in results:
        print("\n".join([*_verdict(results["verdict"]), ""]))
    iou = f"{results['scored']['convention']} IoU"
    by_class = [row[1:] for row in per_class if row[0] == iou]
    _print([["percent", *summary[0][1:]], *summary[1:], [iou, *summary[0][1:]], *by_class])
    print(_sentence(results))


def _verdict(verdict: dict[str, Any]) -> list[str]:
    """Its sentences and the classes below the control, plain ASCII: a terminal may know no more."""
    said = words(verdict, "{:+.2f}".format)
    rows = [
        f"  {'*' if shown(row) else ' '} {row['class'].ljust(22)}{measured(row, '{:+.2f}'.format)}  "
        f"(in {row['keyframes']} keyframes)"
        for row in verdict["worse"]
    ]
    title = ["below the control, IoU in points (* the interval does not hold 0):"] if rows else []
    return [*said["gains"], *said["remarks"], *title, *rows]


def _summary(results: dict[str, Any]) -> Rows:
    sources = results["sources"]
    names = list(dict.fromkeys(name for source in sources.values() for name in source["metrics"]))
    rows = [[name, *(source["metrics"].get(name) for source in sources.values())] for name in names]
    return [["metric", *sources], *rows]


def _per_class(results: dict[str, Any]) -> Rows:
    sources = results["sources"]
    metrics = list(dict.fromkeys(name for source in sources.values() for name in source["per_class"]))
    rows: Rows = [
        [metric, name, *(source["per_class"].get(metric, {}).get(name) for source in sources.values())]
        for metric in metrics
        for name in results["scored"]["classes"]
    ]
    return [["metric", "class", *sources], *rows]


def _keyframes(keyframe_miou: dict[str, dict[str, float]], comparison: Comparison) -> Rows:
    rows: Rows = [
        [keyframe.token, keyframe.scene, *(of[keyframe.token] for of in keyframe_miou.values())]
        for keyframe in comparison.labelled
    ]
    return [["token", "scene", *keyframe_miou], *rows]


def _robustness(results: dict[str, Any]) -> Rows:
    rows: Rows = [
        [name, row["condition"], row["miou"], row["geometric_iou"]]
        for name, source in results["sources"].items()
        for row in source.get("robustness", [])
    ]
    return [["source", "condition", "mIoU", "geometric IoU"], *rows]


def _print(rows: Rows) -> None:
    """The table, with differences against the first source behind the others' numbers."""
    texts = [[_text(row[0]), _text(row[1]), *(_compared(value, row[1]) for value in row[2:])] for row in rows]
    first, others = (max(len(cell) for row in texts for cell in row[part]) + 2 for part in (slice(1), slice(1, None)))
    for name, *cells in texts:
        print(name.ljust(first) + "".join(cell.rjust(others) for cell in cells))


def _compared(value: Value, first: Value) -> str:
    if not (isinstance(value, float) and isinstance(first, float)):
        return _text(value)
    return f"{_text(value)} ({value - first:+.2f})"


def _text(value: Value) -> str:
    """Two decimals; nothing for a number that does not exist."""
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.2f}"
    return "" if value is None else str(value)


def _sentence(results: dict[str, Any]) -> str:
    scored = results["scored"]
    sources = ", ".join(
        f"{name} = {source['facts'].get('weights', '')} {source['kind']} {source['path']}".replace("=  ", "= ")
        for name, source in results["sources"].items()
    )
    unlabelled = f" ({scored['unlabelled']} more have no labels)" if scored["unlabelled"] else ""
    return (
        f"{scored['keyframes']} keyframes of {scored['data']} {scored['split']}{unlabelled}, {scored['voxels']}, code "
        f"{scored['code']}; {sources}"
    )

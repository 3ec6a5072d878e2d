"""The numbers of metrics.json in the order and words in which the page shows them.

Every function takes the `sources` of metrics.json (`verdict` takes its namesake) and returns what the template walks
over; [] or {} leaves its section out. A number that a source does not have is None.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

from student.evaluation.verdict import measured, shown, words

Sources = dict[str, dict[str, Any]]


class Group(NamedTuple):
    """Metrics that belong together.

    Attributes:
        title: above them.
        note: how they are to be read.
        starts: how their names start; () takes what no other group does.
        high_is_better: else low is.
    """

    title: str
    note: str
    starts: tuple[str, ...]
    high_is_better: bool


GROUPS = (
    Group(
        "Voxels",
        "Conventions average different classes over different voxels: read along a row, never across rows. Occurring: "
        "over the classes in labels or predictions alone; labelled: over those in labels. Geometric: occupied against "
        "free.",
        (),
        True,
    ),
    Group("Rays", "Virtual LiDAR rays that end in the right class less than 1, 2 or 4 m off.", ("RayIoU",), True),
    Group(
        "Surfaces",
        "Occupied voxels, classes aside. Accuracy: predicted ones near a labelled one; completeness: the other way "
        "round.",
        ("F-score", "accuracy", "completeness"),
        True,
    ),
    Group("Calibration", "Mean gap between stated confidence and share of right voxels.", ("ECE",), False),
    Group(
        "Time", "Voxels whose prediction changes between keyframes although the label does not.", ("flicker",), False
    ),
)
COST = {  # key in metrics.json -> what it is called
    "parameters": "parameters",
    "gflop": "GFLOP per keyframe",
    "latency_ms": "latency, ms",
    "peak_memory_mb": "peak memory, MB",
    "device": "device",
    "precision": "precision",
    "image_size": "image size, rows × columns",
}
LARGEST_DOT = 3.2  # radius, in percent of the axis of a reliability diagram


def number(value: float | int | None) -> str:
    """Two decimals, or digits in groups of three for a count; "–" for None and NaN."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:.2f}".replace("-", "−")


def signed(value: float | None) -> str:
    """Two decimals with a sign; "" for None."""
    return (
        "" if value is None else f"{value:+.2f}".replace("-", "−").replace("+0.00", "±0.00").replace("−0.00", "±0.00")
    )


def fact(value: Any) -> str:
    """A JSON scalar or list in words."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(fact, value)) if isinstance(value, list) else str(value)


def difference(value: float | None, reference: float | None) -> float | None:
    """Value minus reference; None without one of them."""
    return None if value is None or reference is None else value - reference


def verdict(found: dict[str, Any] | None) -> dict[str, Any]:
    """Sentences on the gains, each with its row; rows of the classes below the control; and how far that goes.

    Both have the gain and its interval in `text`, whether that is `shown`, and the `line` that draws it.
    """
    if found is None:
        return {}
    said = words(found, signed)
    gains = [line | {"words": text} for line, text in zip(_lines(found["gains"].values()), said["gains"], strict=True)]
    worse = [
        line | {"class": row["class"], "keyframes": row["keyframes"]}
        for line, row in zip(_lines(found["worse"]), found["worse"], strict=True)
    ]
    return {"gains": gains, "worse": worse, "remarks": said["remarks"]}


def _lines(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """`line`: the ends of the interval about the gain in percent of an axis that is as long to both sides of 0."""
    lines = [(row, row["interval"] or [row["gain"]] * 2) for row in rows]
    reach = max((abs(end) for _, ends in lines for end in ends), default=0.0) or 1.0
    return [
        {
            "text": measured(row, signed),
            "shown": shown(row),
            "better": row["gain"] > 0,
            "line": [50 + 50 * value / reach for value in (low, row["gain"], high)],
        }
        for row, (low, high) in lines
    ]


def headline(sources: Sources) -> list[dict[str, Any]]:
    """Groups of rows: one metric each, with a cell for each source."""
    names = _union(source["metrics"] for source in sources.values())
    rows: dict[Group, list[dict[str, Any]]] = {group: [] for group in GROUPS}
    for name in names:
        group = next((group for group in GROUPS[1:] if name.startswith(group.starts)), GROUPS[0])
        values = [source["metrics"].get(name) for source in sources.values()]
        is_count = all(value is None or isinstance(value, int) for value in values)
        better = None if is_count else group.high_is_better
        rows[group].append({"name": name, "better_high": better, "cells": _cells(values, better)})
    return [{"title": group.title, "note": group.note, "rows": found} for group, found in rows.items() if found]


def _cells(values: list[Any], better_high: bool | None) -> list[dict[str, Any]]:
    """Value, difference against the first, whether that is better, whether it is the best of several."""
    known = [value for value in values if value is not None]
    best = None if better_high is None or len(known) < 2 else (max if better_high else min)(known)
    cells = []
    for place, value in enumerate(values):
        change = None if place == 0 or better_high is None else difference(value, values[0])
        better = None if change is None or round(change, 2) == 0 else (change > 0) == better_high
        cells.append({"value": value, "change": change, "better": better, "best": value is not None and value == best})
    return cells


def per_class(sources: Sources, convention: str) -> dict[str, Any]:
    """`bars`: IoU of each class by source, of one convention; `columns`: everything there is.

    A column has a name and one list of values for each source, or a single one where all sources have the same.
    """
    names = _union(source["per_class"] for source in sources.values())
    classes = _union(source["per_class"].get(name, {}) for name in names for source in sources.values())
    columns = []
    for name in names:
        tables = [[source["per_class"].get(name, {}).get(label) for label in classes] for source in sources.values()]
        shared = len(tables) > 1 and name == "labelled voxels" and all(table == tables[0] for table in tables)
        columns.append({"name": name, "tables": tables[:1] if shared else tables})
    shown = f"{convention} IoU"
    bars = {label: [source["per_class"][shown].get(label) for source in sources.values()] for label in classes}
    return {"metric": shown, "bars": bars, "classes": classes, "columns": columns}


def bands(sources: Sources) -> list[dict[str, Any]]:
    """Tables, "distance" and "height", of bands with mIoU and geometric IoU of each source.

    Voxels are those of the first source: all are scored on the same ones.
    """
    first = next(iter(sources.values()))["bands"]
    tables = []
    for name, table in first.items():
        rows = [
            {
                "label": label,
                "voxels": table["voxels"][place],
                "values": [
                    [source["bands"][name][metric][place] for metric in ("mIoU", "geometric IoU")]
                    for source in sources.values()
                ],
            }
            for place, label in enumerate(table["labels"])
        ]
        tables.append({"name": name, "rows": rows})
    return tables


def confusion(sources: Sources, classes: list[str]) -> list[list[dict[str, Any]]]:
    """For each source rows, one for each label, with voxels and percent of the row for each prediction."""
    matrices = []
    for source in sources.values():
        rows = []
        for label, counts in zip(classes, source["confusion"], strict=True):
            total = sum(counts)
            cells = [{"voxels": count, "percent": 100.0 * count / total if total else None} for count in counts]
            rows.append({"label": label, "total": total, "cells": cells})
        matrices.append(rows)
    return matrices


def reliability(sources: Sources) -> list[dict[str, Any]]:
    """Diagrams, "all" and "occupied": for each source that has one its curve of dots and its ECE.

    A dot has confidence and accuracy in percent, voxels, and a radius whose square grows with them.
    """
    curves = {name: source["reliability"] for name, source in sources.items() if "reliability" in source}
    diagrams = []
    for kind, error in (("all", "ECE"), ("occupied", "ECE occupied")):
        lines = []
        for place, (name, source) in enumerate(sources.items()):
            if name in curves:
                lines.append(
                    {"source": place, "name": name, "ece": source["metrics"].get(error)} | _dots(curves[name][kind])
                )
        if lines:
            diagrams.append({"kind": kind, "lines": lines})
    return diagrams


def _dots(curve: dict[str, list[Any]]) -> dict[str, Any]:
    bins = [
        {"confidence": confidence, "accuracy": accuracy, "voxels": voxels}
        for confidence, accuracy, voxels in zip(curve["confidence"], curve["accuracy"], curve["voxels"], strict=True)
    ]
    most = max([1, *curve["voxels"]])
    dots = [dot | {"radius": max(0.7, LARGEST_DOT * math.sqrt(dot["voxels"] / most))} for dot in bins if dot["voxels"]]
    return {"dots": dots}


def cost(sources: Sources) -> dict[str, Any]:
    """`names` of the sources that have a cost, and `rows` of what it is made of."""
    known = {name: source["cost"] for name, source in sources.items() if "cost" in source}
    places = [place for place, name in enumerate(sources) if name in known]
    rows = [
        {"name": title, "cells": [_cost_cell(key, of.get(key)) for of in known.values()]} for key, title in COST.items()
    ]
    return {"places": places, "rows": rows} if known else {}


def _cost_cell(key: str, value: Any) -> str:
    if key == "latency_ms" and value is not None:
        return f"{number(value['median'])} median, {number(value['p95'])} p95 of {value['runs']} runs"
    if key == "image_size" and value is not None:
        return " × ".join(map(str, value))
    return value if isinstance(value, str) else number(value)


def robustness(sources: Sources) -> list[dict[str, Any]]:
    """Conditions, and for each source that has any its mIoU, the difference to its clean one, and geometric IoU."""
    tables = {
        place: {row["condition"]: row for row in source["robustness"]}
        for place, source in enumerate(sources.values())
        if "robustness" in source
    }
    return [
        {"condition": name, "lines": [_robustness_line(place, table, name) for place, table in tables.items()]}
        for name in _union(tables.values())
    ]


def _robustness_line(place: int, table: dict[str, dict[str, Any]], condition: str) -> dict[str, Any]:
    miou, clean = (table.get(name, {}).get("miou") for name in (condition, "clean"))
    return {
        "source": place,
        "miou": miou,
        "change": None if condition == "clean" else difference(miou, clean),
        "geometric_iou": table.get(condition, {}).get("geometric_iou"),
    }


def _union(tables: Any) -> list[str]:
    """The keys of several dicts, in the order of their first appearance."""
    return list(dict.fromkeys(key for table in tables for key in table))

"""The page of a study of distillation: what pays, forests of gains, curves, IoU by class; it needs no network.

`distillation_page.html` is its jinja2 template. Drawings are SVG, in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from distillation_report import METRICS, foot, gained, heading, rows
from jinja2 import Environment, StrictUndefined

LETTER = 6.8  # width of a letter at most, of 12 pixels
ROW, PANEL = 24, 210  # height of an arm and width of a metric in a forest
WIDTH, HEIGHT = 440, 250  # of the area of a chart
COLOURS = 6
Scale = Callable[[float], float]


class Point(NamedTuple):
    """Of a line, with its interval, if it has one."""

    x: float
    y: float
    interval: list[float] | None = None


def page(told: dict[str, Any]) -> str:
    """The whole page of what `distillation_report.report` returns."""
    template = Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    comparisons = list(told["comparisons"].values())
    return environment.from_string(template).render(
        made=told["made"],
        leads=[lead(each, budget, found) for each in comparisons for budget, found in each["budgets"].items()],
        comparisons=[_comparison(each, told) for each in comparisons if each["budgets"]],
        by_labels=_by_kind(told["by labels"], "labelled keyframes"),
        by_latency=_by_kind(told["by latency"], "ms a keyframe, ONNX Runtime, one thread"),
        foot=foot(told),
    )


def lead(comparison: dict[str, Any], budget: str, found: dict[str, Any]) -> str:
    """What pays, in one sentence: the arm that gains the most mIoU, and what it costs the other metrics."""
    arms = {arm: entry for arm, entry in found["arms"].items() if arm != comparison["control"]}
    arms = {arm: entry for arm, entry in arms.items() if arm != comparison["ceiling"]} or arms
    best, entry = max(arms.items(), key=lambda arm: arm[1]["gain"]["mIoU"])
    ends, gain = entry["interval"]["mIoU"], f"{gained(entry, 'mIoU')} mIoU over {comparison['control']}"
    if ends is None:
        said = f"{best} is first, {gain}"
    elif ends[0] > 0:
        said = f"{best} pays: {gain}"
    else:
        said = f"nothing is shown to pay; {best} comes first, {gain}"
    share = entry["share of the gap to the ceiling"]
    if share is not None and share["share"] is not None:
        said += f", {share['share']:.0%} of the gap to {comparison['ceiling']}"
    others = "; ".join(_other(entry, metric) for metric in METRICS[1:])
    return f"{heading(comparison, budget, found)}: {said}; {others}."


def _other(entry: dict[str, Any], metric: str) -> str:
    verb = {"better": "gains", "worse": "loses", "open": "shows no difference,"}[_verdict(entry, metric)]
    return f"{metric} {'goes' if entry['interval'][metric] is None else verb} {gained(entry, metric)}"


def _verdict(entry: dict[str, Any], metric: str) -> str:
    ends = entry["interval"][metric]
    if ends is None or ends[0] <= 0 <= ends[1]:
        return "open"
    return "better" if ends[0] > 0 else "worse"


def _comparison(comparison: dict[str, Any], told: dict[str, Any]) -> dict[str, Any]:
    """As the template takes it."""
    return {
        "title": comparison["title"],
        "budgets": [_budget(comparison, budget, told) for budget in comparison["budgets"]],
        "by_steps": _by_steps(comparison),
    }


def _budget(comparison: dict[str, Any], budget: str, told: dict[str, Any]) -> dict[str, Any]:
    found = comparison["budgets"][budget]
    lines = {arm: [Point(*point) for point in told["curves"][budget][arm]] for arm in found["arms"]}
    return {
        "title": heading(comparison, budget, found),
        "control": comparison["control"],
        "table": rows(comparison, found, told["cost"]),
        "forest": forest(comparison, found),
        "curve": chart(lines, _order(comparison), "steps", "validation mIoU, %"),
        "classes": list(found["arms"][comparison["control"]]["per class"]),
        "by_class": {arm: _by_class(entry) for arm, entry in found["arms"].items()},
    }


def _by_class(entry: dict[str, Any]) -> list[dict[str, str]]:
    """IoU of each class, marked where it is less than the control's."""
    return [
        {
            "iou": "" if iou is None else f"{iou:.1f}",
            "mark": "unlearnt" if name in entry["unlearnt"] else "worse" if name in entry["worse"] else "",
        }
        for name, iou in entry["per class"].items()
    ]


def _by_steps(comparison: dict[str, Any]) -> str:
    """Gain over steps, if there are several budgets."""
    lines: dict[str, list[Point]] = {}
    for found in comparison["budgets"].values():
        for arm, entry in found["arms"].items():
            if arm != comparison["control"]:
                point = Point(found["steps"], entry["gain"]["mIoU"], entry["interval"]["mIoU"])
                lines.setdefault(arm, []).append(point)
    several = len(comparison["budgets"]) > 1
    gain = f"mIoU gain over {comparison['control']}"
    return chart(lines, _order(comparison), "steps of training", gain) if several else ""


def _order(comparison: dict[str, Any]) -> list[str]:
    """Its arms, for one colour each at all budgets."""
    return list(dict.fromkeys(arm for found in comparison["budgets"].values() for arm in found["arms"]))


def _by_kind(found: dict[str, dict[str, list[list[float]]]], across: str) -> dict[str, str]:
    """Drawings of mIoU, a line a kind, of the budgets that have any."""
    drawings = {}
    for budget, kinds in found.items():
        lines = {kind: [Point(*point) for point in points] for kind, points in kinds.items()}
        drawings[budget] = chart(lines, list(lines), across, "mIoU, %")
    return {budget: drawing for budget, drawing in drawings.items() if drawing}


def ticks(low: float, high: float) -> list[float]:
    """Round numbers, 4 to 10, from `low` or less to `high` or more."""
    rough = max(high - low, 1e-6) / 5
    unit = 10 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [each * step for each in range(first, max(last, first + 1) + 1)]


def number(value: float) -> str:
    """A tick's, as short as it goes."""
    return f"{round(value, 6):g}"


def text(x: float, y: float, said: str, anchor: str = "start", more: str = "") -> str:
    """One line; `y` is its middle."""
    return f'<text x="{x:.1f}" y="{y + 4:.1f}" text-anchor="{anchor}"{more}>{escape(said)}</text>'


def line(x: float, y: float, x_end: float, y_end: float, kind: str) -> str:
    """A straight one, of a class of the style sheet."""
    return f'<line class="{kind}" x1="{x:.1f}" y1="{y:.1f}" x2="{x_end:.1f}" y2="{y_end:.1f}"/>'


def svg(width: float, height: float, parts: list[str], said: str) -> str:
    """A drawing with its name for those who do not see it."""
    size = f'width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}"'
    return f'<svg role="img" aria-label="{escape(said)}" {size}>{"".join(parts)}</svg>'


def forest(comparison: dict[str, Any], found: dict[str, Any]) -> str:
    """Gains of all arms over the control, a panel a metric: mean, interval, and small dots of several seeds."""
    arms = [arm for arm in found["arms"] if arm != comparison["control"]]
    left, bottom = 12 + LETTER * max(map(len, arms)), 24 + ROW * len(arms)
    middles = {arm: 24 + ROW * (row + 0.5) for row, arm in enumerate(arms)}
    parts = [text(0, y, arm) for arm, y in middles.items()]
    for place, metric in enumerate(METRICS):
        parts += _panel(comparison["control"], found["arms"], metric, left + 20 + (PANEL + 50) * place, middles)
    width = left + (PANEL + 50) * len(METRICS)
    return svg(width, bottom + 24, parts, f"gains over {comparison['control']}")


def _panel(control: str, entries: dict[str, Any], metric: str, left: float, middles: dict[str, float]) -> list[str]:
    """The gains in one metric, of the arms of `middles`, each at its height."""
    shown = {arm: y for arm, y in middles.items() if entries[arm]["gain"][metric] is not None}
    seeds = {arm: _gains(entries[arm], entries[control], metric) for arm in shown}
    edges = [edge for arm in shown for edge in (*seeds[arm], *(entries[arm]["interval"][metric] or ()))]
    marks = ticks(min([0.0, *edges]), max([0.0, *edges]))
    bottom = 24 + ROW * len(middles)

    def x(value: float) -> float:
        return left + PANEL * (value - marks[0]) / (marks[-1] - marks[0])

    parts = [text(left, 8, f"{metric} gain")]
    for mark in marks:
        parts.append(line(x(mark), 20, x(mark), bottom, "zero" if abs(mark) < 1e-9 else "grid"))
        parts.append(text(x(mark), bottom + 14, number(mark), "middle"))
    for arm, y in shown.items():
        parts += _dot(arm, entries[arm], metric, seeds[arm], x, y)
    return parts


def _gains(entry: dict[str, Any], control: dict[str, Any], metric: str) -> list[float]:
    """Seed by seed."""
    base = dict(zip(control["seeds"], control["values"][metric], strict=True))
    return [value - base[seed] for seed, value in zip(entry["seeds"], entry["values"][metric], strict=True)]


def _dot(arm: str, entry: dict[str, Any], metric: str, seeds: list[float], x: Scale, y: float) -> list[str]:
    """The mean gain of an arm, its interval and its seeds."""
    ends, kind = entry["interval"][metric], _verdict(entry, metric)
    parts = [f"<g><title>{escape(f'{arm}: {gained(entry, metric)}')}</title>"]
    if ends is not None:
        parts.append(line(x(ends[0]), y, x(ends[1]), y, f"whisker {kind}"))
    if len(seeds) > 1:
        parts += [f'<circle class="seed" cx="{x(each):.1f}" cy="{y + 7:.1f}" r="2"/>' for each in seeds]
    shape = f"dot {'hollow' if ends is None else kind}"
    return [*parts, f'<circle class="{shape}" cx="{x(entry["gain"][metric]):.1f}" cy="{y:.1f}" r="4.5"/></g>']


def chart(lines: dict[str, list[Point]], order: list[str], across: str, upward: str) -> str:
    """Lines over a common axis, coloured by their place in `order`, with ticks, intervals and a key beside them."""
    points = [point for each in lines.values() for point in each]
    if not points:
        return ""
    edges = [0.0, *(edge for point in points for edge in (point.y, *(point.interval or ())))]
    x_marks, y_marks = ticks(0, max(point.x for point in points)), ticks(min(edges), max(edges))
    left, top, right, bottom = 56, 30, 56 + WIDTH, 30 + HEIGHT

    def x(value: float) -> float:
        return left + WIDTH * (value - x_marks[0]) / (x_marks[-1] - x_marks[0])

    def y(value: float) -> float:
        return bottom - HEIGHT * (value - y_marks[0]) / (y_marks[-1] - y_marks[0])

    parts = [text(0, 12, upward), text(right, bottom + 38, across, "end")]
    parts += [text(x(mark), bottom + 16, number(mark), "middle") for mark in x_marks]
    for mark in y_marks:
        parts.append(line(left, y(mark), right, y(mark), "zero" if abs(mark) < 1e-9 else "grid"))
        parts.append(text(left - 8, y(mark), number(mark), "end"))
    for place, (name, each) in enumerate(lines.items()):
        style = f"c{order.index(name) % COLOURS} d{order.index(name) // COLOURS}"
        aside = 4 * (place - (len(lines) - 1) / 2) if any(point.interval for point in points) else 0
        parts += _series(name, each, style, lambda value, aside=aside: x(value) + aside, y)
        parts += _key(name, style, right + 24, top + 8 + 20 * place)
    width = right + 60 + LETTER * max(map(len, lines))
    return svg(width, max(bottom + 50, top + 20 * len(lines)), parts, f"{upward} over {across}")


def _series(name: str, points: list[Point], style: str, x: Scale, y: Scale) -> list[str]:
    path = " ".join(f"{x(point.x):.1f},{y(point.y):.1f}" for point in points)
    parts = [f'<g><title>{escape(name)}</title><polyline class="{style}" points="{path}"/>']
    for point in points:
        if point.interval is not None:
            ends = [y(edge) for edge in point.interval]
            parts.append(line(x(point.x), ends[0], x(point.x), ends[1], f"thin {style}"))
        parts.append(f'<circle class="{style}" cx="{x(point.x):.1f}" cy="{y(point.y):.1f}" r="3"/>')
    return [*parts, "</g>"]


def _key(name: str, style: str, x: float, y: float) -> list[str]:
    return [f'<polyline class="{style}" points="{x},{y} {x + 24},{y}"/>', text(x + 32, y, name)]

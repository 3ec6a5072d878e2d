"""What a study of distillation has found: gains over a control, paired by seed, and tables of them.

Intervals are 95 % of a bootstrap over seeds and keyframes, the same ones for arm and control; one seed has none.

Letters: S seeds, K keyframes, C classes, D thresholds of RayIoU, M scores, N resamples, R shares of a gap.
"""

from __future__ import annotations

import datetime
import json
import math
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from distill.checkpoint import code_version
from distill.classes import ClassSet
from distill.metrics import conventions
from distill.metrics.bootstrap import Counts, Gain, Score, paired_bootstrap
from student.evaluation.cost import cpu_name
from student.evaluation.verdict import METRICS, occupancy_scores

RESAMPLES = 2000
LEARNT, LOST = 1.0, 0.05  # IoU, percent: a class that a control has learnt, and one that an arm has lost
SHARES_R = torch.linspace(-1, 2, 301, dtype=torch.float64)  # of a gap; an interval that ends here is not told
ANECDOTE = "one seed, an anecdote"
Run = tuple[str, str, int]  # budget, arm, seed


def run_folder(folder: Path, budget: str, arm: str, seed: int) -> Path:
    """Of a run in the folder of a study."""
    return folder / budget / f"{arm}-seed{seed}"


def planned(plan: DictConfig) -> list[Run]:
    """All runs of a plan."""
    return [
        (budget, arm, seed)
        for budget in plan.budgets
        for arm, told in plan.arms.items()
        if budget in told.get("budgets", plan.budgets)
        for seed in told.get("seeds", plan.seeds)
    ]


class Results:
    """What was counted so far.

    Args:
        folder: of the study.
        plan: of its YAML file.
        classes: of the counts.

    Attributes:
        done: run -> confusion (K, C, C), rays (K, C, C) and hits (K, D, C) of its keyframes.
        teachers: name -> the same.
    """

    def __init__(self, folder: Path, plan: DictConfig, classes: ClassSet) -> None:
        self.folder, self.plan, self.classes = folder, plan, classes
        self.score = occupancy_scores(classes)
        self.done = _read({run: run_folder(folder, *run) for run in planned(plan)})
        self.teachers = _read({name: folder / "teachers" / name for name in plan.teachers})

    def seeds(self, budget: str, *arms: str) -> list[int]:
        """Those with which all of some arms have run."""
        return [seed for seed in self.plan.seeds if all((budget, arm, seed) in self.done for arm in arms)]

    def counts(self, budget: str, arm: str, seeds: Sequence[int]) -> list[Counts]:
        """Of an arm's runs."""
        return [self.done[budget, arm, seed] for seed in seeds]

    def lines(self, budget: str, arm: str, seed: int) -> list[dict[str, Any]]:
        """What a run noted after each epoch."""
        text = (run_folder(self.folder, budget, arm, seed) / "metrics.jsonl").read_text()
        return [json.loads(line) for line in text.splitlines()]


def _read(folders: dict[Any, Path]) -> dict[Any, Counts]:
    """The `counts.npz` that there are."""
    found = {}
    for key, folder in folders.items():
        if (folder / "counts.npz").exists():
            with np.load(folder / "counts.npz") as file:
                found[key] = [torch.from_numpy(file[name]) for name in ("confusion", "rays", "hits")]
    return found


def score_all(counts: Counts, score: Score) -> Tensor:
    """Scores of all keyframes together, (M,)."""
    return score(*(each.sum(0, keepdim=True) for each in counts))[0]


def share_of_gap(
    arms: list[Counts], controls: list[Counts], ceilings: list[Counts], classes: ClassSet
) -> dict[str, Any]:
    """Which share of the mIoU between control and ceiling an arm gains, all paired by seed.

    The interval is Fieller's: the shares r, in steps of 0.01, for which gain - r * gap is not shown to differ from 0.
    Beside a ratio's own percentiles it knows when the gap is too small to divide by.

    Returns:
        "share", None where there is no gap; "interval", None where it does not end between -1 and 2, or of one seed.
    """
    convention = conventions(classes)[0]

    def left(*confusions_NCC: Tensor) -> Tensor:
        arm_N1, control_N1, ceiling_N1 = (convention.score(each).miou.unsqueeze(-1) for each in confusions_NCC)
        return (arm_N1 - control_N1) - SHARES_R * (ceiling_N1 - control_N1)

    seeds = zip(arms, controls, ceilings, strict=True)
    # a control's own gain is 0 of any gap: what is left of it is 0
    pairs = [((arm[0], control[0], ceiling[0]), (control[0],) * 3) for arm, control, ceiling in seeds]
    found = paired_bootstrap(pairs, left, resamples(len(arms)), 0)
    gain, rest = np.interp([0, 1], SHARES_R, found.gain_M)
    gap = gain - rest
    told = {"share": float(gain / gap) if gap > 0 else None, "interval": None}
    inside_R = (found.low_M <= 0) & (found.high_M >= 0)
    if len(arms) > 1 and gap > 0 and inside_R.any() and not inside_R[0] and not inside_R[-1]:
        told["interval"] = SHARES_R[inside_R][[0, -1]].tolist()
    return told


def resamples(seeds: int) -> int:
    """How many: one seed has no interval to draw for."""
    return RESAMPLES if seeds > 1 else 1


def compared(results: Results, told: DictConfig, budget: str) -> dict[str, Any] | None:
    """A comparison at a budget, JSON-ready; None before the control and one of its arms share a seed."""
    arms = dict.fromkeys([told.control, *told.arms, *([told.ceiling] if told.ceiling else [])])
    entries = {arm: entry for arm in arms if (entry := _entry(results, told, budget, arm)) is not None}
    if not entries.keys() & set(told.arms):
        return None
    first = entries[told.control]["seeds"][0]
    return {
        "steps": results.lines(budget, told.control, first)[-1]["step"],
        "keyframes": len(results.done[budget, told.control, first][0]),
        "teacher": _teacher(results, told),
        "arms": entries,
    }


def _teacher(results: Results, told: DictConfig) -> dict[str, float | None] | None:
    if told.teacher not in results.teachers:
        return None
    return _named(score_all(results.teachers[told.teacher], results.score))


def _entry(results: Results, told: DictConfig, budget: str, arm: str) -> dict[str, Any] | None:
    """An arm beside its control, over the seeds that both have."""
    seeds = results.seeds(budget, told.control, arm)
    if not seeds:
        return None
    own, control = (results.counts(budget, each, seeds) for each in (arm, told.control))
    found = paired_bootstrap(list(zip(own, control, strict=True)), results.score, resamples(len(seeds)), 0)
    values = [score_all(counts, results.score) for counts in own]
    entry = {
        "seeds": seeds,
        "mean": _named(found.value_M),
        "values": {name: [float(value[place]) for value in values] for place, name in enumerate(METRICS)},
        "gain": _named(found.gain_M),
        "interval": {name: _interval(found, place, seeds) for place, name in enumerate(METRICS)},
        "share of the gap to the teacher": _share(found, _teacher(results, told)),
        "share of the gap to the ceiling": None,
        "per class": {name: _number(found.value_M[len(METRICS) + at]) for at, name in enumerate(results.classes.names)},
        "unlearnt": unlearnt(found, results.classes),
        "worse": worse(found, seeds, results.classes),
    }
    if told.ceiling and arm not in (told.control, told.ceiling) and seeds == results.seeds(budget, arm, told.ceiling):
        ceiling = results.counts(budget, told.ceiling, seeds)
        entry["share of the gap to the ceiling"] = share_of_gap(own, control, ceiling, results.classes)
    return entry


def _number(value: Tensor) -> float | None:
    return None if value.isnan() else float(value)


def _named(values_M: Tensor) -> dict[str, float | None]:
    return {name: _number(value) for name, value in zip(METRICS, values_M[: len(METRICS)], strict=True)}


def _interval(found: Gain, place: int, seeds: Sequence[int]) -> list[float] | None:
    ends = [float(found.low_M[place]), float(found.high_M[place])]
    return None if len(seeds) == 1 or any(map(math.isnan, ends)) else ends


def _share(found: Gain, teacher: dict[str, float | None] | None) -> dict[str, float | None] | None:
    """Of the gap between control and teacher; None in metrics in which the teacher is not better."""
    if teacher is None:
        return None
    gaps = {name: (teacher[name] or 0.0) - float(found.control_M[place]) for place, name in enumerate(METRICS)}
    gains = _named(found.gain_M)
    return {name: gains[name] / gap if gap > 0 and gains[name] is not None else None for name, gap in gaps.items()}


def unlearnt(found: Gain, classes: ClassSet) -> list[str]:
    """Classes that the control knows and the arm no more, by their mean IoU over seeds."""
    own_C, control_C = found.value_M[len(METRICS) :], found.control_M[len(METRICS) :]
    return [classes.names[each] for each in classes.scored if own_C[each] < LOST and control_C[each] >= LEARNT]


def worse(found: Gain, seeds: Sequence[int], classes: ClassSet) -> dict[str, dict[str, Any]]:
    """Classes whose IoU is shown to be less than the control's, with gain and interval, the worst first."""
    rows = {
        classes.names[each]: {"gain": float(found.gain_M[len(METRICS) + each]), "interval": ends}
        for each in classes.scored
        if (ends := _interval(found, len(METRICS) + each, seeds)) is not None and ends[1] < 0
    }
    return dict(sorted(rows.items(), key=lambda row: row[1]["gain"]))


def curve(results: Results, budget: str, arm: str) -> list[list[float]]:
    """[step, validation mIoU] after each epoch, mean over seeds, on the keyframes that training looks at."""
    runs = [
        [[line["step"], line["val_miou"]] for line in results.lines(budget, arm, seed) if "val_miou" in line]
        for seed in results.seeds(budget, arm)
    ]
    return np.mean(runs, 0).tolist()


def by_kind(results: Results, budget: str, across: Callable[[DictConfig, str], float | None]) -> dict[str, list]:
    """Kind of arm -> [x, mean mIoU], of comparisons that have kinds; `across` says x of an arm there, if it has one."""
    found: dict[str, list[list[float]]] = {}
    for told in results.plan.comparisons.values():
        for kind, arm in (told.get("kinds") or {}).items():
            counts, x = results.counts(budget, arm, results.seeds(budget, arm)), across(told, arm)
            if counts and x is not None:
                values = [float(score_all(each, results.score)[0]) for each in counts]
                found.setdefault(kind, []).append([x, float(np.mean(values))])
    return {kind: sorted(points) for kind, points in found.items()}


def over_latency(plan: DictConfig) -> list[str]:
    """The arms whose latency is drawn: of comparisons that have kinds, and are not about numbers of labels."""
    kinds = [told.get("kinds") or {} for told in plan.comparisons.values() if "labelled" not in told]
    return [arm for each in kinds for arm in each.values()]


def report(results: Results, threads: int) -> dict[str, Any]:
    """All that `study.json` holds: what was compared, what is missing, and how it was made."""
    plan = results.plan
    cost, latency = (_json(results.folder / f"{name}.json") for name in ("cost", "latency"))
    ran = {budget: [arm for arm in plan.arms if results.seeds(budget, arm)] for budget in plan.budgets}
    comparisons = {}
    for name, told in plan.comparisons.items():
        found = {budget: compared(results, told, budget) for budget in plan.budgets}
        kept = {budget: each for budget, each in found.items() if each is not None}
        said = {key: told[key] for key in ("title", "control", "ceiling", "teacher")}
        comparisons[name] = {**said, "budgets": kept}
    return {
        "made": {
            "code": code_version(),
            "processor": cpu_name(),
            "cores": os.cpu_count(),
            "threads of a run": threads,
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "command": shlex.join(["python", *sys.argv]),
        },
        "resamples": RESAMPLES,
        "planned": len(planned(plan)),
        "missing": [list(run) for run in planned(plan) if run not in results.done],
        "missing teachers": [name for name in plan.teachers if name not in results.teachers],
        "cost": cost,
        "comparisons": comparisons,
        "curves": {budget: {arm: curve(results, budget, arm) for arm in arms} for budget, arms in ran.items()},
        "by labels": {each: by_kind(results, each, lambda told, _: told.get("labelled")) for each in plan.budgets},
        "by latency": {each: by_kind(results, each, lambda _, arm: latency.get(arm)) for each in plan.budgets},
    }


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


def tables(told: dict[str, Any], markdown: bool) -> str:
    """All comparisons, and what they go by, for a terminal or for a text in Markdown."""
    parts = [told["made"]["command"]]
    for comparison in told["comparisons"].values():
        for budget, found in comparison["budgets"].items():
            grid = rows(comparison, found, told["cost"])
            parts += [heading(comparison, budget, found), _markdown(grid) if markdown else _plain(grid)]
    if markdown:
        parts[0] = f"`{parts[0]}`"
    return "\n\n".join([*parts, *foot(told)]) + "\n"


def heading(comparison: dict[str, Any], budget: str, found: dict[str, Any]) -> str:
    """What a table is of."""
    return f"{comparison['title']}: {budget}, {found['steps']} steps"


def rows(comparison: dict[str, Any], found: dict[str, Any], cost: dict[str, float]) -> list[list[str]]:
    """The table of a comparison at a budget, its head first."""
    head = ["arm", "seeds", "mIoU", "gain [95 %]", "of the gap to ceiling", "of the gap to teacher"]
    head += ["geometric IoU gain", "RayIoU gain", "unlearnt classes", "cost"]
    grid = [head] + [_row(comparison, arm, entry, cost) for arm, entry in found["arms"].items()]
    if found["teacher"] is not None:
        grid.append([f"teacher {comparison['teacher']}", "", f"{found['teacher']['mIoU']:.2f}", *[""] * 7])
    shown = [at for at in range(len(head)) if at < 4 or any(line[at] for line in grid[1:])]
    return [[line[at] for at in shown] for line in grid]


def _row(comparison: dict[str, Any], arm: str, entry: dict[str, Any], cost: dict[str, float]) -> list[str]:
    control, both = comparison["control"], {arm, comparison["control"]} <= cost.keys()
    step = f"{cost[arm] / cost[control]:.2f} x" if both else ""
    first = [arm, str(len(entry["seeds"])), f"{entry['mean']['mIoU']:.2f}"]
    if arm == control:
        return [*first, "control", *["" for _ in range(5)], step]
    ceiling, teacher = entry["share of the gap to the ceiling"], entry["share of the gap to the teacher"]
    lost = ", ".join(name.replace("_", " ") for name in entry["unlearnt"])
    return [
        *first,
        gained(entry, "mIoU"),
        "ceiling" if arm == comparison["ceiling"] else _percent(ceiling),
        "" if teacher is None or teacher["mIoU"] is None else f"{teacher['mIoU']:.0%}",
        *(gained(entry, name) for name in METRICS[1:]),
        lost or "none",
        step,
    ]


def gained(entry: dict[str, Any], metric: str) -> str:
    """A gain and its interval, "+1.90 [+0.80, +3.00]"."""
    gain, ends = entry["gain"][metric], entry["interval"][metric]
    if gain is None:
        return "undefined"
    if ends is not None:
        return f"{gain:+.2f} [{ends[0]:+.2f}, {ends[1]:+.2f}]"
    return f"{gain:+.2f} ({ANECDOTE})" if len(entry["seeds"]) == 1 and metric == "mIoU" else f"{gain:+.2f}"


def _percent(share: dict[str, Any] | None) -> str:
    if share is None:
        return ""
    if share["share"] is None:
        return "no gap"
    ends = "" if share["interval"] is None else " [{:.0%}, {:.0%}]".format(*share["interval"])
    return f"{share['share']:.0%}{ends}"


def foot(told: dict[str, Any]) -> list[str]:
    """How the numbers are meant, what they lack, and who made them."""
    made = told["made"]
    meant = (
        "Means over seeds; gains are paired by seed. Intervals: 95 % of a bootstrap over seeds and keyframes, "
        f"{told['resamples']} resamples, the same ones for arm and control; a few seeds tell little of what others "
        "would do, and keyframes of a scene are alike, so that they are rather too narrow. "
        f"Unlearnt: IoU of {LEARNT:g} or more in the control, less than {LOST:g} in the arm. "
        "Cost: seconds of a training step over the control's."
    )
    host = f"{made['processor']}, {made['cores']} cores, {made['threads of a run']} threads a run"
    return [meant, _missing(told), f"{made['code']}; {host}; {made['date']}"]


def _missing(told: dict[str, Any]) -> str:
    if not told["missing"]:
        return f"All {told['planned']} runs are done."
    seeds: dict[str, list[str]] = {}
    for budget, arm, seed in told["missing"]:
        seeds.setdefault(f"{budget}/{arm}", []).append(str(seed))
    listed = "; ".join(f"{run} seed {', '.join(which)}" for run, which in seeds.items())
    return f"Not done yet: {len(told['missing'])} of {told['planned']} runs: {listed}."


def _plain(grid: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*grid, strict=True)]
    lines = [
        "  ".join(
            f"{cell:{'>' if at else '<'}{width}}" for at, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in grid
    ]
    return "\n".join(lines)


def _markdown(grid: list[list[str]]) -> str:
    lines = ["| " + " | ".join(line) + " |" for line in grid]
    return "\n".join([lines[0], "|---" * len(grid[0]) + "|", *lines[1:]])

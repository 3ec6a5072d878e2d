"""What distilling came to: a student against its control, on the same keyframes, with intervals.

Letters: K keyframes, N resamples, C classes, D thresholds of RayIoU, M scores.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from distill.classes import ClassSet
from distill.metrics.bootstrap import FEWEST, LEVEL, Counts, Gain, Score, paired_bootstrap
from distill.metrics.conventions import conventions
from distill.metrics.rays import ray_iou
from student.evaluation.control import Arms, unlike

METRICS = ("mIoU", "geometric IoU", "RayIoU")
RESAMPLES = 1000
LEARNT = 1.0  # IoU in percent: a class that the control has so much of was learnt by it
Signed = Callable[[float], str]


def occupancy_scores(classes: ClassSet) -> Score:
    """The numbers of `METRICS` and the IoU of each class, percent, of confusion, rays and hits as `RayIoU` has them."""
    convention = conventions(classes)[0]

    def score(confusion_NCC: Tensor, rays_NCC: Tensor, hits_NDC: Tensor) -> Tensor:
        voxels = convention.score(confusion_NCC)
        rays_N = ray_iou(rays_NCC, hits_NDC, classes)["RayIoU"]
        return torch.cat([torch.stack([voxels.miou, voxels.geometric_iou, rays_N], -1), voxels.per_class_iou], -1)

    return score


def verdict(
    arms: Arms, counts: Mapping[str, Counts], teacher: dict[str, float | None], classes: ClassSet
) -> dict[str, Any]:
    """What metrics.json says of it, JSON-ready, in percent.

    Args:
        arms: who is compared.
        counts: source -> confusion (K, C, C), rays (K, C, C) and hits (K, D, C) of the same keyframes.
        teacher: its numbers of `METRICS`; None where there is none.
        classes: the class set.

    Returns:
        `gains`: metric -> "gain", "interval" (None: too few keyframes) and "share of the gap" to the teacher (None:
        there is none, or it is not better than the control); `worse`: the same of the classes below the control, with
        the `keyframes` that have them, the worst first; `unlearnt`: classes that the control knows and the student no
        more; `not trained alike`; and of what this is said.
    """
    own, control = counts[arms.student.name], counts[arms.control.name]
    found = paired_bootstrap([(own, control)], occupancy_scores(classes), RESAMPLES, 0)
    seen_C = control[0].any(-1).sum(0).tolist()
    return {
        "student": arms.student.name,
        "control": arms.control.name,
        "teacher": None if arms.teacher is None else arms.teacher.name,
        "keyframes": len(own[0]),
        "resamples": RESAMPLES,
        "level": LEVEL,
        "steps": [source.checkpoint.facts["step"] for source in (arms.student, arms.control)],
        "not trained alike": unlike(arms.student.checkpoint, arms.control.checkpoint),
        "gains": {name: _gain(found, place, teacher) for place, name in enumerate(METRICS)},
        "worse": _worse(found, seen_C, classes),
        "unlearnt": _unlearnt(found, classes),
    }


def _gain(found: Gain, place: int, teacher: dict[str, float | None]) -> dict[str, Any]:
    gain, above = float(found.gain_M[place]), teacher[METRICS[place]]
    gap = 0.0 if above is None else above - float(found.control_M[place])
    return {"gain": gain, "interval": _interval(found, place), "share of the gap": gain / gap if gap > 0 else None}


def _interval(found: Gain, place: int) -> list[float] | None:
    ends = [float(found.low_M[place]), float(found.high_M[place])]
    return None if any(map(math.isnan, ends)) else ends


def _worse(found: Gain, seen_C: list[int], classes: ClassSet) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [
        {
            "class": classes.names[each],
            "gain": float(found.gain_M[len(METRICS) + each]),
            "interval": _interval(found, len(METRICS) + each) if seen_C[each] >= FEWEST else None,
            "keyframes": seen_C[each],
        }
        for each in classes.scored
    ]
    return sorted((row for row in rows if row["gain"] < 0), key=lambda row: row["gain"])


def _unlearnt(found: Gain, classes: ClassSet) -> list[str]:
    own_C, control_C = found.value_M[len(METRICS) :], found.control_M[len(METRICS) :]
    return [classes.names[each] for each in classes.scored if own_C[each] == 0 and control_C[each] >= LEARNT]


def shown(row: dict[str, Any]) -> bool:
    """Whether a gain or a loss is more than other keyframes would move it: its interval does not hold 0."""
    return row["interval"] is not None and not row["interval"][0] <= 0 <= row["interval"][1]


def measured(row: dict[str, Any], signed: Signed) -> str:
    """A gain and its interval, "+1.90 [+0.80, +3.00]"."""
    ends = row["interval"]
    return signed(row["gain"]) + ("" if ends is None else f" [{signed(ends[0])}, {signed(ends[1])}]")


def words(found: dict[str, Any], signed: Signed) -> dict[str, list[str]]:
    """A verdict in sentences.

    Args:
        found: what `verdict` returns.
        signed: writes a number with its sign.

    Returns:
        `gains`: one for each metric; `remarks`: how far they go.
    """
    # what was not trained alike differs for more reasons than distilling
    subject = "The student" if found["not trained alike"] else "Distilling"
    gains = [_sentence(subject, name, gain, found, signed) for name, gain in found["gains"].items()]
    return {"gains": gains, "remarks": [*_unequal(found), *_lost(found), *_without_gap(found), _reach(found)]}


def _sentence(subject: str, metric: str, gain: dict[str, Any], found: dict[str, Any], signed: Signed) -> str:
    if not shown(gain):
        return f"{metric}: no difference that {found['keyframes']} keyframes can show, {measured(gain, signed)}"
    number, _, interval = measured(gain, signed).partition(" ")
    verb, against = ("gains", "over") if gain["gain"] > 0 else ("loses", "against")
    share = gain["share of the gap"]
    of_gap = "" if share is None or share < 0 else f", {100 * share:.0f} % of the gap to the teacher"
    return f"{subject} {verb} {number} {metric} {against} the control {interval}{of_gap}"


def _unequal(found: dict[str, Any]) -> list[str]:
    differing, (own, control) = found["not trained alike"], found["steps"]
    if differing:
        return [f"not trained alike: {', '.join(differing)}; what lies between them is not the teacher's alone"]
    if own != control:
        return [
            f"kept at step {own} vs {control} of runs of one length: each its best epoch, or one is not done; last.pt "
            "of both compares equal steps"
        ]
    return []


def _lost(found: dict[str, Any]) -> list[str]:
    if not found["unlearnt"]:
        return []
    names = ", ".join(name.replace("_", " ") for name in found["unlearnt"])
    return [f"unlearnt: {names} (IoU of {LEARNT:.0f} or more in the control, 0 now)"]


def _without_gap(found: dict[str, Any]) -> list[str]:
    names = [name for name, gain in found["gains"].items() if gain["share of the gap"] is None]
    if found["teacher"] is None or not names:
        return []
    return [f"no gap: {found['teacher']} is not better than the control in {', '.join(names)}"]


def _reach(found: dict[str, Any]) -> str:
    keyframes, level = found["keyframes"], f"{100 * found['level']:.0f} %"
    intervals = (
        f"no intervals: {keyframes} keyframes are too few to show a difference, {FEWEST} are the fewest"
        if found["gains"]["mIoU"]["interval"] is None
        else f"{level} intervals over {keyframes} keyframes as if they were independent, which those of a scene are not"
    )
    return (
        f"{intervals}; ONE seed per arm: what another seed would change is in no number here, "
        "benchmarks/distillation.py compares several"
    )

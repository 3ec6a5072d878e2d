"""Distillation against its control at equal budget and seed, in one table.

    python benchmarks/kd_gain.py [occ-train-student overrides]

trains `kd=none` and `kd=voxel_bev_occupied` (or what `--kd` names) with the same overrides and seed, scores both best
checkpoints on the validation split and prints what distillation gained, also as a share of the gap to the teacher.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from pathlib import Path

from hydra import compose, initialize_config_module

from distill.command import distinct


def main() -> None:
    """Train, score and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--kd", default="none,voxel_bev_occupied", help="kd options to compare; the first is the control"
    )
    parser.add_argument("overrides", nargs="*", help="overrides of occ-train-student, the same for all")
    arguments = parser.parse_args()
    metrics = {kd: train_and_score(kd, arguments.overrides) for kd in arguments.kd.split(",")}
    control, *others = metrics
    base = scores(metrics[control], "student")[0]
    # a control has no teacher
    teacher = next(
        (scores(metrics[kd], "teacher")[0] for kd in others if "teacher" in metrics[kd]["sources"]), math.nan
    )
    head = f"{'kd':<20}{'val mIoU':>10}{'gain':>8}{'of gap':>9}{'geo IoU':>10}{'RayIoU':>9}"
    print(f"\n{head}   (teacher {teacher:.2f} mIoU)")
    for kd in (control, *others):
        miou, geometric_iou, ray_iou = scores(metrics[kd], "student")
        gain = miou - base
        share = "" if kd == control else f"{gain / (teacher - base):.0%}"
        print(f"{kd:<20}{miou:>10.2f}{gain:>+8.2f}{share:>9}{geometric_iou:>10.2f}{ray_iou:>9.2f}")


def scores(metrics: dict, source: str) -> list[float]:
    """mIoU by the convention of the grid, geometric IoU and RayIoU; NaN for a source that is not there."""
    convention, found = metrics["scored"]["convention"], metrics["sources"].get(source, {"metrics": {}})["metrics"]
    return [found.get(name, float("nan")) for name in (f"{convention} mIoU", f"{convention} geometric IoU", "RayIoU")]


def train_and_score(kd: str, overrides: list[str]) -> dict:
    """Run occ-train-student and occ-eval as a user would; returns metrics.json."""
    given = [*overrides, f"kd={kd}"]
    with initialize_config_module("conf", version_base="1.3"):
        config = compose("train", overrides=given)
        config.variant = distinct(given, but=config.not_in_name)
        output = Path(config.output)
    programs = Path(sys.executable).parent
    subprocess.run([programs / "occ-train-student", *given], check=True)
    subprocess.run([programs / "occ-eval", f"checkpoint={output / 'best.pt'}"], check=True)
    return json.loads((output / "eval-val" / "metrics.json").read_text())


if __name__ == "__main__":
    main()

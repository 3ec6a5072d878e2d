"""Makes rays.npz beside it: RayIoU of an invented street, as its authors' own code computes it.

    python tests/goldens/make_rays.py CHECKOUT

CHECKOUT is one of MCG-NJU/SparseOcc that has rayiou_metrics/ (commit f33f5ca), whose CPU operator is built and can be
imported as dvr_cpu_ops. Nothing of the golden comes from nuScenes:

semantics, prediction   uint8 (3, 200, 200, 16): boxes of every class on a plane, then moved or of another class;
                        the air of the third is cluttered, so that it matters which border a ray crosses first
lidar2ego, ego2global   float64 (30, 4, 4): a drive that turns, 2.6 m between keyframes, then a leap of 60 m
keyframes               which of them the first two volumes belong to
origins_{0,1}           float64 (T, 3): where upstream's EgoPoseDataset begins their rays
origins_2               where those of the third begin: where rays meet two borders at once, at the side, and below
directions              float32 (2006, 3): every 7th of upstream's rays
labels, predictions     (18,) how many rays end in each class; those whose label is free are left out
hits                    (3, 18) how many are right within 1, 2 and 4 m
iou                     (3, 17) what upstream's calc_rayiou says of them
"""

import importlib
import sys
from pathlib import Path

import numpy as np
import torch
from pyquaternion import Quaternion

from distill.classes import OCC3D_CLASSES

FREE, ROAD = 17, 11
KEYFRAMES = (3, 16)
STEP = 2.63  # metres: one LiDAR position is between 39 and 39.5 m ahead of the first
HARD = ((0.0, 0.0, 1.0), (0.2, 0.2, 1.2), (38.999, -38.999, 1.84), (1.0, 1.0, -1.3))


def street(random: np.random.RandomState, clutter: float) -> tuple[np.ndarray, np.ndarray]:
    """Labels and prediction of one keyframe; `clutter` is the share of single voxels in the air."""
    semantics, prediction = np.full((2, 200, 200, 16), FREE, np.uint8)
    semantics[:, :, :2] = ROAD
    prediction[:, :, : random.randint(1, 3)] = ROAD
    for number in range(150):
        centre, size = random.randint(0, 200, 2), random.randint(1, 12, 3)
        moved = centre + random.randint(-4, 5, 2)
        kind = number % FREE
        guess = kind if random.rand() < 0.8 else random.randint(FREE)
        for volume, (x, y), written in ((semantics, centre, kind), (prediction, moved, guess)):
            volume[x : x + size[0], y : y + size[1], 2 : 2 + size[2]] = written
    for volume in (semantics, prediction):  # the vehicle itself, and where it drove
        volume[60:140, 94:106, 2:] = FREE
        volume[random.rand(*volume.shape) < clutter] = 15
    return semantics, prediction


def drive() -> list[dict]:
    """Keyframes as upstream's infos say them."""
    lidar2ego = Quaternion(axis=(0.02, -0.01, 1), degrees=-89.5)
    position, infos = np.array([600.0, 1600.0, 0.0]), []
    for number in range(30):
        turned = Quaternion(axis=(0.01, 0.02, 1), degrees=30 + 1.5 * number)
        position = position + turned.rotate([60.0 if number == 20 else STEP, 0, 0])
        infos.append(
            {
                "token": str(number),
                "scene_name": "street",
                "lidar2ego_translation": [0.94, 0.01, 1.84],
                "lidar2ego_rotation": list(lidar2ego),
                "ego2global_translation": list(position),
                "ego2global_rotation": list(turned),
            }
        )
    return infos


def main(checkout: Path) -> None:
    sys.path += [str(checkout / "loaders"), str(checkout / "rayiou_metrics")]
    poses = importlib.import_module("ego_pose_dataset")
    upstream = importlib.import_module("rayiou_metrics.ray_metrics")
    infos, names = drive(), list(OCC3D_CLASSES.names)
    frames, random = poses.EgoPoseDataset(infos), np.random.RandomState(0)
    origins = [*(frames[keyframe][1] for keyframe in KEYFRAMES), torch.tensor(HARD, dtype=torch.float64)]
    streets = [street(random, clutter) for clutter in (0.0, 0.0, 0.02)]
    rays = torch.from_numpy(upstream.generate_lidar_rays())
    ends = [
        upstream.process_pred_gt(prediction, semantics, at[None], rays, names)
        for (semantics, prediction), at in zip(streets, origins, strict=True)
    ]
    predicted, labelled = (np.concatenate(side) for side in zip(*ends, strict=True))
    count = {"labels": labelled, "predictions": predicted}
    right = predicted[:, 0] == labelled[:, 0]
    error = np.abs(predicted[:, 1] - labelled[:, 1])
    hits = [np.bincount(labelled[right & (error < at), 0].astype(int), minlength=18) for at in (1, 2, 4)]
    np.savez_compressed(
        Path(__file__).with_name("rays.npz"),
        semantics=np.stack([semantics for semantics, _ in streets]),
        prediction=np.stack([prediction for _, prediction in streets]),
        lidar2ego=np.stack([frames.get_ego_from_lidar(info) for info in infos]),
        ego2global=np.stack(
            [poses.trans_matrix(i["ego2global_translation"], Quaternion(i["ego2global_rotation"])) for i in infos]
        ),
        keyframes=KEYFRAMES,
        directions=rays.numpy()[::7],
        hits=hits,
        iou=upstream.calc_rayiou(*zip(*ends, strict=True), names),
        **{f"origins_{number}": at.numpy() for number, at in enumerate(origins)},
        **{side: np.bincount(rows[:, 0].astype(int), minlength=18) for side, rows in count.items()},
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))

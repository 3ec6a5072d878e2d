"""What a dump looks like: one keyframe's cameras, voxels and, where the teacher has them, Gaussians."""

from __future__ import annotations

import numpy as np

from distill.classes import ClassSet
from distill.frame import Frame
from distill.grids import VoxelGrid
from distill.pictures.gaussians import draw_gaussians
from distill.pictures.panel import draw_panel
from distill.pictures.voxels import Painter
from teacher_dump.teachers import TeacherPrediction


def panel(frame: Frame, prediction: TeacherPrediction, grid: VoxelGrid, classes: ClassSet) -> np.ndarray:
    """The first keyframe of a batch; Gaussians are drawn over its cameras, too.

    Args:
        frame: the batch as the teacher was given it.
        prediction: what it said.
        grid: of the prediction.
        classes: of the prediction.

    Returns:
        RGB uint8.
    """
    cameras = dict(zip(frame.channels[0], frame.images[0].permute(0, 2, 3, 1).cpu().numpy(), strict=True))
    semantics_XYZ = prediction.voxel_log_probs_BXYZC[0].argmax(-1)
    if prediction.covered_BXYZ is not None:
        semantics_XYZ = semantics_XYZ.masked_fill(~prediction.covered_BXYZ[0], classes.free)
    columns = {"teacher": semantics_XYZ.to(dtype=frame.images.dtype).cpu().numpy()}
    mask_XYZ = None
    if frame.labelled[0]:
        columns = {"ground truth": frame.semantics[0].cpu().numpy(), **columns}
        mask_XYZ = frame.mask_camera[0].cpu().numpy()
    gaussians = None
    if prediction.gaussians is not None:
        lidar2ego_44 = frame.lidar_pose()[0].cpu().double().numpy()
        gaussians = (prediction.gaussians[0], lidar2ego_44)
        for camera, (channel, image) in enumerate(cameras.items()):
            ego2cam_44 = np.linalg.inv(frame.cam2ego[0, camera].cpu().double().numpy())
            lidar2img_34 = frame.intrinsics[0, camera].cpu().double().numpy() @ (ego2cam_44 @ lidar2ego_44)[:3]
            cameras[channel] = draw_gaussians(image, gaussians[0], lidar2img_34, classes)
    return draw_panel(Painter(grid, classes), cameras, columns, mask_XYZ, gaussians)

"""Semantic Gaussians drawn over an image.

A Gaussian is drawn as its one-sigma ellipse in the colour of its likeliest class, far ones first. Letters: G Gaussians.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from distill.classes import ClassSet
from distill.gaussians import Gaussians, rotation_matrices

OPACITY = 90  # of an ellipse whose Gaussian has opacity 1, of 255
NEAREST = 1.0  # metres along the optical axis
VEIL = 0.05  # of the image's width; a Gaussian with a larger one-sigma radius is so near that it only veils the rest
LARGEST = 10.0  # metres; a Gaussian with a larger axis (the one that fills the grid with free space) is no object
_CIRCLE = np.stack([np.cos(np.linspace(0, 2 * np.pi, 13)[:-1]), np.sin(np.linspace(0, 2 * np.pi, 13)[:-1])])


def draw_gaussians(
    image: np.ndarray, gaussians: Gaussians, lidar2img: np.ndarray, classes: ClassSet, perspective: bool = True
) -> np.ndarray:
    """Gaussians over an image.

    The covariance is projected with the Jacobian of the perspective division (EWA splatting, Zwicker et al. 2001).

    Args:
        image: RGB uint8 (H, W, 3).
        gaussians: in the LIDAR_TOP frame.
        lidar2img: (3+, 4), LiDAR metres to (u d, v d, d) of this image; without perspective to (u, v, d).
        classes: colours and the free class; Gaussians of free space are left out, and those that would fill the image.
        perspective: whether pixels are divided by the depth d.

    Returns:
        RGB uint8 (H, W, 3).
    """
    projected_G3 = gaussians.means_G3.cpu().numpy() @ lidar2img[:3, :3].T + lidar2img[:3, 3]
    depth = projected_G3[:, 2]
    divisor_G1 = np.where(depth > NEAREST, depth, np.nan)[:, None] if perspective else np.ones((len(depth), 1))
    centres_G2 = projected_G3[:, :2] / divisor_G1
    height, width = image.shape[:2]
    seen = (np.abs(centres_G2 / (width, height) - 0.5) < 0.5).all(1)
    order = np.flatnonzero(seen & _drawn(gaussians, classes))
    order = order[np.argsort(-depth[order])]
    jacobian_G23 = np.broadcast_to(lidar2img[None, :2, :3], (len(order), 2, 3))
    if perspective:  # d(u, v) / d(x, y, z) = (rows 0 and 1 - (u, v) row 2) / depth
        jacobian_G23 = jacobian_G23 - centres_G2[order, :, None] * lidar2img[None, 2:3, :3]
    jacobian_G23 = jacobian_G23 / divisor_G1[order, :, None]
    covariance_G22 = jacobian_G23 @ _covariances(gaussians)[order] @ jacobian_G23.swapaxes(1, 2)
    small = np.trace(covariance_G22, axis1=1, axis2=2) < (VEIL * width) ** 2
    order = order[small]
    return _ellipses(image, centres_G2[order], covariance_G22[small], _colours(gaussians, classes)[order])


def _drawn(gaussians: Gaussians, classes: ClassSet) -> np.ndarray:
    occupied_G = gaussians.semantics_GS.argmax(1) != classes.free
    return (occupied_G & (gaussians.scales_G3.amax(1) < LARGEST)).cpu().numpy()


def _covariances(gaussians: Gaussians) -> np.ndarray:
    """R^T S^2 R (docs/formulas.md 7.1), float64 (G, 3, 3)."""
    rotation_G33 = rotation_matrices(gaussians.rotations_G4.cpu().double()).numpy()
    scaled_G33 = gaussians.scales_G3.cpu().numpy()[:, :, None] * rotation_G33
    return scaled_G33.swapaxes(1, 2) @ scaled_G33


def _colours(gaussians: Gaussians, classes: ClassSet) -> np.ndarray:
    """RGBA uint8 (G, 4)."""
    alpha_G = OPACITY * gaussians.opacities_G.cpu().numpy().clip(0, 1)
    rgb_G3 = classes.palette[gaussians.semantics_GS.argmax(1).cpu().numpy()]
    return np.column_stack([rgb_G3, alpha_G.astype(np.uint8)])


def _ellipses(
    image: np.ndarray, centres_G2: np.ndarray, covariances_G22: np.ndarray, colours_G4: np.ndarray
) -> np.ndarray:
    values_G2, vectors_G22 = np.linalg.eigh(covariances_G22)
    outline_G2K = (vectors_G22 * np.sqrt(values_G2.clip(0.25))[:, None]) @ _CIRCLE + centres_G2[:, :, None]
    canvas = Image.fromarray(image)
    draw = ImageDraw.Draw(canvas, "RGBA")  # blends
    for outline_2K, colour in zip(outline_G2K, colours_G4.tolist(), strict=True):
        draw.polygon(outline_2K.T.ravel().tolist(), fill=tuple(colour))
    return np.asarray(canvas)

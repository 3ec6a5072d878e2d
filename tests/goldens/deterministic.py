"""What the goldens of GaussianFormer were made from: weights, images and cameras that follow from a seed alone.

Nothing of it is stored: a weight depends on the seed, its name and its shape, wherever it is made.
"""

import math
import zlib

import numpy as np
import torch
from torch import Tensor

SEED = 0  # of every golden
SIZE = (96, 160)  # image rows and columns of every golden
# what upstream fills with a constant keeps its value
KEPT = ("num_batches_tracked", "pc_range", "grid_size", "zero_tensor", "pc_min")
KEPT += ("empty_mean", "empty_scale", "empty_rot", "empty_sem", "empty_opa")


def weight(name: str, shape: tuple[int, ...], seed: int = SEED) -> np.ndarray | None:
    """float32 values of a parameter or buffer of the whole network; None where it keeps its own."""
    last = name.rpartition(".")[2]
    if last in KEPT:
        return None
    if last == "empty_scalar":
        return np.full(shape, 10.0, np.float32)
    random = np.random.RandomState((zlib.crc32(name.encode()) + 1000003 * seed) % 2**32)
    if last == "running_var" or last == "scale":
        values = random.uniform(0.8, 1.2, shape)
    elif len(shape) == 1 and last == "weight":  # of a normalisation
        values = random.uniform(0.1, 0.3, shape) if "bn3" in name else random.uniform(0.8, 1.2, shape)
    else:
        values = random.standard_normal(shape) * _spread(name, last, shape)
    if last in ("anchor", "random_anchors") and (last == "random_anchors" or shape[1] >= 28):
        inside = random.uniform(0.02, 0.98, (shape[0], 3))
        values[:, :3] = np.log(inside / (1 - inside))
    if ".layers.10." in name and name.startswith("encoder"):  # what a refinement adds: small steps, wide scales
        values[:3] *= 0.3
        values[3:6] *= 2.0
    return values.astype(np.float32)


def _spread(name: str, last: str, shape: tuple[int, ...]) -> float:
    """Standard deviation of a weight that is normally distributed."""
    if last in ("anchor", "random_anchors"):
        return 1.0
    if last in ("running_mean", "instance_feature", "bias") or len(shape) == 1:
        return 0.1
    if "conv_offset" in name:
        return 0.7 / math.sqrt(np.prod(shape[1:]))
    if len(shape) == 5:  # sparse convolution (out, k, k, k, in)
        return 1.0 / math.sqrt(shape[-1] * 6)
    if "deblocks" in name and shape[0] > shape[1]:  # transposed convolution (in, out, k, k)
        return 1.0 / math.sqrt(shape[0])
    if "img_neck" in name and len(shape) == 4 and "deblocks" not in name:
        return 0.35 / math.sqrt(np.prod(shape[1:]))
    if len(shape) == 4:
        return math.sqrt(2.0 / np.prod(shape[1:]))
    return (3.0 if "projection" in name else 1.0) / math.sqrt(shape[1])


def weights(state: dict[str, Tensor], seed: int = SEED) -> dict[str, Tensor]:
    """A state_dict of the same names and shapes."""
    filled = {name: weight(name, tuple(value.shape), seed) for name, value in state.items()}
    return {name: state[name] if value is None else torch.from_numpy(value) for name, value in filled.items()}


def lidar2img() -> Tensor:
    """Six pinhole cameras around the LiDAR, F FR FL B BL BR as upstream orders them: float32 (6, 4, 4)."""
    (height, width), random = SIZE, np.random.RandomState(SEED + 77)
    matrices = []
    for yaw in (0.0, -55.0, 55.0, 180.0, 110.0, -110.0):
        angle = math.radians(yaw + random.uniform(-1, 1)) + math.pi / 2  # forward is the LiDAR's y
        forward = np.array([math.cos(angle), math.sin(angle), random.uniform(-0.02, 0.02)])
        forward /= np.linalg.norm(forward)
        right = np.cross(forward, [0, 0, 1.0])
        right /= np.linalg.norm(right)
        rotation = np.stack([right, np.cross(forward, right), forward])
        focal = 1266.4 * width / 1600.0 * (0.64 if yaw == 180.0 else 1.0)
        intrinsics = np.array([[focal, 0, width * 0.51], [0, focal, height * 0.53], [0, 0, 1]])
        matrix = np.eye(4)
        matrix[:3, :3] = intrinsics @ rotation
        matrix[:3, 3] = intrinsics @ (-rotation @ (forward * 0.6 + np.array([0, 0, -0.3])))
        matrices.append(matrix)
    return torch.from_numpy(np.stack(matrices).astype(np.float32))


def images() -> Tensor:
    """Normalised images of coarse noise, float32 (6, 3, 96, 160)."""
    (height, width), random = SIZE, np.random.RandomState(SEED + 5)
    coarse = random.standard_normal((6, 3, height // 8, width // 8))
    fine = random.standard_normal((6, 3, height, width))
    return torch.from_numpy((np.kron(coarse, np.ones((8, 8))) + 0.1 * fine).astype(np.float32))

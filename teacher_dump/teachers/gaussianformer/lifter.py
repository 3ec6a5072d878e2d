"""Where the Gaussians start (docs/formulas.md 6.4).

Letters: N cameras, H W image rows and columns (of the images or of a map), D depth bins, P lifted points, A anchors of
lifted points, G Gaussians, K anchor columns, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from distill.errors import InputError
from distill.grids import SURROUNDOCC
from kernels.farthest_points import farthest_points
from teacher_dump.teachers.gaussianformer import anchors
from teacher_dump.teachers.gaussianformer.draws import Draws

_JITTER = 0.1  # metres, standard deviation around a point that is used again


class GaussianLifter(nn.Module):
    """GaussianFormer: learned anchors, the same for every keyframe.

    Args:
        gaussians: G.
        columns: K.
        channels: C.
    """

    def __init__(self, gaussians: int, columns: int, channels: int) -> None:
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(gaussians, columns))
        self.instance_feature = nn.Parameter(torch.zeros(gaussians, channels))

    def forward(self, images_N3HW: Tensor, lidar2img_N44: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """Anchors (G, K) in logit space and features (G, C); the arguments do not matter."""
        return self.anchor, self.instance_feature


class ImageEncoder(nn.Module):
    """Backbone and neck under upstream's names `img_backbone` and `img_neck`."""

    def __init__(self, img_backbone: nn.Module, img_neck: nn.Module) -> None:
        super().__init__()
        self.img_backbone, self.img_neck = img_backbone, img_neck

    def forward(self, images_N3HW: Tensor) -> Tensor:
        """Normalised images -> (N, C, H, W)."""
        return self.img_neck(self.img_backbone(images_N3HW))


class GaussianLifterV2(nn.Module):
    """GaussianFormer-2: anchors on points lifted from the images by a depth distribution, and learned ones.

    Args:
        initialize_backbone: normalised images (N, 3, H, W) -> (N, image_channels, H / 8, W / 8).
        image_channels: of its output.
        lifted: anchors A on lifted points.
        learned: anchors whose positions are learned, the rest of G.
        columns: K.
        channels: C.
        depth_bins: D.
        depth_range: first and last depth, metres.
        subsets: of farthest point sampling; see `kernels.farthest_points`.
        sampling: "seeded" draws one depth per pixel from its distribution, as upstream does; "deterministic" takes
            the most probable.

    Raises:
        InputError: `sampling` is something else.
    """

    depth_D: Tensor

    def __init__(
        self,
        initialize_backbone: nn.Module,
        image_channels: int,
        lifted: int,
        learned: int,
        columns: int,
        channels: int,
        depth_bins: int,
        depth_range: tuple[float, float],
        subsets: int,
        sampling: str,
    ) -> None:
        super().__init__()
        if sampling not in ("seeded", "deterministic"):
            raise InputError(f"sampling={sampling} of the lifter: it is 'seeded' or 'deterministic'")
        self.initialize_backbone = initialize_backbone
        self.projection = nn.Sequential(nn.ReLU(), nn.Linear(image_channels, depth_bins + 1))
        self.anchor = nn.Parameter(torch.zeros(lifted, columns - 3))
        self.random_anchors = nn.Parameter(torch.zeros(learned, columns))
        self.instance_feature = nn.Parameter(torch.zeros(lifted + learned, channels))
        self.register_buffer("depth_D", torch.linspace(*depth_range, depth_bins), persistent=False)
        self.subsets = subsets
        self.sampling = sampling

    def forward(self, images_N3HW: Tensor, lidar2img_N44: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """Lift the images of one keyframe.

        Args:
            images_N3HW: normalised, float32; H and W are multiples of 32.
            lidar2img_N44: projection matrices into these images, float32.
            draws: random numbers.

        Returns:
            Anchors (G, K) in logit space and features (G, C).

        Raises:
            InputError: no pixel lifts into the modelled range.
        """
        logits_NHWD1 = self.depth_logits(images_N3HW)
        points_P3 = self.lift(logits_NHWD1, lidar2img_N44, (images_N3HW.shape[2], images_N3HW.shape[3]), draws)
        points_P3 = _enough(points_P3, len(self.anchor), draws)
        points_A3 = points_P3[farthest_points(points_P3, len(self.anchor), self.subsets)]
        lifted_AK = torch.cat([anchors.position_logits(points_A3), self.anchor], 1)
        return torch.cat([lifted_AK, self.random_anchors]), self.instance_feature

    def depth_logits(self, images_N3HW: Tensor) -> Tensor:
        """Scores of the depth bins of every pixel at stride 8, and of "nothing here": (N, H, W, D + 1)."""
        return self.projection(self.initialize_backbone(images_N3HW).permute(0, 2, 3, 1))

    def lift(self, logits_NHWD1: Tensor, lidar2img_N44: Tensor, image_size: tuple[int, int], draws: Draws) -> Tensor:
        """One point per pixel, at its depth; (P, 3) in metres, without pixels of nothing and points out of range."""
        bins = len(self.depth_D)
        likeliest_NHW = logits_NHWD1.argmax(-1)
        bin_NHW = likeliest_NHW if self.sampling == "deterministic" else _draw_bins(logits_NHWD1, draws)
        depth_NHW = self.depth_D[bin_NHW.clamp(max=bins - 1)]
        points_NHW3 = _unproject(depth_NHW, lidar2img_N44, image_size)
        lower_3, upper_3 = points_NHW3.new_tensor(SURROUNDOCC.lower), points_NHW3.new_tensor(SURROUNDOCC.upper)
        inside_NHW = ((points_NHW3 >= lower_3) & (points_NHW3 < upper_3)).all(-1)
        return points_NHW3[inside_NHW & (likeliest_NHW < bins)]


def _draw_bins(logits_NHWD1: Tensor, draws: Draws) -> Tensor:
    """One bin per pixel by inversion of the cumulated probabilities, int64 (N, H, W)."""
    probs_NHWD1 = logits_NHWD1.softmax(-1)
    probs_NHWD1 = probs_NHWD1 / (probs_NHWD1.sum(-1, keepdim=True) + torch.finfo(torch.float32).eps)
    uniform_NHW = draws.uniform(*logits_NHWD1.shape[:-1]).to(logits_NHWD1.device)
    return torch.searchsorted(probs_NHWD1.cumsum(-1), uniform_NHW.unsqueeze(-1), right=True).squeeze(-1)


def _unproject(depth_NHW: Tensor, lidar2img_N44: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Points at a depth behind the centres of the map's pixels, (N, H, W, 3) in metres, LIDAR_TOP frame."""
    height, width = depth_NHW.shape[1:]
    rows = (torch.arange(height, device=depth_NHW.device) + 0.5) / height * image_size[0]
    columns = (torch.arange(width, device=depth_NHW.device) + 0.5) / width * image_size[1]
    homogeneous = [columns * depth_NHW, rows.unsqueeze(1) * depth_NHW, depth_NHW, torch.ones_like(depth_NHW)]
    img2lidar_N1144 = lidar2img_N44.inverse()[:, None, None]
    return (img2lidar_N1144 @ torch.stack(homogeneous, -1).unsqueeze(-1)).squeeze(-1)[..., :3]


def _enough(points_P3: Tensor, wanted: int, draws: Draws) -> Tensor:
    """At least `wanted` points: too few are used again, jittered, until there are enough."""
    if not len(points_P3):
        raise InputError(
            "no pixel of this keyframe lifts into the range that GaussianFormer models: check images and calibration"
        )
    rounds = -(-wanted // len(points_P3)) - 1
    if rounds <= 0:
        return points_P3
    again_P3 = points_P3.repeat(rounds, 1)
    again_P3 = again_P3 + _JITTER * draws.normal(*again_P3.shape).to(points_P3.device)
    lower_3, upper_3 = points_P3.new_tensor(SURROUNDOCC.lower), points_P3.new_tensor(SURROUNDOCC.upper)
    return torch.cat([points_P3, again_P3.clamp(lower_3, upper_3)])

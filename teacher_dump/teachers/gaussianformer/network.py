"""The whole network: six images of one keyframe -> its semantic Gaussians. Letters as in `lifter`."""

from __future__ import annotations

from torch import Tensor, nn

from distill.errors import InputError
from distill.gaussians import Gaussians
from teacher_dump.teachers.gaussianformer.draws import Draws
from teacher_dump.teachers.gaussianformer.head import GaussianHead
from teacher_dump.teachers.gaussianformer.lifter import GaussianLifter, GaussianLifterV2

_COARSEST_STRIDE = 32  # of the backbone


class GaussianFormer(nn.Module):
    """GaussianFormer or GaussianFormer-2, by its parts (docs/formulas.md 6.1).

    Args:
        img_backbone: images -> maps at strides 4..32.
        img_neck: these maps -> the maps that the Gaussians look into.
        lifter: where the Gaussians start.
        encoder: refines them.
        head: reads the refined anchors as Gaussians.
    """

    lifter: GaussianLifter | GaussianLifterV2
    head: GaussianHead

    def __init__(
        self,
        img_backbone: nn.Module,
        img_neck: nn.Module,
        lifter: GaussianLifter | GaussianLifterV2,
        encoder: nn.Module,
        head: GaussianHead,
    ) -> None:
        super().__init__()
        self.img_backbone, self.img_neck = img_backbone, img_neck
        self.lifter, self.encoder, self.head = lifter, encoder, head

    def forward(self, images_N3HW: Tensor, lidar2img_N44: Tensor, draws: Draws) -> Gaussians:
        """Gaussians of one keyframe, LIDAR_TOP frame.

        Args:
            images_N3HW: six images, float32, normalised as upstream does; H and W are multiples of 32.
            lidar2img_N44: float32 projection matrices, LIDAR_TOP metres -> pixels of these images.
            draws: random numbers of the lifter.

        Raises:
            InputError: the images have another size, or no pixel lifts into the modelled range.
        """
        height, width = images_N3HW.shape[2:]
        check_image_size(height, width)
        anchor_GK, feature_GC = self.lifter(images_N3HW, lidar2img_N44, draws)
        maps = self.img_neck(self.img_backbone(images_N3HW))
        anchor_GK = self.encoder(anchor_GK, feature_GC, maps, lidar2img_N44, (height, width))
        return self.head(anchor_GK)


def check_image_size(height: int, width: int) -> None:
    """Raise InputError unless the networks take images of this size."""
    if height % _COARSEST_STRIDE or width % _COARSEST_STRIDE:
        raise InputError(
            f"images of {height} x {width} pixels: GaussianFormer takes multiples of {_COARSEST_STRIDE}; "
            "change teacher.image_size"
        )

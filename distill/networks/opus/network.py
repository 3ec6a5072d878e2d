"""OPUS as an occupancy network: images of several frames -> sets of points -> voxels.

Letters: B batch, T frames, N cameras, H W rows and columns, C channels, X Y Z voxel axes, D classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from distill.classes import ClassSet
from distill.errors import InputError
from distill.frame import Frame
from distill.grids import VoxelGrid
from distill.networks.adapter import Adapter
from distill.networks.blocks.pretrained import Pretrained, classifier, features
from distill.networks.memory import Memory
from distill.networks.opus.decoder import Decoder
from distill.networks.opus.image_network import COARSEST_STRIDE, FPN, normalised
from distill.networks.opus.sampling import Views
from distill.networks.opus.weights import OFFICIAL
from distill.networks.prediction import Occupancy
from distill.nuscenes.layout import upstream_order
from distill.point_sets import PointSet, VoxelRule
from distill.signals import PointKind

_PYRAMID_CHANNELS = 256
# in which order cameras are asked whether they see a point; others come behind


class OPUS(nn.Module):
    """OPUS-T, S, M or L (docs/formulas.md 10.1 to 10.5); batch normalisation stays as it is, as do the first layers.

    Args:
        queries: how many.
        samples: places of a query and group of channels in each frame.
        refined: points of a query after each layer.
        history: earlier frames.
        backbone_weights: of ResNet-50, see `distill.networks.blocks.pretrained`.
        rule: how points become voxels.
        grid: the voxels.
        classes: the classes, of whom the last is free.
    """

    depth_stride = None

    def __init__(
        self,
        queries: int,
        samples: int,
        refined: Sequence[int],
        history: int,
        backbone_weights: str,
        rule: VoxelRule,
        grid: VoxelGrid,
        classes: ClassSet,
    ) -> None:
        super().__init__()
        self.history, self.rule, self.grid = history, rule, grid
        self.refined = refined[-1]
        model = classifier("resnet50")
        self.img_backbone = features(model, range(1, 5))
        self.pretrained = Pretrained.of(model, self.img_backbone, backbone_weights)
        for name in ("conv1", "bn1", "layer1"):
            self.img_backbone.get_submodule(name).requires_grad_(False)
        self.img_neck = FPN(self.img_backbone.feature_info.channels(), _PYRAMID_CHANNELS)
        size = [grid.voxel_size * count for count in grid.shape]
        self.decoder = Decoder(queries, samples, refined, history + 1, classes.free, grid.lower, size)
        # what upstream's files say of the grid; whoever loads one compares
        self.register_buffer("pc_range", torch.tensor([*grid.lower, *grid.upper]))
        self.register_buffer("scene_size", torch.tensor(size))
        self.register_buffer("voxel_size", torch.full((3,), grid.voxel_size))
        self.register_buffer("voxel_num", torch.tensor(grid.shape))

    @property
    def point_kind(self) -> PointKind:
        """Of its last set of points."""
        return PointKind(len(self.decoder.init_points) * self.refined, self.rule)

    def published(self) -> Adapter:
        """How the authors' files are read."""
        return OFFICIAL

    def load_pretrained(self) -> None:
        """Load the backbone's weights.

        Raises:
            InputError: they are missing or do not fit.
        """
        self.pretrained.load(self.img_backbone)

    def train(self, mode: bool = True) -> OPUS:
        """Switch to training mode, all but batch normalisation."""
        super().train(mode)
        self.img_backbone.eval()
        return self

    def forward(self, frame: Frame) -> Occupancy:
        """Predict from images, calibration and past of a batch of frames.

        Raises:
            InputError: it has less past than the network looks into.
        """
        return self.predict(frame, [self.image_features(seen.images, frame.channels[0]) for seen in self.frames(frame)])

    def streaming(self, calls: int) -> Streaming:
        """See `distill.networks.network.Streams`."""
        return Streaming(self, calls)

    def frames(self, frame: Frame) -> list[Frame]:
        """The batch and its past, the latest first.

        Raises:
            InputError: there is less of it than the network looks into.
        """
        past = frame.past or ()
        if len(past) != self.history:
            raise InputError(
                f"OPUS looks at {self.history} earlier keyframes, the frame brings {len(past)}: set the history of its "
                f"inputs to {self.history}"
            )
        return [frame, *past]

    def image_features(self, images_BN3HW: Tensor, channels: Sequence[str]) -> list[Tensor]:
        """Features of uint8 images of cameras on four levels, float32 (B, N, H, W, C) each, in upstream's order."""
        images_BN3HW = images_BN3HW[:, upstream_order(channels)]
        maps = self.img_neck(self.img_backbone(normalised(images_BN3HW.flatten(0, 1))))
        return [map_ICHW.float().permute(0, 2, 3, 1).unflatten(0, images_BN3HW.shape[:2]) for map_ICHW in maps]

    def predict(self, frame: Frame, features_T: Sequence[Sequence[Tensor]]) -> Occupancy:
        """Predict from the image features of all frames; see `forward`."""
        maps = [torch.stack(levels, 1).flatten(0, 2) for levels in zip(*features_T, strict=True)]
        size = [side + -side % COARSEST_STRIDE for side in frame.images.shape[3:]]
        # positions need all digits
        with torch.autocast(frame.images.device.type, enabled=False):
            sets = self.decoder(Views(maps, self.ego2image(frame), (size[0], size[1])))
            return Occupancy(self._voxel_logits(sets[-1]), points=tuple(sets))

    def ego2image(self, frame: Frame) -> Tensor:
        """Metres in the frame of the grid to pixels times depth of all images, float32 (B, T, N, 4, 4)."""
        matrices = []
        for seen in self.frames(frame):
            cam2ego_BN44 = seen.cam2ego.double()
            if seen is not frame:
                cam2ego_BN44 = seen.ego2present.double().unsqueeze(1) @ cam2ego_BN44
            ego2image_BN44 = torch.linalg.inv(cam2ego_BN44)
            ego2image_BN44[:, :, :3] = seen.intrinsics.double() @ ego2image_BN44[:, :, :3]
            matrices.append(ego2image_BN44[:, upstream_order(frame.channels[0])])
        return torch.stack(matrices, 1).float()

    def _voxel_logits(self, last: PointSet) -> Tensor:
        """What the last points say of the voxels, (B, X, Y, Z, D)."""
        assert last.logits_BQRC is not None
        voxels = []
        for points_QR3, scores_QRC in zip(last.points_BQR3, last.logits_BQRC.sigmoid(), strict=True):
            kept_QR = self.rule.kept(points_QR3, scores_QRC)
            voxels.append(self.rule.voxel_logits(points_QR3[kept_QR], scores_QRC[kept_QR], self.grid))
        return torch.stack(voxels)


class Streaming:
    """An `OPUS` that looks at no keyframe twice if they come in the order of time; in any order it is right.

    Args:
        network: in evaluation mode; its weights stay as they are.
        calls: see `Memory`, which keeps features of images, of each level.
    """

    def __init__(self, network: OPUS, calls: int) -> None:
        self.network = network
        self.memory: Memory[list[Tensor]] = Memory(("images",), calls)

    @torch.no_grad()
    def __call__(self, frame: Frame) -> Occupancy:
        """As `OPUS.forward`."""
        self.memory.begin()
        channels = frame.channels[0]

        def made(seen: Frame) -> list[list[Tensor]]:
            # one by one, so that they are the same whoever asks for them first
            return [self.network.image_features(images_1N3HW, channels) for images_1N3HW in seen.images.split(1)]

        features_T = [self.memory.recall(seen, made) for seen in self.network.frames(frame)]
        return self.network.predict(
            frame, [[torch.cat(level) for level in zip(*rows, strict=True)] for rows in features_T]
        )

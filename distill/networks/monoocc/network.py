"""MonoOcc: proposals, what they see, and its diffusion to all voxels."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from distill.errors import InputError
from distill.frame import Frame
from distill.grids import VoxelGrid
from distill.networks.blocks.bev_encoder import BEVEncoder
from distill.networks.blocks.encoder import ImageEncoder
from distill.networks.blocks.head import ChannelToHeight
from distill.networks.memory import Memory
from distill.networks.monoocc.attention import Cameras, VoxelAttention
from distill.networks.monoocc.proposals import proposed
from distill.networks.monoocc.stage import ProposalStage, Stage1
from distill.networks.monoocc.views import CrossViewTransformer
from distill.networks.prediction import FeatureKind, FeatureMap, Occupancy
from kernels.pooled_labels import UNKNOWN

SCALE = 2  # voxels along the edge of one that is proposed


class MonoOcc(nn.Module):
    """Camera images of a keyframe -> voxel logits, in two stages (Zheng et al. 2024; docs/formulas.md 11.1 to 11.6).

    Of a frame with a past, the cameras of earlier keyframes are looked at like those of the present.

    Args:
        encoder: makes the image features.
        views: lets views look at each other; None: each is for itself.
        proposals: stage 1; None: there is none, and every voxel looks at the images.
        attention: makes what looks at the images, of voxels at half resolution, for the coarser grid.
        bev_encoder: makes what carries features on to all voxels, for so many `in_channels`.
        head: makes the head, which doubles the resolution, for so many `in_channels`.
        grid: the voxels.

    Raises:
        InputError: the head's `bev_stride` is not 2.
    """

    def __init__(
        self,
        encoder: ImageEncoder,
        views: CrossViewTransformer | None,
        proposals: ProposalStage | None,
        attention: Callable[..., VoxelAttention],
        bev_encoder: Callable[..., BEVEncoder],
        head: Callable[..., ChannelToHeight],
        grid: VoxelGrid,
    ) -> None:
        super().__init__()
        coarse = grid.coarser(SCALE)
        self.coarse_shape = coarse.shape
        self.encoder, self.views, self.proposals = encoder, views, proposals
        self.attention = attention(grid=coarse)
        self.bev_encoder = bev_encoder(in_channels=coarse.shape[2] * self.attention.out_channels)
        self.head = head(in_channels=self.bev_encoder.out_channels)
        if self.head.bev_stride != SCALE:
            raise InputError(f"student.network.head.bev_stride={self.head.bev_stride}: MonoOcc's is {SCALE}")

    @property
    def depth_stride(self) -> int | None:
        """That of the encoder, if stage 1 predicts depth."""
        return None if self.proposals is None or self.proposals.depth is None else self.encoder.stride

    @property
    def proposes(self) -> bool:
        """Whether it has scores of proposals."""
        return self.proposals is not None

    @property
    def proposals_of(self) -> str | None:
        """Name of the teacher whose proposals stand in for its own while it learns."""
        return None if self.proposals is None else self.proposals.teacher

    @property
    def bev_features(self) -> FeatureKind:
        """Of the map "bev"."""
        return FeatureKind(self.bev_encoder.out_channels, SCALE)

    @property
    def voxel_features(self) -> FeatureKind:
        """Of the map "voxels", what proposed voxels gathered from the images; of others the mask token."""
        return FeatureKind(self.attention.out_channels, SCALE)

    def forward(self, frame: Frame) -> Occupancy:
        """Predict from `images`, `intrinsics` and `cam2ego`, and from `points` where depth is the LiDAR's."""
        return self._predict(frame, None)

    def streaming(self, calls: int) -> Streaming:
        """See `distill.networks.network.Streams`."""
        return Streaming(self, calls)

    def with_measured_depth(self, frame: Frame) -> Occupancy:
        """The same with `depth` (B, N, H / stride, W / stride) in stage 1; see `network.LiftsMeasuredDepth`."""
        return self._predict(frame, frame.depth)

    def _predict(self, frame: Frame, measured_BNHW: Tensor | None) -> Occupancy:
        image_BNCHW, *past = map(self.seen, (frame, *(frame.past or ())))
        return self.answer(frame, image_BNCHW, past, measured_BNHW)

    def seen(self, frame: Frame) -> Tensor:
        """Features of the images of a batch, its past aside, (B, N, C, H / stride, W / stride)."""
        image_BNCHW = self.encoder(frame.images)
        return image_BNCHW if self.views is None else self.views(image_BNCHW, frame.cam2ego)

    def answer(
        self, frame: Frame, image_BNCHW: Tensor, past: Sequence[Tensor], measured_BNHW: Tensor | None
    ) -> Occupancy:
        """The answer to a batch, what was `seen` of it and of `frame.past` being given."""
        stride = self.encoder.stride
        first = Stage1({}, None)
        proposals_BXYZ = torch.ones(len(image_BNCHW), *self.coarse_shape, dtype=torch.bool, device=image_BNCHW.device)
        if self.proposals is not None:
            first = self.proposals(frame, image_BNCHW, stride, measured_BNHW)
            proposals_BXYZ = proposed(first.scores[SCALE])
        if frame.proposals is not None:
            proposals_BXYZ = torch.where(frame.proposals == UNKNOWN, proposals_BXYZ, frame.proposals == 1)
        voxels_BXYZC = self.attention(_cameras(frame, [image_BNCHW, *past]), frame.images.shape[-2:], proposals_BXYZ)
        # columns of voxels are the channels of a map, as height slices are those of a lift
        bev_BCXY = self.bev_encoder(voxels_BXYZC.flatten(3).permute(0, 3, 1, 2))
        features = {
            "image": FeatureMap(image_BNCHW, "image", stride),
            "voxels": FeatureMap(voxels_BXYZC.movedim(-1, 1), "grid", SCALE),
            "bev": FeatureMap(bev_BCXY, "grid", SCALE),
        }
        return Occupancy(self.head(bev_BCXY), features, first.depth, proposals=first.scores)


def _cameras(frame: Frame, images: Sequence[Tensor]) -> Cameras:
    past = frame.past or ()
    with torch.autocast(images[0].device.type, enabled=False):
        poses = [frame.cam2ego, *(earlier.ego2present.unsqueeze(1) @ earlier.cam2ego for earlier in past)]
    intrinsics = [frame.intrinsics, *(earlier.intrinsics for earlier in past)]
    return Cameras(torch.cat(list(images), 1), torch.cat(intrinsics, 1), torch.cat(poses, 1))


class Streaming:
    """A `MonoOcc` that looks at no image twice if keyframes come in the order of time; in any order it is right.

    Args:
        network: in evaluation mode; its weights stay as they are.
        calls: see `Memory`, which keeps features of images, and of their cameras, at which views look.
    """

    def __init__(self, network: MonoOcc, calls: int) -> None:
        self.network = network
        self.memory: Memory[Tensor] = Memory(("images", "cam2ego"), calls)

    @torch.no_grad()
    def __call__(self, frame: Frame) -> Occupancy:
        """As `MonoOcc.forward`."""
        self.memory.begin()
        present = self.network.seen(frame)
        self.memory.keep(frame, present.split(1))
        past = [torch.cat(self.memory.recall(earlier, self._seen)) for earlier in frame.past or ()]
        return self.network.answer(frame, present, past, None)

    def _seen(self, earlier: Frame) -> Sequence[Tensor]:
        return self.network.seen(earlier).split(1)

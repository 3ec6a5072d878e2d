"""Networks that look back: what was seen before, moved to where it lies now (docs/formulas.md 12.1 to 12.4).

Letters: B batch, C channels, X Y cells of the BEV.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.errors import InputError
from distill.frame import Frame
from distill.grids import VoxelGrid
from distill.networks.blocks.bev_encoder import BEVEncoder
from distill.networks.blocks.encoder import ImageEncoder
from distill.networks.blocks.head import ChannelToHeight
from distill.networks.blocks.layers import conv_norm_act
from distill.networks.camera import CameraNetwork, Lifted
from distill.networks.lift import LiftSplat
from distill.networks.memory import Memory
from distill.networks.prediction import Occupancy


class TemporalNetwork(CameraNetwork):
    """Camera images of a keyframe and of those before it -> voxel logits, after BEVDet4D (Huang & Huang 2022).

    The past is lifted like the present, by the same weights, and joins it in front of the BEV encoder. Learning goes
    through the present alone: gradients into the past would cost as much memory again, for the same weights. What is
    lifted of a keyframe depends on nothing but that keyframe, so it may be remembered (`streaming`).

    Args:
        encoder, lift, bev_encoder, head: as of a `CameraNetwork`.
        fusion: makes one of present and past; it has the channels of the lift.
    """

    def __init__(
        self, encoder: ImageEncoder, lift: LiftSplat, fusion: PastFusion, bev_encoder: BEVEncoder, head: ChannelToHeight
    ) -> None:
        super().__init__(encoder, lift, bev_encoder, head)
        self.fusion = fusion

    def forward(self, frame: Frame) -> Occupancy:
        """As `CameraNetwork`, with `past`: of each of its frames the same fields, and `ego2present` (B, 4, 4).

        Raises:
            InputError: there are more or fewer frames in the past than the network looks at.
        """
        return self._predict(frame, None)

    def with_measured_depth(self, frame: Frame) -> Occupancy:
        """The same with `depth` (B, N, H / stride, W / stride) in the lift of the present."""
        return self._predict(frame, frame.depth)

    def _predict(self, frame: Frame, measured_BNHW: Tensor | None) -> Occupancy:
        # the present first: under autocast, weights that are cast without gradients would stay so
        present = self.lifted(frame, measured_BNHW)
        with torch.no_grad():
            past = [self.lifted(earlier, None).bev_BCXY for earlier in frame.past or ()]
        return self.after(past, frame, present)

    def after(self, past: Sequence[Tensor], frame: Frame, present: Lifted) -> Occupancy:
        """The answer to a batch, what was lifted of it and of `frame.past` being given, the latter (B, C, X, Y) each.

        Raises:
            InputError: see `forward`.
        """
        if len(past) != self.fusion.history:
            raise InputError(
                f"the network looks at {self.fusion.history} earlier keyframes, and its frames bring {len(past)}: "
                f"set student.inputs.history={self.fusion.history}"
            )
        motions = [earlier.ego2present for earlier in frame.past or ()]
        return self.answer(present._replace(bev_BCXY=self.fusion(present.bev_BCXY, past, motions)))

    def streaming(self, calls: int) -> Streaming:
        """See `distill.networks.network.Streams`."""
        return Streaming(self, calls)


class PastFusion(nn.Module):
    """Present and warped past -> BEV features as wide as the present: concatenation, 1 x 1 convolution.

    Each step into the past brings a channel along that says where it is known, as a cell of zeros may also be one that
    was seen to be empty.

    Args:
        channels: of present, past and result.
        history: steps into the past.
        grid: over which all lie.
    """

    def __init__(self, channels: int, history: int, grid: VoxelGrid) -> None:
        super().__init__()
        self.history, self.grid = history, grid
        self.mix = conv_norm_act(channels + history * (channels + 1), channels, 1)

    def forward(self, bev_BCXY: Tensor, past: Sequence[Tensor], ego2present: Sequence[Tensor]) -> Tensor:
        """(B, C, X, Y), with (B, C, X, Y) and (B, 4, 4) for each step into the past, the latest first."""
        parts = [bev_BCXY]
        for past_BCXY, motion_B44 in zip(past, ego2present, strict=True):
            parts += warped(past_BCXY, motion_B44, self.grid)
        return self.mix(torch.cat(parts, 1))


def warped(past_BCXY: Tensor, ego2present_B44: Tensor, grid: VoxelGrid) -> tuple[Tensor, Tensor]:
    """BEV features of the past on the cells of the present (docs/formulas.md 12.1).

    What stands still comes to lie where it is, for a motion in the plane; z, roll and pitch are left out.

    Args:
        past_BCXY: on cells that divide the grid of the past evenly.
        ego2present_B44: its frame to that of the present, metres.
        grid: of both.

    Returns:
        (B, C, X, Y), bilinear between the centres of the cells, 0 outside the grid of the past; and (B, 1, X, Y) of the
        same dtype, 1 where the centre of a cell lies inside, 0 elsewhere.
    """
    with torch.autocast(past_BCXY.device.type, enabled=False):
        place_BXY2 = _places(past_BCXY.shape[-2:], ego2present_B44.to(past_BCXY.dtype), grid)
        known_B1XY = (place_BXY2.abs() <= 1).all(-1).unsqueeze(1).to(past_BCXY.dtype)
        # up to the edge of the outermost cells these alone are looked at, so that they do not fade
        moved_BCXY = F.grid_sample(past_BCXY, place_BXY2.flip(-1), padding_mode="border", align_corners=False)
        return moved_BCXY * known_B1XY, known_B1XY


def _places(size: Sequence[int], ego2present_B44: Tensor, grid: VoxelGrid) -> Tensor:
    """Where the centres of the cells of the present lie in the past: (B, X, Y, 2), -1 and 1 the edges of its grid."""
    lower_2, upper_2 = (ego2present_B44.new_tensor(corner[:2]) for corner in (grid.lower, grid.upper))
    middle_2, half_2 = (upper_2 + lower_2) / 2, (upper_2 - lower_2) / 2
    x, y = ((2 * torch.arange(count, device=half_2.device, dtype=half_2.dtype) + 1) / count - 1 for count in size)
    present_XY2 = torch.stack(torch.meshgrid(x, y, indexing="ij"), -1) * half_2 + middle_2
    # the turn about z that comes nearest to the rotation
    cos_B = ego2present_B44[:, 0, 0] + ego2present_B44[:, 1, 1]
    sin_B = ego2present_B44[:, 1, 0] - ego2present_B44[:, 0, 1]
    length_B11 = (cos_B**2 + sin_B**2).sqrt()[:, None, None]  # hypot is not in ONNX
    turn_B22 = torch.stack([cos_B, -sin_B, sin_B, cos_B], -1).view(-1, 2, 2) / length_B11
    offset_BXY2 = present_XY2 - ego2present_B44[:, None, None, :2, 3]
    return (torch.einsum("bxyi,bij->bxyj", offset_BXY2, turn_B22) - middle_2) / half_2


class Streaming:
    """A `TemporalNetwork` that looks at no keyframe twice if they come in the order of time; in any order it is right.

    The answers are those of the network: bit for bit for batches of one keyframe, and up to rounding for others.

    Args:
        network: in evaluation mode; its weights stay as they are.
        calls: see `Memory`, which keeps what was lifted of images and calibration.
    """

    def __init__(self, network: TemporalNetwork, calls: int) -> None:
        self.network = network
        self.memory: Memory[Tensor] = Memory(("images", "intrinsics", "cam2ego"), calls)

    @torch.no_grad()
    def __call__(self, frame: Frame) -> Occupancy:
        """As `TemporalNetwork.forward`."""
        self.memory.begin()
        present = self.network.lifted(frame, None)
        self.memory.keep(frame, present.bev_BCXY.split(1))
        past = [torch.cat(self.memory.recall(earlier, self._lifted)) for earlier in frame.past or ()]
        return self.network.after(past, frame, present)

    def _lifted(self, earlier: Frame) -> Sequence[Tensor]:
        return self.network.lifted(earlier, None).bev_BCXY.split(1)

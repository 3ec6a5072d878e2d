"""FlashOcc M2: two keyframes, and a third one for stereo. Letters as in `distill.networks.prediction`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.errors import InputError
from distill.frame import Frame
from distill.networks.flashocc.bev_encoder import BEVEncoder, Block
from distill.networks.flashocc.depth_net import camera_numbers
from distill.networks.flashocc.encoder import ImageEncoder, ImageFeatures, normalised
from distill.networks.flashocc.head import ChannelToHeight
from distill.networks.flashocc.lift import StereoLift, frustum
from distill.networks.flashocc.network import FlashOcc
from distill.networks.flashocc.rig import Rig, key_camera, rigs_of
from distill.networks.flashocc.stereo import cost_volume
from distill.networks.memory import Memory
from distill.networks.prediction import Occupancy

_PAST = 2  # keyframes: one is splatted too, and one is what that is compared with


class _Seen(NamedTuple):
    """One keyframe, and the fine features of the one before it."""

    rig: Rig
    image_BNCHW: Tensor
    fine_BNCHW: Tensor
    before: Rig
    fine_before_BNCHW: Tensor


class FlashOccStereo(FlashOcc):
    """Camera images of three keyframes -> voxel logits of the last of them (docs/formulas.md 9.4).

    Args:
        align: "after": the BEV features of the past are warped into the present; "before": its points are moved there.
        others: see `FlashOcc`.

    Raises:
        InputError: as `FlashOcc`, or no such alignment.
    """

    lift: StereoLift

    def __init__(
        self,
        convention: str,
        align: str,
        encoder: ImageEncoder,
        lift: StereoLift,
        bev_encoder: BEVEncoder,
        head: ChannelToHeight,
    ) -> None:
        super().__init__(convention, encoder, lift, bev_encoder, head)
        if align not in ("after", "before"):
            raise InputError(f"student.network.align={align}: choose one of after, before")
        self.align = align
        channels = lift.split[1]
        self.pre_process = Block(channels, channels, 1, shortcut=3)

    def times(self, frame: Frame) -> list[Frame]:
        """The frames that are looked at, the present first.

        Raises:
            InputError: the frame brings no such past.
        """
        if frame.past is None or len(frame.past) < _PAST:
            raise InputError(f"FlashOcc M2 looks at {_PAST} earlier keyframes: its inputs want history={_PAST}")
        return [frame, *frame.past[:_PAST]]

    def cells(self, frame: Frame) -> Tensor:
        """As `FlashOcc.cells`, rounded as upstream does in either convention: stereo goes by the same rig."""
        return self._cells(frame, rigs_of(frame, self.convention.key)[0])

    def predict(self, images: list[Tensor], frame: Frame) -> Occupancy:
        """As `FlashOcc.predict`, of three frames."""
        cameras = images[0].shape[:2]
        present = self.encoder(images[0].flatten(0, 1))
        with torch.no_grad():  # as upstream trains
            past, reference_MCHW = self.encoder(images[1].flatten(0, 1)), self.encoder.fine(images[2].flatten(0, 1))
        merged = [each.merged_MCHW.unflatten(0, cameras) for each in (present, past)]
        fine = [each.unflatten(0, cameras) for each in (present.fine_MCHW, past.fine_MCHW, reference_MCHW)]
        return self.after(merged, fine, frame)

    def after(self, merged: Sequence[Tensor], fine: Sequence[Tensor], frame: Frame) -> Occupancy:
        """The answer to a batch, features of its images being given.

        Args:
            merged: (B, N, C, H, W), of the present and the latest of the past.
            fine: of these two and of the one before them.
            frame: the batch.
        """
        rigs = rigs_of(frame, self.convention.key)
        present, past = (_Seen(rigs[i], merged[i], fine[i], rigs[i + 1], fine[i + 1]) for i in range(_PAST))
        numbers_BN27 = camera_numbers(present.rig)  # those of the present for the past, too
        depth_BNDHW, context_BNCHW = self._predicted(present, numbers_BN27, frame)
        bev_BCYX = self._splatted(depth_BNDHW, context_BNCHW, self._cells(frame, present.rig))
        with torch.no_grad():
            past_BCYX = self._past_bev(past, present.rig, numbers_BN27, frame)
        return self._answer(present.image_BNCHW, depth_BNDHW, self.bev_encoder(torch.cat([past_BCYX, bev_BCYX], 1)))

    def streaming(self, calls: int) -> Streaming:
        """See `distill.networks.network.Streams`."""
        return Streaming(self, calls)

    def _predicted(self, seen: _Seen, numbers_BN27: Tensor, frame: Frame) -> tuple[Tensor, Tensor]:
        height, width = frame.images.shape[-2:]
        size, encoder = (height, width), self.encoder
        pixels_DHW3 = frustum(self.lift.depth_D, size, encoder.fine_stride, self.convention.corners)
        pair = (seen.fine_BNCHW, seen.fine_before_BNCHW, seen.rig, seen.before)
        return self.lift.predict_with(seen.image_BNCHW, numbers_BN27, cost_volume(*pair, pixels_DHW3, size))

    def _splatted(self, depth_BNDHW: Tensor, context_BNCHW: Tensor, cell_BNDHW: Tensor) -> Tensor:
        return self.pre_process(self.lift.splat(depth_BNDHW, context_BNCHW, cell_BNDHW))

    def _past_bev(self, past: _Seen, present: Rig, numbers_BN27: Tensor, frame: Frame) -> Tensor:
        predicted = self._predicted(past, numbers_BN27, frame)
        if self.align == "before":
            return self._splatted(*predicted, self._cells(frame, past.rig))
        bev_BCYX = self._splatted(*predicted, self._cells(frame, present))
        return warped(bev_BCYX, motion(present, past.rig, key_camera(frame, self.convention.key)), self.lift)


class Streaming:
    """A `FlashOccStereo` that looks at no image twice if keyframes come in the order of time; in any order it is right.

    Features of images alone are remembered: what becomes of those of the past depends on the cameras of the present.

    Args:
        network: in evaluation mode; its weights stay as they are.
        calls: see `Memory`.
    """

    def __init__(self, network: FlashOccStereo, calls: int) -> None:
        self.network = network
        self.memory: Memory[ImageFeatures] = Memory(("images",), calls)

    @torch.no_grad()
    def __call__(self, frame: Frame) -> Occupancy:
        """As `FlashOccStereo.forward`."""
        self.memory.begin()
        rows_T = [self.memory.recall(seen, self._features) for seen in self.network.times(frame)]
        merged = [torch.stack([row.merged_MCHW for row in rows]) for rows in rows_T[:_PAST]]
        fine = [torch.stack([row.fine_MCHW for row in rows]) for rows in rows_T]
        return self.network.after(merged, fine, frame)

    def _features(self, seen: Frame) -> list[ImageFeatures]:
        # one by one, so that they are the same whoever asks for them first
        images_BN3HW = normalised(seen.images, self.network.convention.bgr)
        return [self.network.encoder(images_N3HW) for images_N3HW in images_BN3HW]


def motion(present: Rig, past: Rig, camera: int) -> Tensor:
    """From where things are now to where they were, seen from the vehicle at each time: x, y, 1, float32 (B, 3, 3).

    Args:
        present, past: the rig at both times, whose poses lead to the present.
        camera: whose poses tell.
    """
    plane = [0, 1, 3]
    with torch.autocast(present.world_B33.device.type, enabled=False):
        now_B44, then_B44 = (_in_world(rig, camera) for rig in (present, past))
        return (now_B44 @ torch.linalg.inv(then_B44))[:, plane][:, :, plane]


def _in_world(rig: Rig, camera: int) -> Tensor:
    world_B44 = torch.eye(4, device=rig.world_B33.device).repeat(len(rig.world_B33), 1, 1)
    world_B44[:, :3, :3] = rig.world_B33
    return world_B44 @ rig.cam2key_BN44[:, camera]


def warped(bev_BCYX: Tensor, motion_B33: Tensor, lift: StereoLift) -> Tensor:
    """BEV features where things are after a motion; zero where nothing was seen.

    Args:
        bev_BCYX: features before.
        motion_B33: see `motion`.
        lift: whose cells they are.
    """
    rows, columns = lift.bev_shape
    (size_x, size_y), (x, y) = lift.cell_3[:2], lift.lower_3[:2]
    cell2metre_33 = torch.stack(
        [torch.stack([size_x, 0 * x, x]), torch.stack([0 * y, size_y, y]), torch.tensor([0.0, 0.0, 1.0]).to(x)]
    )
    row_YX, column_YX = torch.meshgrid(torch.arange(rows).to(x), torch.arange(columns).to(x), indexing="ij")
    places_YX31 = torch.stack([column_YX, row_YX, torch.ones_like(row_YX)], -1).unsqueeze(-1)
    with torch.autocast(bev_BCYX.device.type, enabled=False):
        cells_B33 = torch.linalg.inv(cell2metre_33) @ motion_B33 @ cell2metre_33
        places_BYX2 = (cells_B33[:, None, None] @ places_YX31)[..., :2, 0]
        grid_BYX2 = places_BYX2 / places_BYX2.new_tensor([columns - 1, rows - 1]) * 2 - 1
        return F.grid_sample(bev_BCYX.float(), grid_BYX2, align_corners=True)

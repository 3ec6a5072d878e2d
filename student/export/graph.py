"""What of a network is exported: images and calibration in, classes out, in operators that every runtime knows.

Letters: B batch, N cameras, D depth bins, H W image cells, T steps into the past, C channels, X Y cells of the BEV.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from distill.errors import InputError
from distill.networks.camera import CameraNetwork
from distill.networks.flashocc.encoder import normalised
from distill.networks.flashocc.lift import places
from distill.networks.flashocc.network import FlashOcc
from distill.networks.lift import LiftCells
from distill.networks.temporal import TemporalNetwork

POSES = ("intrinsics", "cam2ego")


class Parts:
    """A network cut where calibration comes in.

    Args:
        network: in evaluation mode.
        image_size: (H, W) of its images, pixels.

    Attributes:
        geometry_names: of what `geometry` returns.
    """

    geometry_names: tuple[str, ...]

    def __init__(self, network: Any, image_size: tuple[int, int]) -> None:
        self.network, self.image_size = network, image_size

    @abstractmethod
    def geometry(self, intrinsics: Tensor, cam2ego: Tensor) -> tuple[Tensor, ...]:
        """All that calibration decides: int64 cells (B, N, D, H, W), and what else there is."""

    @abstractmethod
    def lifted(self, images: Tensor, geometry: Sequence[Tensor]) -> Tensor:
        """The BEV features of one keyframe."""

    def logits(self, bev: Tensor) -> Tensor:
        """(B, X, Y, Z, classes) of BEV features."""
        return self.network.head(self.network.bev_encoder(bev))

    @abstractmethod
    def described(self) -> dict[str, Any]:
        """What `student.export.table.geometry` has to know, JSON-ready."""


class OurParts(Parts):
    """Of a `CameraNetwork`, or of one that looks back."""

    geometry_names = ("cells", "road")

    def geometry(self, intrinsics: Tensor, cam2ego: Tensor) -> tuple[Tensor, ...]:
        """See `LiftCells`."""
        stride = self.network.encoder.stride
        height, width = (side // stride for side in self.image_size)
        return self.network.lift.cells(intrinsics, cam2ego, (height, width), stride)

    def lifted(self, images: Tensor, geometry: Sequence[Tensor]) -> Tensor:
        """Encoder and lift."""
        return self.network.lift.pool(self.network.encoder(images), LiftCells(*geometry))[0]

    def described(self) -> dict[str, Any]:
        """See `Parts`."""
        lift, stride = self.network.lift, self.network.encoder.stride
        rows, columns = (((torch.arange(side // stride) + 0.5) * stride).tolist() for side in self.image_size)
        x, y = lift.bev_shape
        return {
            "columns": columns,
            "rows": rows,
            "depths": lift.depth_centres.tolist(),
            "lower": lift.lower_3.tolist(),
            "cell": lift.cell_3.tolist(),
            "shape": [x, y, lift.height_slices],
            "strides": [y, 1, x * y],
            "truncates": False,
            "road": {"height": lift.ground, "reach": lift.voxel_size},
        }


class FlashOccParts(Parts):
    """Of FlashOcc M0 and M1."""

    geometry_names = ("cells",)

    def geometry(self, intrinsics: Tensor, cam2ego: Tensor) -> tuple[Tensor, ...]:
        """The cells alone."""
        return (self.network.cells_of(intrinsics, cam2ego, self.image_size),)

    def lifted(self, images: Tensor, geometry: Sequence[Tensor]) -> Tensor:
        """Encoder and lift."""
        network = self.network
        merged_MCHW = network.encoder(normalised(images, network.convention.bgr).flatten(0, 1)).merged_MCHW
        depth_BNDHW, context_BNCHW = network.lift.predict(merged_MCHW.unflatten(0, images.shape[:2]))
        return network.lift.splat(depth_BNDHW, context_BNCHW, geometry[0])

    def described(self) -> dict[str, Any]:
        """See `Parts`."""
        lift, stride, convention = self.network.lift, self.network.encoder.stride, self.network.convention
        rows, columns = (places(side, stride, convention.corners).tolist() for side in self.image_size)
        y, x = lift.bev_shape
        return {
            "columns": columns,
            "rows": rows,
            "depths": lift.depth_D.tolist(),
            "lower": lift.lower_3.tolist(),
            "cell": lift.cell_3.tolist(),
            "shape": [x, y, 1],
            "strides": [1, x, x * y],
            "truncates": convention.truncates,
            "road": None,
        }


_PARTS: dict[type[nn.Module], type[Parts]] = {
    CameraNetwork: OurParts,
    TemporalNetwork: OurParts,
    FlashOcc: FlashOccParts,
}


def parts_of(network: nn.Module, image_size: tuple[int, int]) -> Parts:
    """A network cut where calibration comes in.

    Raises:
        InputError: nobody has said how.
    """
    if type(network) not in _PARTS:
        raise InputError(
            f"no ONNX graph of a {type(network).__name__} is known, only of "
            f"{', '.join(kind.__name__ for kind in _PARTS)} (M0 and M1): format=safetensors takes any network"
        )
    return _PARTS[type(network)](network, image_size)


class Graph(nn.Module):
    """The network as it is exported.

    Args:
        network: in evaluation mode.
        image_size: (H, W) of its images, pixels; fixed in the graph.
        pool: "inside": it is given intrinsics and poses; "table": what `student.export.table` makes of them.
        outputs: "classes", or "logits" too.

    Attributes:
        inputs, outputs: their names, in order. A network that looks back also gives the BEV features of the present,
            and takes those of the past.

    Raises:
        InputError: a network of which no graph is known.
    """

    def __init__(self, network: nn.Module, image_size: tuple[int, int], pool: str, outputs: Sequence[str]) -> None:
        super().__init__()
        self.network, self.parts, self.told = network, parts_of(network, image_size), pool == "table"
        self.history = network.fusion.history if isinstance(network, TemporalNetwork) else 0
        self.geometry_names = self.parts.geometry_names if self.told else POSES
        past, bev = (("past", "ego2present", "remembered"), ("bev",)) if self.history else ((), ())
        self.inputs, self.outputs = ("images", *self.geometry_names, *past), (*outputs, *bev)

    def forward(self, images: Tensor, *told: Tensor) -> tuple[Tensor, ...]:
        """The outputs.

        Args:
            images: uint8 (B, N, 3, H, W), R, G, B.
            told: the other inputs: intrinsics (B, N, 3, 3) of these images and cam2ego (B, N, 4, 4), or int32 cells and
                what else there is of `Parts.geometry`; then BEV features of earlier keyframes, the latest first (B, T,
                C, X, Y), their ego frames to that of the present (B, T, 4, 4), and whether there is such a keyframe at
                all, bool (B, T).
        """
        geometry, past = told[: len(self.geometry_names)], told[len(self.geometry_names) :]
        geometry = (geometry[0].long(), *geometry[1:]) if self.told else self.parts.geometry(*geometry)
        bev_BCXY = self.parts.lifted(images, geometry)
        logits_BXYZC = self.parts.logits(self._with(bev_BCXY, *past) if past else bev_BCXY)
        found = {"classes": logits_BXYZC.argmax(-1).to(torch.uint8), "logits": logits_BXYZC, "bev": bev_BCXY}
        return tuple(found[name] for name in self.outputs)

    def _with(self, bev_BCXY: Tensor, past_BTCXY: Tensor, ego2present_BT44: Tensor, remembered_BT: Tensor) -> Tensor:
        """With the past; without one, as in training, the present stands in for it and the car stands still."""
        assert isinstance(self.network, TemporalNetwork)
        still_44 = torch.eye(4, device=bev_BCXY.device)
        past_BTCXY = torch.where(remembered_BT[..., None, None, None], past_BTCXY, bev_BCXY.unsqueeze(1))
        motion_BT44 = torch.where(remembered_BT[..., None, None], ego2present_BT44, still_44)
        return self.network.fusion(bev_BCXY, past_BTCXY.unbind(1), motion_BT44.unbind(1))

    @torch.no_grad()
    def example(self, batch: int, cameras: int) -> dict[str, Tensor]:
        """Inputs of the right shapes, by name."""
        height, width = self.parts.image_size
        lens_33 = torch.tensor([[width, 0, width / 2], [0, width, height / 2], [0, 0, 1]])
        ahead_44 = torch.tensor([[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 1.5], [0, 0, 0, 1]])
        images = torch.zeros(batch, cameras, 3, height, width, dtype=torch.uint8)
        poses = [lens_33.repeat(batch, cameras, 1, 1), ahead_44.repeat(batch, cameras, 1, 1)]
        cells, *more = self.parts.geometry(*poses)
        told = [cells.int(), *more] if self.told else poses
        if self.history:
            past_BTCXY = self.parts.lifted(images, (cells, *more)).unsqueeze(1).repeat(1, self.history, 1, 1, 1)
            told += [past_BTCXY, torch.eye(4).repeat(batch, self.history, 1, 1)]
            told += [torch.ones(batch, self.history, dtype=torch.bool)]
        return dict(zip(self.inputs, [images, *told], strict=True))

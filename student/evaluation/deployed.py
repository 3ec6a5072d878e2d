"""An ONNX file of occ-export as a network that can be scored: frames in, an `Occupancy` out, on the CPU.

Letters: B batch, C channels or classes, X Y Z voxel axes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn

from distill.frame import Frame
from distill.networks.flashocc.rig import rigs_of
from distill.networks.memory import Memory
from distill.networks.prediction import Occupancy
from student.export.graph import POSES
from student.export.runtime import OnnxFile
from student.export.table import geometry


class Deployed(nn.Module):
    """The network in the file; it answers with logits, or without such an output with 0 for its class, -inf for others.

    One that looks back remembers what it saw in its last calls, as in a car.

    Args:
        file: the file.
        calls: see `Memory`.
    """

    depth_stride = None

    def __init__(self, file: OnnxFile, calls: int = 1) -> None:
        super().__init__()
        self.file = file
        self.memory: Memory[np.ndarray] = Memory(("images", *POSES), calls)

    def streaming(self, calls: int) -> Callable[[Frame], Occupancy]:
        """See `distill.networks.network.Streams`."""
        return Deployed(self.file, calls)

    def forward(self, frame: Frame) -> Occupancy:
        """Predict as the exported network does.

        Raises:
            InputError: the frames are not such that the file was made for.
        """
        found = self.file.run(self.feeds(frame))
        if "bev" in found:
            self.memory.keep(frame, found["bev"])
        if "logits" in found:
            return Occupancy(torch.from_numpy(found["logits"]).to(frame.images.device))
        classes_BXYZ = torch.from_numpy(found["classes"]).to(frame.images.device)
        sure_BXYZC = nn.functional.one_hot(classes_BXYZ.long(), len(self.file.facts["classes"]["names"]))
        return Occupancy(sure_BXYZC.float().log())

    def feeds(self, frame: Frame) -> dict[str, np.ndarray]:
        """The inputs of the graph, by name."""
        self.memory.begin()
        feeds = self._seen(frame)
        if self.file.facts["history"]:
            past = frame.past or ()
            feeds["past"] = np.stack([self.memory.recall(earlier, self._alone) for earlier in past], 1)
            feeds["ego2present"] = np.stack([_array(earlier.ego2present) for earlier in past], 1)
            feeds["remembered"] = np.ones(feeds["past"].shape[:2], bool)
        return feeds

    def _seen(self, frame: Frame) -> dict[str, np.ndarray]:
        """Images and calibration, as the graph takes them."""
        intrinsics, cam2ego, key = frame.intrinsics, frame.cam2ego, self.file.facts["key_camera"]
        if key is not None:
            rig = rigs_of(frame, key)[0]
            world_B144 = torch.eye(4, device=rig.world_B33.device).repeat(len(rig.world_B33), 1, 1, 1)
            world_B144[:, 0, :3, :3] = rig.world_B33
            cam2ego = world_B144 @ rig.cam2key_BN44
        poses, lift = {"intrinsics": _array(intrinsics), "cam2ego": _array(cam2ego)}, self.file.facts["lift"]
        self.file.check_finite(poses)
        told = geometry(**poses, lift=lift) if self.file.facts["pool"] == "table" else poses
        return {"images": _array(frame.images), **told}

    def _alone(self, frame: Frame) -> Sequence[np.ndarray]:
        """What is lifted of keyframes in the past, (C, X, Y) each."""
        feeds, batch, steps = self._seen(frame), len(frame.images), self.file.facts["history"]
        feeds["past"] = np.zeros((batch, steps, *self.file.inputs["past"][2:]), np.float32)
        feeds["ego2present"] = np.tile(np.eye(4, dtype=np.float32), (batch, steps, 1, 1))
        feeds["remembered"] = np.zeros((batch, steps), bool)
        return [*self.file.run(feeds)["bev"]]


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.cpu().contiguous().numpy()

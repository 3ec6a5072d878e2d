"""Asks a program about keyframes, and takes its answers as it has declared them.

Letters: K keyframes of the past with the present, N cameras, H W image rows and columns.
"""

from __future__ import annotations

import atexit
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from distill import ranks
from distill.errors import InputError
from distill.frame import Frame
from distill.nuscenes.index import Keyframes
from distill.nuscenes.keyframe import Keyframe
from distill.signals import TeacherPrediction
from teacher_dump.bridge.occ_bridge import PROTOCOL
from teacher_dump.declared import KINDS, Declared, joined
from teacher_dump.teachers.process.program import BRIDGE, Program, Shared

_BYTES = 64  # of an answer, for a voxel or for a number of a point, at most; alignment
_INPUTS = {"history": 0, "lidar": False, "images": None}  # what a program may ask for, and what it gets otherwise


class ProcessTeacher:
    """A program in an environment of its own; see `teacher_dump.teachers.Teacher` and `teacher_dump.bridge`.

    It is started at once, on the device of this rank, and ends with this process.

    Args:
        command: that starts it.
        timeout: seconds in which it has to be ready, and to answer about a keyframe.
        image_size: [H, W] of the images in the picture beside the store, unless it asks for images of its own size.
        device: as for the whole dump.

    Raises:
        InputError: it does not run, or declares what cannot be.
    """

    def __init__(self, command: str, timeout: float, image_size: list[int], device: str) -> None:
        on = ranks.device(device)
        self._where = f"teacher.command={command}"
        self._program = Program(command, on.index if on.type == "cuda" else None, timeout)
        atexit.register(self.close)
        hello = self._program.receive("saying what it gives")
        declared = self._agreed(hello)
        asked = {name: declared.pop(name, None) or usual for name, usual in _INPUTS.items()}
        self.checkpoint_sha256 = str(declared.pop("checkpoint_sha256", ""))
        self.declared = self._checked(lambda: Declared.of(declared, self._where))
        self.grid, self.points = self.declared.voxel_grid, self.declared.points
        self.inputs: dict[str, Any] = {
            "image_size": asked["images"] or image_size,
            "history": asked["history"],
            "lidar": asked["lidar"],
            "depth_stride": None,
        }
        self.identity = {"command": command, "declared": self.declared.to_dict(), "asks for": asked}
        self._sends_images = asked["images"] is not None
        self._answers = self._checked(lambda: self._program.share("answers", self._most()))
        self._images: Shared | None = None
        self._program.send({"protocol": PROTOCOL})
        self.device = torch.device("cpu")

    def close(self) -> None:
        """Let the program end."""
        self._program.close()

    def to(self, device: torch.device) -> ProcessTeacher:
        """Work its answers out on a device; the program has its own already."""
        self.device = device
        return self

    def read(self, keyframes: Keyframes, index: int) -> str:
        """What the program is told of a keyframe, JSON."""
        past = keyframes.before(index, self.inputs["history"])
        told, *earlier = [_described(keyframe, self.inputs["lidar"]) for keyframe in (keyframes[index], *past)]
        return json.dumps({**told, "past": earlier})

    def predict(self, frame: Frame) -> TeacherPrediction:
        """Ask about each keyframe of a batch, one after the other."""
        return joined([self._answer(frame, row) for row in range(len(frame.token))])

    def _answer(self, frame: Frame, row: int) -> TeacherPrediction:
        token = frame.token[row]
        message = {"keyframe": frame["given"][row], "answers": self._answers.described()}
        if self._sends_images:
            message["images"] = self._shown(frame, row)
        self._program.send(message)
        answer = self._program.receive(f"answering about keyframe {token}")
        if answer.get("token") != token:
            raise InputError(f"{self._where}: it answered about {answer.get('token')}, asked was keyframe {token}")
        try:
            prediction = self.declared.prediction(self._arrays(answer["arrays"]), self.device)
        except InputError as error:
            raise InputError(f"{self._where}: keyframe {token}: {error}") from error
        # the program writes its next answer into the same memory
        return prediction if len(frame.token) == 1 else _copied(prediction)

    def _arrays(self, listed: list[dict[str, Any]]) -> dict[str, np.ndarray]:
        return {
            each["name"]: self._answers.view(each["dtype"], tuple(each["shape"]), each["offset"]) for each in listed
        }

    def _shown(self, frame: Frame, row: int) -> dict[str, Any]:
        """Put the images of a keyframe and its past where the program finds them."""
        frames = [frame, *(frame.past or ())]
        images_KN3HW = np.stack([each.images[row].cpu().numpy() for each in frames])
        if self._images is None:
            self._images = self._program.share("images", images_KN3HW.nbytes)
        self._images.view("uint8", images_KN3HW.shape, 0)[:] = images_KN3HW
        intrinsics = [each.intrinsics[row].tolist() for each in frames]
        return {**self._images.described(), "shape": images_KN3HW.shape, "intrinsics": intrinsics}

    def _agreed(self, hello: Mapping[str, Any]) -> dict[str, Any]:
        if hello.get("protocol") != PROTOCOL:
            self._program.send({"error": "protocol"})
            self._program.close()
            raise InputError(
                f"{self._where}: it speaks version {hello.get('protocol')} of the protocol, this occ-dump version "
                f"{PROTOCOL}: let it import {BRIDGE / 'occ_bridge.py'}"
            )
        return dict(hello["declared"])

    def _checked(self, make: Any) -> Any:
        """What `make` returns; where it refuses, the program is told so and ends."""
        try:
            return make()
        except InputError:
            self._program.send({"error": "refused"})
            self._program.close()
            raise

    def _most(self) -> int:
        """Bytes of the largest answer."""
        voxels = math.prod(self.grid.shape) * (4 * len(self.declared.classes) + 1)
        if self.points is not None:
            voxels += 8 * self.points.count * (3 + len(self.declared.classes))
        return voxels + _BYTES * len(KINDS)


def _described(keyframe: Keyframe, lidar: bool) -> dict[str, Any]:
    """JSON-ready; the scan only for who said that it reads scans, so that the store knows what it was given."""
    return {
        "token": keyframe.token,
        "scene": keyframe.scene,
        "timestamp": keyframe.timestamp,
        "ego2global": keyframe.ego2global.tolist(),
        "lidar": {
            "lidar2ego": None if keyframe.lidar2ego is None else keyframe.lidar2ego.tolist(),
            **({"path": str(keyframe.lidar_path), "columns": keyframe.scan.columns} if lidar else {}),
        },
        "cameras": {
            camera.channel: {
                "path": None if camera.path is None else str(camera.path),
                "width": camera.width,
                "height": camera.height,
                "intrinsics": camera.intrinsics.tolist(),
                "cam2ego": camera.cam2ego.tolist(),
                "ego2global": camera.ego2global.tolist(),
            }
            for camera in keyframe.cameras
        },
    }


def _copied(prediction: TeacherPrediction) -> TeacherPrediction:
    covered = prediction.covered_BXYZ
    return prediction._replace(
        voxel_log_probs_BXYZC=prediction.voxel_log_probs_BXYZC.clone(),
        covered_BXYZ=None if covered is None else covered.clone(),
    )

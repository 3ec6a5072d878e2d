"""Answers that lie in a folder, a file per keyframe, taken as they are declared."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from distill import ranks
from distill.errors import InputError
from distill.frame import Frame
from distill.nuscenes.index import Keyframes
from distill.nuscenes.keyframe import Keyframe
from distill.predictions import files_by_token, read_arrays
from distill.signals import TeacherPrediction
from teacher_dump.declared import KINDS, Declared, joined
from teacher_dump.teachers.files.positions import files_by_position


class _Format(NamedTuple):
    """What a name of a format says by itself; None is left to be declared."""

    kind: str | None
    axes: str | None
    keys: Mapping[str, str]  # names of arrays (`teacher_dump.declared.KINDS`) -> keys in a file


_FORMATS = {
    "tokens": _Format(None, None, {}),
    "prototype": _Format(None, "CXYZ", {}),
    "predictions": _Format("classes", "XYZ", {"voxels": "pred"}),
    "sparse": _Format("sparse", "XYZ", {"places": "occ_loc", "classes": "sem_pred"}),
}


class FilesTeacher:
    """A folder of dumps; see `teacher_dump.teachers.Teacher` and conf/teacher/files.yaml.

    Args:
        folder: is listed once.
        format: how its files are named and what is in them.
        kind, axes, grid, classes, confidence: see `teacher_dump.declared.Declared`; None: the format says it.
        key: of the array in an `.npz` that holds several; None: it holds one.
        covered: key of an array in an `.npz`, bool, which voxels were modelled; None: all.
        positions: of `prototype`, what its positions mean; see `files_by_position`.
        image_size: [H, W] of the images in the picture beside the store.

    Raises:
        InputError: something is not declared, contradicts the format, or the folder has no such files.
    """

    def __init__(
        self,
        folder: str,
        format: str,  # noqa: A002
        kind: str | None,
        axes: str | None,
        grid: str,
        classes: str | list[str],
        confidence: float | None,
        key: str | None,
        covered: str | None,
        positions: str | dict[str, str] | None,
        image_size: list[int],
    ) -> None:
        told = _FORMATS[format]
        for name, mine, theirs in (("kind", kind, told.kind), ("key", key, told.keys or None)):
            if mine is not None and theirs is not None:
                raise InputError(f"teacher.{name}={mine}: format={format} says that itself: leave it out")
        facts = {"kind": kind or told.kind, "axes": axes or told.axes, "grid": grid, "classes": classes}
        self.declared = Declared.of({**facts, "confidence": confidence}, f"teacher.format={format}")
        self._folder, self._keys = Path(folder), dict(told.keys)
        self._keys |= {name: each for name, each in (("voxels", key), ("covered", covered)) if each is not None}
        self._files = self._listed(format, positions)
        self.grid, self.checkpoint_sha256 = self.declared.voxel_grid, ""
        self.inputs = {"image_size": image_size, "lidar": False, "depth_stride": None}
        self.identity = {"format": format, "keys": self._keys, "declared": self.declared.to_dict()} | _digests(
            positions
        )
        self.device = torch.device("cpu")

    def to(self, device: torch.device) -> FilesTeacher:
        """Work answers out on a device."""
        self.device = device
        return self

    def file(self, keyframe: Keyframe) -> Path:
        """The file about a keyframe, or what it might be called."""
        return self._files.get(keyframe.token, self._folder / f"{keyframe.token}.npz")

    def read(self, keyframes: Keyframes, index: int) -> dict[str, Tensor]:
        """The arrays in the file about a keyframe, by the names of `teacher_dump.declared.KINDS`."""
        path = self.file(keyframes[index])
        whole = all(name in self._keys for name in KINDS[self.declared.kind])
        found = read_arrays(path, self._keys.values() if whole else ())
        keys = dict(self._keys)
        if not whole:
            others = [key for key in found if key not in keys.values()]
            if len(others) != 1:
                raise InputError(f"{path}: holds {', '.join(others)}: say which by teacher.key")
            keys["voxels"] = others[0]
        lacking = [key for key in keys.values() if key not in found]
        if lacking:
            raise InputError(f"{path}: no {', '.join(lacking)} in it, its keys are {', '.join(found)}")
        return {name: torch.from_numpy(found[key]) for name, key in keys.items()}

    def predict(self, frame: Frame) -> TeacherPrediction:
        """What the files say about a batch."""
        answers = []
        for token, arrays in zip(frame.token, frame["given"], strict=True):
            try:
                answers.append(self.declared.prediction(arrays, self.device))
            except InputError as error:
                raise InputError(f"{self._files[token]}: {error}") from error
        return joined(answers)

    def _listed(self, named: str, positions: str | dict[str, str] | None) -> dict[str, Path]:
        """Sample token -> file."""
        if (positions is not None) != (named == "prototype"):
            told = (
                "its files are named after positions in a data loader, which mean nothing without the list it went "
                "through: give the info file (.pkl), or a .txt or .json of sample tokens"
                if positions is None
                else "its files are named after sample tokens: leave it out"
            )
            raise InputError(f"teacher.positions={positions}: format={named}: {told}".replace("=None", "=null"))
        if positions is None:
            files, of_columns = files_by_token(self._folder, (".npz", ".npy")), 0
        else:
            lists = {name: Path(path) for name, path in positions.items()} if isinstance(positions, dict) else None
            files, of_columns = files_by_position(self._folder, lists or Path(str(positions)))
        twice = next((paths for paths in files.values() if len(paths) > 1), None)
        if twice is not None:
            raise InputError(f"{twice[0]} and {twice[1]} are about one keyframe: leave one of them in {self._folder}")
        if ranks.rank() == 0:
            left = f"; {of_columns} of columns (_bev_) are not read: bev is made of voxels" if of_columns else ""
            print(f"{len(files)} files of voxels in {self._folder}{left}", flush=True)
        return {token: paths[0] for token, paths in files.items()}


def _digests(positions: str | dict[str, str] | None) -> dict[str, Any]:
    """What tells a list of positions from others, wherever it lies."""
    if positions is None:
        return {}
    paths = positions if isinstance(positions, dict) else {"": positions}
    return {"positions": {name: hashlib.sha256(Path(path).read_bytes()).hexdigest() for name, path in paths.items()}}

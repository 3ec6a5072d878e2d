"""A folder of predictions (`distill.predictions`), checked before it is scored.

Letters: X Y Z voxel axes, V voxels.
"""

from __future__ import annotations

import csv
import zipfile
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from distill.classes import ClassSet
from distill.errors import InputError
from distill.files import durable
from distill.nuscenes.keyframe import Keyframe
from distill.nuscenes.labels import LabelSource
from distill.predictions import NAMES, files_by_token, read_arrays
from student.evaluation.folder import begin

_NAMED = 3  # offenders in the one-line message
_PATIENCE = 2.0  # seconds until the progress bar appears
_LOOKED_AT = 32  # files of a folder, or less than twice as many, whose axes are compared with the labels'
# axes as they are must be this much worse than turned ones: in right voxels, and in their share of the occupied ones
_TURNED, _TURNED_SHARE = 1.5, 0.1
# what people turn and mirror, and how they would turn it back
_TURNS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "pred[::-1]": lambda pred_XYZ: pred_XYZ[::-1],
    "pred[:, ::-1]": lambda pred_XYZ: pred_XYZ[:, ::-1],
    "pred[:, :, ::-1]": lambda pred_XYZ: pred_XYZ[:, :, ::-1],
    "pred.swapaxes(0, 1)": lambda pred_XYZ: pred_XYZ.swapaxes(0, 1),
    "np.rot90(pred)": np.rot90,
    "np.rot90(pred, 2)": lambda pred_XYZ: np.rot90(pred_XYZ, 2),
    "np.rot90(pred, 3)": lambda pred_XYZ: np.rot90(pred_XYZ, 3),
    "np.rot90(pred, 2).swapaxes(0, 1)": lambda pred_XYZ: np.rot90(pred_XYZ, 2).swapaxes(0, 1),
}
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


class _Offender(NamedTuple):
    """A bad prediction: a line of the list, grouped by `kind` in the message."""

    token: str
    file: str
    kind: str
    detail: str

    @property
    def problem(self) -> str:
        return f"{self.kind}: {self.detail}"


class PredictionsFolder:
    """The predictions below a folder, by sample token.

    Args:
        path: the folder.

    Raises:
        InputError: there is no such folder, or no npz file below it.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._files = path, files_by_token(path)

    def check(
        self,
        keyframes: Sequence[Keyframe],
        known_tokens: Collection[str],
        labels: LabelSource,
        classes: ClassSet,
        offenders_file: Path,
    ) -> int:
        """Refuse the folder unless it holds one good prediction for each keyframe to be scored.

        The names of all files are checked, the content of those to be scored.

        Args:
            keyframes: those to be scored.
            known_tokens: sample tokens of all keyframes of the dataroot.
            labels: on the grid of the predictions.
            classes: of both.
            offenders_file: where all bad predictions are listed, if there are any: CSV, token,file,problem.

        Returns:
            How many keyframes of the dataroot have a prediction here and are not to be scored.

        Raises:
            InputError: predictions are missing, there twice, damaged, of no keyframe, not class ids of `classes` on the
                grid, or fit their labels with turned axes alone.
        """
        scored, known = {keyframe.token: keyframe for keyframe in keyframes}, set(known_tokens)
        offenders = [*self._misnamed(known), *self._missing(scored), *self._repeated(known)]
        offenders += self._bad_content([scored[token] for token in scored if token in self._files], labels, classes)
        if offenders:
            _write_list(offenders_file, offenders)
            raise InputError(self._refusal(offenders, offenders_file))
        self._check_axes(keyframes, labels, classes)
        return len(self._files.keys() - scored.keys())

    def read(self, token: str) -> np.ndarray:
        """The prediction for a keyframe that passed `check`, uint8 (X, Y, Z).

        Raises:
            InputError: the file has changed since.
        """
        path = self._files[token][0]
        try:
            return read_arrays(path, ["pred"])["pred"].astype(np.uint8)
        except InputError as error:
            raise InputError(
                f"{path}: can no longer be read ({error}): leave predictions alone while scoring"
            ) from error

    def _misnamed(self, known: set[str]) -> Iterable[_Offender]:
        for token in sorted(self._files.keys() - known):
            for path in self._files[token]:
                detail = f"no keyframe of the dataroot has it; files are {NAMES}"
                yield self._offender(token, path, "unknown token", detail)

    def _missing(self, scored: Iterable[str]) -> Iterable[_Offender]:
        for token in scored:
            if token not in self._files:
                yield _Offender(token, "", "missing", f"no file {token}.npz or {token}/pred.npz")

    def _repeated(self, known: set[str]) -> Iterable[_Offender]:
        for token, paths in self._files.items():
            if len(paths) > 1 and token in known:
                for path in paths:
                    yield self._offender(token, path, "token twice", f"one of {len(paths)} files for this token")

    def _bad_content(self, keyframes: list[Keyframe], labels: LabelSource, classes: ClassSet) -> Iterable[_Offender]:
        files = [(keyframe, path) for keyframe in keyframes for path in self._files[keyframe.token]]
        with ThreadPoolExecutor() as pool:  # reading and decompressing release the GIL
            found = pool.map(lambda file: _problem(file[0], file[1], labels, classes), files)
            progress = tqdm(found, "check predictions", len(files), unit="file", delay=_PATIENCE)
            for (keyframe, path), problem in zip(files, progress, strict=True):
                if problem is not None:
                    yield self._offender(keyframe.token, path, *problem)

    def _check_axes(self, keyframes: Sequence[Keyframe], labels: LabelSource, classes: ClassSet) -> None:
        """Refuse predictions that would be right far more often if their axes were turned."""
        total, right = 0, np.zeros(1 + len(_TURNS), np.int64)
        for keyframe in keyframes[:: max(1, len(keyframes) // _LOOKED_AT)]:
            found = labels.read(keyframe)
            if found is not None:
                place_3V = np.nonzero(found["mask_camera"] & np.isin(found["semantics"], classes.scored))
                total += len(place_3V[0])
                right += _right(self.read(keyframe.token), found["semantics"][place_3V], place_3V)
        as_is, most, turn = right[0], right.max(), int(right.argmax()) - 1
        if most >= _TURNED * as_is and most - as_is > _TURNED_SHARE * total:
            raise InputError(
                f"{self.path}: predictions with turned axes: {as_is / total:.0%} of the visible occupied voxels have "
                f"their label's class, and {most / total:.0%} after {list(_TURNS)[turn]}: save them so, with axes x "
                "forward, y left, z up"
            )

    def _offender(self, token: str, path: Path, kind: str, detail: str) -> _Offender:
        return _Offender(token, str(path.relative_to(self.path)), kind, detail)

    def _refusal(self, offenders: list[_Offender], offenders_file: Path) -> str:
        kinds = Counter(offender.kind for offender in offenders)
        counts = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        first = {offender.kind: offender for offender in reversed(offenders)}
        named = [first[kind] for kind in kinds][:_NAMED]
        examples = "; ".join(f"{offender.file or offender.token}: {offender.problem}" for offender in named)
        return f"bad predictions in {self.path} ({counts}), for example {examples}; all are listed in {offenders_file}"


def write_prediction(folder: Path, token: str, semantics_XYZ: np.ndarray) -> None:
    """Write `<folder>/<token>.npz`, which the official scorer reads too, complete or not at all.

    Args:
        folder: made if absent.
        token: sample token of the keyframe.
        semantics_XYZ: class ids, uint8.

    Raises:
        InputError: it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with durable(folder / f"{token}.npz") as file:
            np.savez_compressed(file, pred=semantics_XYZ)
    except OSError as error:
        raise InputError(f"cannot write the prediction of {token} to {folder}: {error}") from error


def _problem(keyframe: Keyframe, path: Path, labels: LabelSource, classes: ClassSet) -> tuple[str, str] | None:
    """Kind and detail of what is wrong with a file, None if nothing is."""
    grid = labels.grid
    try:
        with zipfile.ZipFile(path) as archive:
            keys = [name.removesuffix(".npy") for name in archive.namelist()]
            if "pred" not in keys:
                return "no pred", f"its keys are {', '.join(keys) or 'none'}: save the class ids as `pred`"
            shape, dtype = _header(archive)
        if shape != grid.shape:  # before megabytes of scores are read
            return (
                "wrong shape",
                f"{dtype} {shape}, class ids on {grid.name} are {grid.shape}{_advice(shape, grid.shape)}",
            )
        with np.load(path, allow_pickle=False) as file:
            pred_XYZ = file["pred"]
    except Exception as error:  # damage raises a dozen types, from OSError to LZMAError and TokenError
        return "unreadable", f"{type(error).__name__}: {error}"
    return _bad_values(pred_XYZ, classes) or _misfit(pred_XYZ.astype(np.uint8), labels.read(keyframe), classes)


def _header(archive: zipfile.ZipFile) -> tuple[tuple[int, ...], np.dtype]:
    with archive.open("pred.npy") as member:
        version = np.lib.format.read_magic(member)
        if version not in _HEADERS:
            raise ValueError(f"array format {version}")
        shape, _, dtype = _HEADERS[version](member)
    return shape, dtype


def _advice(shape: tuple[int, ...], expected: tuple[int, ...]) -> str:
    if shape == (1, *expected):
        return ": a batch of one, give pred[0]"
    if sorted(shape) == sorted(expected):
        return ": other axes, give x forward, y left, z up"
    return ": of scores, give the argmax" if len(shape) == 4 else ""


def _right(pred_XYZ: np.ndarray, label_V: np.ndarray, place_3V: tuple[np.ndarray, ...]) -> list[int]:
    """How many of some voxels have their label's class, as they are and after each of `_TURNS` that keeps the shape."""
    turned = [pred_XYZ, *(turn(pred_XYZ) for turn in _TURNS.values())]
    return [np.count_nonzero(each[place_3V] == label_V) if each.shape == pred_XYZ.shape else 0 for each in turned]


def _bad_values(pred_XYZ: np.ndarray, classes: ClassSet) -> tuple[str, str] | None:
    if pred_XYZ.dtype.kind == "f":
        wrong = int((~np.isfinite(pred_XYZ)).sum())
        nan = f", {wrong} of them NaN or infinite" if wrong else ""
        return "not class ids", f"{pred_XYZ.dtype} values{nan}: give the argmax, as uint8"
    if pred_XYZ.dtype.kind not in "iu":
        return "not class ids", f"{pred_XYZ.dtype} values: give class ids as uint8, {classes.free} where it is free"
    lowest, highest = int(pred_XYZ.min()), int(pred_XYZ.max())
    if lowest < 0 or highest >= len(classes):
        worst = lowest if lowest < 0 else highest
        return "class beyond the class set", f"class {worst}, {classes.name} has 0 to {len(classes) - 1}"
    return None


def _misfit(pred_XYZ: np.ndarray, labels: dict[str, np.ndarray] | None, classes: ClassSet) -> tuple[str, str] | None:
    """What gives away class ids of another class set: what they say of the voxels that cameras see, or of all."""
    if labels is None:
        found = classes.misfit(pred_XYZ)
    else:
        seen_XYZ = labels["mask_camera"]
        pred_V, label_V = pred_XYZ[seen_XYZ], labels["semantics"][seen_XYZ]
        if classes.misfit(label_V):
            return None  # a keyframe that shows so little space says nothing
        found = classes.misfit(pred_V) or _free_elsewhere(pred_V[label_V == classes.free], label_V.size, classes)
    if found is None:
        return None
    return "another convention", f"{found} Give {classes.free} where it is free"


def _free_elsewhere(pred_V: np.ndarray, seen: int, classes: ClassSet) -> str | None:
    """The class that free voxels are given, where it is another one and they are most of those that are seen."""
    count_C = np.bincount(pred_V, minlength=len(classes))
    most = int(count_C.argmax())
    if most == classes.free or 2 * pred_V.size <= seen or 2 * count_C[most] <= pred_V.size:
        return None
    return f"{count_C[most] / pred_V.size:.0%} of the visible free voxels are class {most} ({classes.names[most]})."


def _write_list(path: Path, offenders: list[_Offender]) -> None:
    begin(path.parent)
    try:
        with open(path, "w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow(("token", "file", "problem"))
            rows.writerows((offender.token, offender.file, offender.problem) for offender in offenders)
    except OSError as error:
        raise InputError(f"cannot write the list of bad predictions to {path}: {error}") from error

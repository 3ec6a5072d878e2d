"""Which keyframe a position in somebody's data loader was: by the list that this loader went through.

The prototype's dump is named after positions, `000017_0_3d_logits_fp16.npz`, which mean nothing without that list.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distill.errors import InputError

_NAME = re.compile(r"(\d+)_0_(3d|bev)_(logits|prob)\w*\.np[yz]")
# what info files hold besides containers, numbers and text: arrays; anything else would be code of strangers
_ALLOWED = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
    ("collections", "OrderedDict"),
    ("_codecs", "encode"),
}


def files_by_position(folder: Path, positions: Path | Mapping[str, Path]) -> tuple[dict[str, list[Path]], int]:
    """The prototype's files of voxels by sample token, and how many it has of columns.

    Those are not read: by what rule they were made is unknown, and a student's columns follow from voxels by ours.

    Args:
        folder: holds the files.
        positions: the list for the files in it, or lists for its folders: {"train": ..., "val": ...}.

    Raises:
        InputError: there are no such files, a list cannot be read, or is shorter than a position.
    """
    lists = positions if isinstance(positions, Mapping) else {"": positions}
    found: dict[str, list[Path]] = {}
    of_columns = 0
    for name, listed in lists.items():
        if not (folder / name).is_dir():
            raise InputError(f"no predictions at {folder / name}: no such folder; it is named by teacher.positions")
        tokens = tokens_of(listed)
        for file in sorted((folder / name).iterdir()):
            if (match := _NAME.fullmatch(file.name)) is None:
                continue
            if match[2] == "bev":
                of_columns += 1
                continue
            if int(match[1]) >= len(tokens):
                raise InputError(f"{file}: {listed} lists {len(tokens)} keyframes, none there: another list?")
            found.setdefault(tokens[int(match[1])], []).append(file)
    if not found:
        told = f", but {of_columns} of columns alone, which cannot be taken back to voxels" if of_columns else ""
        raise InputError(f"no predictions at {folder}: no file such as 000000_0_3d_logits_fp16.npz{told}")
    return found, of_columns


def tokens_of(listed: Path) -> list[str]:
    """The sample tokens of a list in the order in which a data loader goes through it.

    Args:
        listed: `.txt`, one token a line; `.json`, a list of tokens; `.pkl`, an info file of mmdet3d, which its loader
            sorts by time, or of GaussianFormer, which it sorts by scene token and number of the frame.

    Raises:
        InputError: it is none of these.
    """
    try:
        if listed.suffix == ".txt":
            tokens = listed.read_text().split()
        elif listed.suffix == ".json":
            tokens = json.loads(listed.read_text())
        else:
            with open(listed, "rb") as file:
                tokens = _tokens_of_infos(_Unpickler(file).load())
    except OSError as error:
        raise InputError(f"{listed}: cannot be read ({error.strerror}): give teacher.positions=FILE") from error
    except (KeyError, TypeError, ValueError, AttributeError, EOFError, pickle.UnpicklingError) as error:
        raise InputError(
            f"{listed}: is no list of keyframes ({type(error).__name__}: {error}): give a .txt of a token a line, "
            "a .json list of them, or the info file (.pkl) that the data loader went through"
        ) from error
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise InputError(f"{listed}: holds no list of sample tokens")
    return tokens


def _tokens_of_infos(infos: Any) -> list[str]:
    frames = infos["infos"]
    if isinstance(frames, Mapping):
        keyframes = sorted(infos["metadata"], key=lambda each: f"{each[0]}{each[1]:03d}")
        return [frames[scene][number]["token"] for scene, number in keyframes]
    return [frame["token"] for frame in sorted(frames, key=lambda frame: frame["timestamp"])]


class _Unpickler(pickle.Unpickler):
    """Reads data and runs nothing."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it holds a {module}.{name}, which is not read from files of others")
        return super().find_class(module, name)

"""A folder of predictions, a file per keyframe: how SparseOcc's scorer, FlashOCC and others name and fill them.

`<sample token>.npz`, or FlashOCC's `<scene>/<sample token>/pred.npz`, in the folder or in folders inside of it; class
ids under the key `pred` (docs/formulas.md 3.6).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from glob import glob
from pathlib import Path

import numpy as np

from distill.errors import InputError

NAMES = "<sample token>.npz or <sample token>/pred.npz"


def files_by_token(folder: Path, endings: Collection[str] = (".npz",)) -> dict[str, list[Path]]:
    """The files below a folder by the sample tokens that they are named after, which nobody has looked up.

    Raises:
        InputError: there is no such folder, or no such file below it.
    """
    if not folder.is_dir():
        raise InputError(f"no predictions at {folder}: no such folder; give the folder of the files {NAMES}")
    files = defaultdict(list)
    # rglob would pass over links to folders, and take what file managers hide beside each file
    for name in sorted(name for ending in endings for name in glob(f"**/*{ending}", root_dir=folder, recursive=True)):
        file = folder / name
        files[file.parent.name if file.stem == "pred" else file.stem].append(file)
    if not files:
        kinds = " or ".join(ending.removeprefix(".") for ending in endings)
        raise InputError(f"no predictions at {folder}: no {kinds} file below it; predictions are files {NAMES}")
    return dict(files)


def read_arrays(path: Path, keys: Collection[str] = ()) -> dict[str, np.ndarray]:
    """The arrays of an `.npz` by their keys, or that of an `.npy` under the key "".

    Args:
        path: the file.
        keys: the only ones that are read; none: all.

    Raises:
        InputError: it cannot be read, or lacks a key.
    """
    try:
        found = np.load(path, allow_pickle=False)
        if isinstance(found, np.ndarray):
            return {"": found}
        with found:
            lacking = [key for key in keys if key not in found.files]
            arrays = {} if lacking else {key: found[key] for key in keys or found.files}
            there = ", ".join(found.files) or "none"
    except Exception as error:  # damage raises a dozen types, from OSError to LZMAError and TokenError
        raise InputError(f"{path}: cannot be read ({type(error).__name__}: {error}): make it anew") from error
    if lacking:
        raise InputError(f"{path}: no {', '.join(lacking)} in it, its keys are {there}")
    return arrays

"""An ONNX file of ours, asked by ONNX Runtime; what it is given is checked before it is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from distill.checkpoint import sha256_of
from distill.errors import InputError

FORMAT = "occ-distill onnx 1"
_NUMBERS = {"intrinsics", "cam2ego", "ego2present", "past", "road"}


def import_or_say(*packages: str) -> None:
    """Raise InputError where a package of the extra `onnx` is not installed."""
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise InputError(f"ONNX files need {', '.join(missing)}: pip install 'occ-distill[onnx]'")


class OnnxFile:
    """A network that occ-export wrote.

    Args:
        path: the file.
        threads: that a call may use.

    Attributes:
        path, threads: as given.
        facts: its metadata.
        inputs: name -> shape, with a text where a size may vary.
        outputs: names.

    Raises:
        InputError: no such file, no ONNX, not ours, or ONNX Runtime is not installed.
    """

    def __init__(self, path: Path, threads: int = 1) -> None:
        import_or_say("onnxruntime")
        import onnxruntime

        self.path, self.threads = path, threads
        if not path.is_file():
            raise InputError(f"{path}: no such file: occ-export writes one of a checkpoint")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        try:
            self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # of ONNX Runtime's own kinds, without a common one
            reason = " ".join(str(error).split())
            raise InputError(f"{path}: ONNX Runtime cannot read it ({reason[:200]})") from error
        told = self.session.get_modelmeta().custom_metadata_map
        if told.get("format") != json.dumps(FORMAT):
            raise InputError(
                f"{path}: an ONNX file that occ-export of this version did not write (format "
                f"{told.get('format', 'not said')}): export the checkpoint with occ-export"
            )
        self.facts: dict[str, Any] = {name: json.loads(value) for name, value in told.items()}
        self.inputs = {each.name: tuple(each.shape) for each in self.session.get_inputs()}
        self.outputs = [each.name for each in self.session.get_outputs()]

    @property
    def sha256(self) -> str:
        """Of the whole file, hex."""
        return sha256_of(self.path)

    @property
    def config(self) -> dict[str, Any]:
        """`grid` and `student`, as a checkpoint's configuration has them."""
        return self.facts["config"]

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs by name.

        Args:
            feeds: inputs by name, as `student.export.graph.Graph.forward` says.

        Raises:
            InputError: one has another shape or no finite numbers.
        """
        self._check(feeds)
        return dict(zip(self.outputs, self.session.run(self.outputs, dict(feeds)), strict=True))

    def _check(self, feeds: Mapping[str, np.ndarray]) -> None:
        sizes: dict[str, int] = {}
        for name, expected in self.inputs.items():
            if name not in feeds:
                raise InputError(f"{self.path}: input {name} is not given: it takes {', '.join(self.inputs)}")
            given = feeds[name]
            fits = len(given.shape) == len(expected) and all(
                sizes.setdefault(size, side) == side if isinstance(size, str) else size == side
                for size, side in zip(expected, given.shape, strict=True)
            )
            if not fits:
                raise InputError(
                    f"{self.path}: {name} is {_text(given.shape)}, and the graph takes {_text(expected)}"
                    + (f" with {', '.join(f'{size}={side}' for size, side in sizes.items())}" if sizes else "")
                    + ": give the frames it was exported for, or export it anew (onnx.cameras, onnx.batch)"
                )
        self.check_finite({name: feeds[name] for name in self.inputs if name in _NUMBERS})

    def check_finite(self, numbers: Mapping[str, np.ndarray]) -> None:
        """Raise InputError where one of them holds NaN or infinity."""
        for name, given in numbers.items():
            if not np.isfinite(given).all():
                raise InputError(f"{self.path}: {name} holds NaN or infinity: see to the calibration of the cameras")

    def summary(self) -> str:
        """One line."""
        facts = self.facts
        inputs = ", ".join(f"{name} {_text(shape)}" for name, shape in self.inputs.items())
        return (
            f"{self.path}: {facts['student']}, {self.path.stat().st_size / 1e6:.1f} MB, ONNX; {inputs} -> "
            f"{', '.join(self.outputs)}"
        )


def _text(shape: Any) -> str:
    return f"({', '.join(map(str, shape))})"

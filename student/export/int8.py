"""An ONNX file in 8 bits: ONNX Runtime's static quantisation (QDQ), by ranges that training frames show."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from tqdm import tqdm

from distill.frame import Frame
from student.evaluation.deployed import Deployed
from student.export.runtime import OnnxFile

NAME_SCOPES = "pkg.torch.onnx.name_scopes"  # a node's metadata: the module that it was exported from
_KINDS = ["Conv", "MatMul"]


def quantised(model: onnx.ModelProto, frames: Iterable[Frame], keep: Sequence[str]) -> onnx.ModelProto:
    """The same graph with 8-bit convolutions and products of matrices.

    Activations are uint8 between the least and the largest value that any frame shows, weights int8, symmetric, channel
    by channel.

    Args:
        model: in float32, with our metadata.
        frames: batches, on which ranges are measured.
        keep: layers below whose names a weight lies stay as they are.
    """
    logging.getLogger().setLevel(logging.ERROR)  # the quantiser recommends what was done already
    with tempfile.TemporaryDirectory() as folder:
        source, prepared, result = (Path(folder, f"{name}.onnx") for name in ("source", "prepared", "result"))
        onnx.save(model, source)
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        quantize_static(
            str(prepared),
            str(result),
            _Frames(OnnxFile(source), frames),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=_KINDS,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=_kept(onnx.load(prepared), keep),
            calibrate_method=CalibrationMethod.MinMax,
        )
        found = onnx.load(result)
    del found.metadata_props[:]
    found.metadata_props.extend(model.metadata_props)
    return found


class _Frames(CalibrationDataReader):
    """The inputs of the graph, frame by frame."""

    def __init__(self, file: OnnxFile, frames: Iterable[Frame]) -> None:
        self.feeds = self._feeds(Deployed(file), frames)

    def _feeds(self, network: Deployed, frames: Iterable[Frame]) -> Iterator[dict[str, np.ndarray]]:
        for frame in tqdm(frames, desc="ranges", unit="frame"):
            yield network.feeds(frame)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.feeds, None)


def _kept(model: onnx.ModelProto, keep: Sequence[str]) -> list[str]:
    """The nodes that stay in float32: by their weights' names, and by the module that a node was exported from."""
    weights = {tensor.name for tensor in model.graph.initializer}
    found = []
    for node in model.graph.node:
        names = [name for name in node.input if name in weights]
        names += [entry.value for entry in node.metadata_props if entry.key == NAME_SCOPES]
        if node.op_type in _KINDS and any(part in name for part in keep for name in names):
            found.append(node.name)
    return found

"""An ONNX file in 8 bits: ONNX Runtime's static quantisation (QDQ), by ranges that training frames show.

Which layers stay in float32 is told by name, or found out on other training frames (`most_sensitive`).
"""

from __future__ import annotations

import ast
import json
import logging
from bisect import bisect_left
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import onnx
from omegaconf import DictConfig
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType
from onnxruntime.quantization.calibrate import create_calibrator
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.shape_inference import quant_pre_process
from tqdm import tqdm

from distill.frame import Frame
from student.evaluation.deployed import Deployed
from student.export.runtime import OnnxFile
from student.quantisation import named

NAME_SCOPES = "pkg.torch.onnx.name_scopes"  # a node's metadata: the module that it was exported from
_KINDS = ["Conv", "MatMul"]
_ABSORBED = ["Relu", "Clip"]  # behind one of these, whose output then is rounded within a smaller range
_ROOT = "network."  # of the names in a `student.export.graph.Graph`


class TrainingFrames(NamedTuple):
    """Training frames, no frame in both.

    Attributes:
        ranges: on which ranges are measured.
        judged: on which layers are chosen.
    """

    ranges: Iterable[Frame]
    judged: Iterable[Frame]


def quantised(model: onnx.ModelProto, frames: TrainingFrames, settings: DictConfig) -> onnx.ModelProto:
    """The same graph in 8 bits.

    Args:
        model: in float32, with our metadata.
        frames: batches.
        settings: `onnx.int8` of conf/onnx/int8.yaml.
    """
    graph = Int8(model, frames.ranges)
    if settings.keep is None:
        keep = most_sensitive(graph, model, list(frames.judged), settings.changed)
        print(f"of {len(graph.layers)} layers {len(keep)} stay in float32: onnx.int8.keep=[{','.join(keep)}]")
    else:
        keep = named(graph.layers, settings.keep)
    found = graph.written(keep)
    found.metadata_props.add(key="float32_layers", value=json.dumps(keep))
    return found


class Int8:
    """A graph to be written with 8-bit convolutions and products of matrices, all of them or some.

    Activations are uint8 between the least and the largest value that any frame shows, weights int8, symmetric, channel
    by channel.

    Args:
        model: in float32, with our metadata.
        frames: batches, on which ranges are measured.

    Attributes:
        layers: what can be quantised, name of the module -> its nodes.
    """

    def __init__(self, model: onnx.ModelProto, frames: Iterable[Frame]) -> None:
        logging.getLogger().setLevel(logging.ERROR)  # the quantiser recommends what was done already
        self.facts = model.metadata_props
        with TemporaryDirectory() as folder:
            source, prepared, observed = (Path(folder, f"{name}.onnx") for name in ("source", "prepared", "observed"))
            onnx.save(model, source)
            quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
            self.model = onnx.load(prepared)
            calibrator = create_calibrator(prepared, _KINDS + _ABSORBED, str(observed), CalibrationMethod.MinMax)
            calibrator.collect_data(_Frames(OnnxFile(source), frames))
            self.ranges = calibrator.compute_data()
        self.layers: dict[str, list[str]] = {}
        modules = {node.name: _module(node) for node in model.graph.node if node.op_type in _KINDS}
        for node in self.model.graph.node:
            if node.op_type in _KINDS:
                self.layers.setdefault(_layer(node, modules), []).append(node.name)

    def written(self, keep: Collection[str]) -> onnx.ModelProto:
        """The graph, with these layers in float32."""
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        in_float = [node for layer in keep for node in self.layers[layer]]
        quantizer = QDQQuantizer(
            model,
            per_channel=True,
            reduce_range=False,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8,
            tensors_range=self.ranges,
            nodes_to_quantize=[],
            nodes_to_exclude=in_float,
            op_types_to_quantize=_KINDS + _ABSORBED,
            extra_options={},
        )
        quantizer.quantize_model()
        quantizer.model.topological_sort()
        found = quantizer.model.model
        del found.metadata_props[:]
        found.metadata_props.extend(self.facts)
        return found


def most_sensitive(graph: Int8, model: onnx.ModelProto, frames: Sequence[Frame], changed: float) -> list[str]:
    """The layers to keep, so that answers stay: the most sensitive first, as few of them as that takes.

    A layer is as sensitive as answers change where it alone is in 8 bits.

    Args:
        graph: of `model`.
        model: in float32, with our metadata.
        frames: batches, others than those of the ranges.
        changed: share of the voxels which either answer calls occupied, that may be of another class.
    """
    expected = _answers(model, frames)
    free = json.loads(next(entry.value for entry in model.metadata_props if entry.key == "classes"))["free"]

    def share(keep: Collection[str]) -> float:
        found = _answers(graph.written(keep), frames)
        return float((found != expected).sum() / ((found != free) | (expected != free)).sum().clip(1))

    alone = {each: share(graph.layers.keys() - {each}) for each in tqdm(graph.layers, desc="sensitivity", unit="layer")}
    order = sorted(alone, key=lambda layer: -alone[layer])
    enough = bisect_left(range(len(order)), True, key=lambda count: share(order[:count]) <= changed)
    return order[:enough]


def _answers(model: onnx.ModelProto, frames: Sequence[Frame]) -> np.ndarray:
    """The classes of all voxels of all frames."""
    with TemporaryDirectory() as folder:
        onnx.save(model, Path(folder, "asked.onnx"))
        network = Deployed(OnnxFile(Path(folder, "asked.onnx")))
        return np.concatenate([network(frame).voxel_logits_BXYZC.argmax(-1).numpy() for frame in frames])


def _layer(node: onnx.NodeProto, modules: Mapping[str, str]) -> str:
    """The module whose weights a prepared node multiplies by: by their name or, where they were turned, by its own."""
    named = [name for name in node.input if name.startswith(_ROOT) and name.endswith(".weight")]
    return named[0].removeprefix(_ROOT).removesuffix(".weight") if named else modules[node.name]


def _module(node: onnx.NodeProto) -> str:
    """The module that a node was exported from; preparing a graph may lose what is told of its nodes."""
    scopes = next(entry.value for entry in node.metadata_props if entry.key == NAME_SCOPES)
    return [name for name in ast.literal_eval(scopes) if name.startswith(_ROOT)][-1].removeprefix(_ROOT)


class _Frames(CalibrationDataReader):
    """The inputs of the graph, frame by frame."""

    def __init__(self, file: OnnxFile, frames: Iterable[Frame]) -> None:
        network, shown = Deployed(file), tqdm(frames, desc="ranges", unit="frame")
        self.feeds = (network.feeds(frame) for frame in shown)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.feeds, None)

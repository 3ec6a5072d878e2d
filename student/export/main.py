"""occ-export: write the network of a checkpoint as one file, ONNX or safetensors."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch.utils.data import DataLoader, Subset

from distill.checkpoint import PACKAGE_PREFIX, Checkpoint, export, load_checkpoint
from distill.command import command
from distill.errors import InputError
from distill.frame import stack
from distill.networks.published import Published, open_network
from distill.nuscenes.dataroot import open_dataroot, open_labels
from distill.nuscenes.frames import FrameDataset
from student.evaluation.request import data_in_force
from student.export import table
from student.export.runtime import OnnxFile, import_or_say

if TYPE_CHECKING:
    from student.export.int8 import TrainingFrames


@command("export")
def main(config: DictConfig) -> None:
    """Export what is configured; see conf/export.yaml."""
    output = _output(config)
    if config.format == "safetensors":
        export(load_checkpoint(config.checkpoint, "ema"), output)
        print(f"{output}: averaged weights and configuration, {output.stat().st_size / 1e6:.1f} MB")
        return
    import_or_say("onnx", "onnxscript", "onnxruntime")
    from student.export.onnx_file import write_onnx  # needs what was just asked for

    origin = open_network(config.checkpoint, "ema")
    frames = None if config.onnx.int8 is None else training_frames(origin, config.data, config.onnx.int8)
    write_onnx(origin, config.onnx, output, frames)
    print(OnnxFile(output).summary())
    if config.onnx.pool == "table":
        beside = output.with_name(f"{output.stem}_table.py")
        shutil.copyfile(table.__file__, beside)
        print(f"{beside}: geometry(intrinsics, cam2ego, lift) makes its inputs of the cameras")


def training_frames(origin: Checkpoint | Published, given: DictConfig, settings: DictConfig) -> TrainingFrames:
    """Keyframes of the training split, as far apart as they can be: over all scenes.

    Args:
        origin: the network that they are for.
        given: `data` of the command line.
        settings: `onnx.int8` of conf/onnx/int8.yaml.

    Raises:
        InputError: nothing says where the data are, or there are too few.
    """
    from student.export.int8 import TrainingFrames  # needs the extra `onnx`

    data = data_in_force(given, origin if isinstance(origin, Checkpoint) else None)
    keyframes = open_dataroot(data).keyframes(data.train_split)
    judged = settings.judged if settings.keep is None else 0
    wanted = settings.frames + judged
    if len(keyframes) < wanted:
        raise InputError(
            f"split {data.train_split} has {len(keyframes)} keyframes here, and ranges want {settings.frames}"
            + (f", the choice of layers {judged}" if judged else "")
            + ": lower onnx.int8.frames, or give other data="
        )
    inputs, labels = origin.config["student"]["inputs"], open_labels(data, instantiate(origin.config["grid"]))
    dataset = FrameDataset(keyframes, labels=labels, augmentation=None, seed=0, depth_stride=None, **inputs)
    places = _spread(len(keyframes), wanted)
    apart = _spread(len(places), judged)
    chosen = (np.delete(places, apart), places[apart])
    return TrainingFrames(*(DataLoader(Subset(dataset, each.tolist()), collate_fn=stack) for each in chosen))


def _spread(size: int, count: int) -> np.ndarray:
    """So many places of a sequence, the middles of equal parts."""
    return ((np.arange(count) + 0.5) * size / count).astype(int)


def _output(config: DictConfig) -> Path:
    suffix = f".{config.format}"
    if config.output is None:
        source = Path(config.checkpoint)
        folder = Path() if config.checkpoint.startswith(PACKAGE_PREFIX) else source.parent
        output = folder / f"{source.stem}{suffix}"
    else:
        output = Path(config.output)
    if output.suffix != suffix:
        raise InputError(f"{output}: format={config.format} is a {suffix} file: name it {output.stem}{suffix}")
    if not output.parent.is_dir():
        raise InputError(f"{output}: there is no folder {output.parent}: choose another output=")
    if output.resolve() == Path(config.checkpoint).resolve():
        raise InputError(f"{output}: is the checkpoint itself: choose another output=")
    return output


if __name__ == "__main__":
    main()

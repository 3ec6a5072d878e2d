"""A network of mmdet3d 1.0, such as FlashOCC's or BEVDet-Occ's, with its own test_pipeline and info files.

Copy this file into the root of their project and start occ-dump there, where their configuration finds its files:

occ-dump data=nuscenes data.root=/data/nuscenes teacher=process teacher.name=flashocc \
    "teacher.command=conda run --no-capture-output -n flashocc python mmdet3d_pipeline.py CONFIG WEIGHTS INFOS..."

What their tools/test.py sets in the configuration of a model that looks back, set here, too.
"""

import sys

import occ_bridge
import projects.mmdet3d_plugin  # noqa: F401  # registers their classes
import torch
from mmcv import Config
from mmcv.parallel import MMDataParallel, collate
from mmcv.runner import load_checkpoint
from mmdet3d.datasets import build_dataset
from mmdet3d.models import build_model

config, (weights, *infos) = Config.fromfile(sys.argv[1]), sys.argv[2:]
model = build_model(config.model)
load_checkpoint(model, weights, map_location="cpu", strict=True)
model = MMDataParallel(model.cuda().eval(), device_ids=[0])
datasets = [build_dataset(dict(config.data.test, ann_file=file, test_mode=True)) for file in infos]
places = {info["token"]: (data, i) for data in datasets for i, info in enumerate(data.data_infos)}


@occ_bridge.serve(
    kind="classes", axes="XYZ", grid="occ3d", frame="ego", classes="occ3d", confidence=0.9, checkpoint=weights
)
def answer(keyframe):
    data, i = places[keyframe["token"]]
    with torch.no_grad():
        return model(return_loss=False, rescale=True, **collate([data[i]], samples_per_gpu=1))[0]  # ids (200, 200, 16)

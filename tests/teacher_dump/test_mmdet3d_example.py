"""The example for mmdet3d, on packages that have the names it uses and insist on what mmdet3d insists on."""

from __future__ import annotations

import json
import pickle
import shutil
import sys
from pathlib import Path

from distill.checkpoint import sha256_of
from teacher_dump.asked import AskedFrame
from teacher_dump.teachers.process.program import BRIDGE
from teacher_dump.teachers.process.teacher import ProcessTeacher

PACKAGES = {
    "mmcv/__init__.py": """
class ConfigDict(dict):
    __getattr__ = dict.__getitem__

class Config:
    @staticmethod
    def fromfile(path):
        names = {}
        exec(open(path).read(), names)
        return ConfigDict(model=ConfigDict(names["model"]), data=ConfigDict(test=ConfigDict(names["data"]["test"])))
""",
    "mmcv/parallel.py": """
def collate(batch, samples_per_gpu):
    assert len(batch) == samples_per_gpu
    return {name: [sample[name] for sample in batch] for name in batch[0]}

class MMDataParallel:
    def __init__(self, module, device_ids):
        self.module, self.device_ids = module, device_ids

    def __call__(self, *, return_loss, **inputs):
        assert self.device_ids == [0] and not return_loss
        return self.module.simple_test(**inputs)
""",
    "mmcv/runner.py": """
import json

def load_checkpoint(model, filename, map_location=None, strict=False):
    state = json.load(open(filename))
    if strict and state.keys() != vars(model).keys():
        raise RuntimeError(f"unexpected keys {sorted(state)}")
    vars(model).update(state)
""",
    "mmdet3d/__init__.py": "",
    "mmdet3d/models.py": """
DETECTORS = {}

def build_model(cfg):
    return DETECTORS[cfg.type]()
""",
    "mmdet3d/datasets.py": """
DATASETS = {}

def build_dataset(cfg):
    kind = cfg.pop("type")
    return DATASETS[kind](**cfg)
""",
    "projects/__init__.py": "",
    "projects/mmdet3d_plugin/__init__.py": """
import pickle
import numpy as np
import torch
from mmdet3d.datasets import DATASETS
from mmdet3d.models import DETECTORS

class Network:
    def __init__(self):
        self.bias = 0

    def cuda(self):
        return self

    eval = cuda

    def simple_test(self, img_inputs, img_metas, rescale):
        assert rescale and not torch.is_grad_enabled()
        ids = torch.full((200, 200, 16), 17)
        ids[img_inputs[0], 2, 3] = self.bias
        return [ids]

class Dataset:
    def __init__(self, ann_file, pipeline, test_mode=False):
        assert test_mode  # otherwise it wants boxes, and gives another sample where there are none
        self.data_infos = pickle.load(open(ann_file, "rb"))["infos"]

    def __getitem__(self, i):
        return {"img_inputs": self.data_infos[i]["x"], "img_metas": {}}

DETECTORS["Network"], DATASETS["Dataset"] = Network, Dataset
""",
    "config.py": 'model = {"type": "Network"}\ndata = {"test": {"type": "Dataset", "ann_file": "", "pipeline": []}}\n',
}
INFOS = {
    "train.pkl": [{"token": "a" * 32, "x": 7}, {"token": "b" * 32, "x": 8}],
    "val.pkl": [{"token": "c" * 32, "x": 9}],
}


def test_each_keyframe_is_answered_by_its_sample_of_whichever_info_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, content in PACKAGES.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(content)
    shutil.copy(BRIDGE / "examples/mmdet3d_pipeline.py", tmp_path)
    Path("weights.pth").write_text(json.dumps({"bias": 4}))
    for name, infos in INFOS.items():
        Path(name).write_bytes(pickle.dumps({"infos": infos}))
    command = f"{sys.executable} mmdet3d_pipeline.py config.py weights.pth {' '.join(INFOS)}"
    teacher = ProcessTeacher(command, 60.0, [32, 64], "cpu")
    assert teacher.checkpoint_sha256 == sha256_of(Path("weights.pth"))
    for info in (*INFOS["val.pkl"], *INFOS["train.pkl"]):
        told = {"token": info["token"], "cameras": {}, "past": [], "ego2global": [], "lidar": {"lidar2ego": None}}
        prediction = teacher.predict(AskedFrame(token=[info["token"]], given=[json.dumps(told)]))
        (ids_XYZ,) = prediction.semantics(17)
        assert [(*place, ids_XYZ[*place].item()) for place in (ids_XYZ != 17).nonzero().tolist()] == [
            (info["x"], 2, 3, 4)
        ]
    teacher.close()

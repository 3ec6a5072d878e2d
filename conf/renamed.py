"""Values that had other names: what an override of an earlier version is called now."""

from __future__ import annotations

from collections.abc import Sequence

# None: there is nothing to say any more
_KEYS: dict[str, str | None] = {
    "kd.loss.voxel_weight": "kd.terms.kd_voxel.weight",
    "kd.loss.bev_weight": "kd.terms.kd_bev.weight",
    "kd.loss.temperature": "kd.temperature",
    "kd.loss.mask": "kd.mask",
    "trainer.loss.ce_weight": "objective.terms.ce.weight",
    "trainer.loss.lovasz_weight": "objective.terms.lovasz.weight",
    "trainer.loss.depth_weight": "objective.terms.depth.weight",
    "trainer.loss.balance": "objective.terms.ce.balance",
    "trainer.loss.mask": "objective.mask",
    "store.paths": "teachers.stored.paths",
    "store.missing": "teachers.stored.missing",
    "student.inputs.depth_stride": None,
    "data.fusion_checkpoint": None,
}
_OF_FUSION = {"data.fusion_checkpoint": "teacher.checkpoint"}  # of occ-dump with teacher=fusion, its default
_OVERRIDES = {
    "store.render=true": "teachers.stored.signals=[gaussians]",
    "store.render=false": None,
    "dump.gaussians=false": None,
    "dump.gaussians=true": "dump.signals=[voxels,bev,gaussians]",
    "dump.gaussians=only": "dump.signals=[gaussians]",
}


def renamed(program: str, arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """A command line in today's words, and a line for each override that had others.

    Args:
        program: "train", "dump" or "eval".
        arguments: of the command line.
    """
    fusion = program == "dump" and all(each == "teacher=fusion" for each in arguments if each.startswith("teacher="))
    keys = _KEYS | (_OF_FUSION if fusion else {})
    today: list[str] = []
    told: list[str] = []
    for argument in arguments:
        now = _today(keys, argument)
        today += [] if now is None else [now]
        if now != argument:
            told.append(f"{argument} is {'not needed any more' if now is None else f'called {now} now'}")
    return today, told


def _today(keys: dict[str, str | None], argument: str) -> str | None:
    if argument in _OVERRIDES:
        return _OVERRIDES[argument]
    key, equals, value = argument.partition("=")
    name = keys.get(key, key)
    return None if name is None else f"{name}{equals}{value}"

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_store import (
    BEV,
    GAUSSIANS,
    GRID,
    IDENTITY,
    KIND,
    SCENES,
    TOKENS,
    VOXELS,
    bev_probs,
    codes,
    contents,
    coverage,
    digests,
    everything,
    gaussians,
    log_probs,
    open_writer,
    teacher_gaussians,
    teacher_output,
    write,
)

from distill.classes import OCC3D_CLASSES, SURROUNDOCC_CLASSES
from distill.errors import InputError
from distill.frame import stack
from distill.gaussians import Gaussians
from distill.grids import OCC3D, SURROUNDOCC
from distill.nuscenes.layout import CAMERAS
from distill.signals import Signal, described
from distill.signals.arrays import seal
from distill.signals.voxels import LOG_PROBS, MAX_KL, code_table, decode_codes, encode_voxels
from distill.store import DamagedSample, StoreIdentity, StoreWriter, TeacherStore
from distill.store.schema import DIGESTS

READERS: dict[str, Callable[[TeacherStore, str], object]] = {
    "voxel_logits": codes,
    "voxel_semantics": TeacherStore.semantics,
    "voxel_coverage": TeacherStore.coverage,
    "bev_probs": bev_probs,
    "gaussians": gaussians,
    "frame_digests": TeacherStore.frame_digests,
}
ARRAYS = (*READERS, "bev_semantics")


def chunk(path: Path, array: str, row: int) -> Path:
    (found,) = (path / array).glob(f"c.{row}.*")
    return found


def codes_of(token: str) -> np.ndarray:
    return decode_codes(encode_voxels(teacher_output(token)[0]), code_table(LOG_PROBS))


def of_kind(**changes: Any) -> Signal:
    """Gaussians of another kind."""
    return dataclasses.replace(GAUSSIANS, kind=dataclasses.replace(KIND, **changes))


def holding(*signals: Signal, **changes: Any) -> StoreIdentity:
    """The identity of a store of other signals."""
    return dataclasses.replace(IDENTITY, signals=described(signals), **changes)


def flip_a_byte(file: Path, position: int) -> None:
    content = bytearray(file.read_bytes())
    content[position] ^= 0x10
    file.write_bytes(content)


def assert_close(read: Gaussians, told: Gaussians) -> None:
    assert len(read.means_G3) == len(told.means_G3)
    for name, value in vars(told).items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(getattr(read, name), value, rtol=2**-7, atol=2**-8, msg=name)
        else:
            assert getattr(read, name) == value


def test_reads_back_what_the_teacher_said(path: Path) -> None:
    store = TeacherStore(path)
    assert store.present == set(TOKENS[:3])
    assert store.tokens == TOKENS
    assert store.identity == IDENTITY
    for token in store.present:
        teacher, bev = teacher_output(token)
        assert codes(store, token).dtype == np.uint8
        p, q = np.exp(teacher), log_probs(store, token)
        q = q - np.log(np.exp(q).sum(-1, keepdims=True))
        assert (p * (teacher - q)).sum(-1).max() < MAX_KL[1]
        covered = coverage(token)
        np.testing.assert_array_equal(store.coverage(token), covered)
        np.testing.assert_array_equal(store.semantics(token), np.where(covered, teacher.argmax(-1), 255))
        assert_close(gaussians(store, token), teacher_gaussians(token))
        np.testing.assert_allclose(bev_probs(store, token), bev, rtol=1 / 128, atol=3e-9)
        assert store.frame_digests(token).dtype == np.uint32
        np.testing.assert_array_equal(store.frame_digests(token), digests(token))


def test_plain_zarr_reads_it_without_our_code(path: Path, tmp_path: Path) -> None:
    program = """
import sys, warnings
import numpy as np
import zarr
warnings.simplefilter("error")
group = zarr.open(sys.argv[1], mode="r")
assert not any(name.split(".")[0] in ("distill", "kernels") for name in sys.modules)
row = list(group["tokens"][:]).index(sys.argv[2])
assert group["scenes"][row] == "scene-0001"
logits = group["voxel_logits"][row].astype("f4")
assert np.isfinite(logits).all() and abs(np.exp(logits).sum(-1) - 1).max() < 0.03
assert np.isnan(group["voxel_logits"][4]).all() and np.isnan(group["gaussians"][4]).all()
assert (group["voxel_semantics"][4] == 255).all() and not group["voxel_coverage"][4].any()
assert group["checksums"][row].all() and not group["checksums"][4].any()
assert not group["frame_digests"][4].any()
assert group["checksums"].nchunks_initialized == group["frame_digests"].nchunks_initialized == 3
assert dict(group.members()).keys() == {"tokens", "scenes", "checksums", *sys.argv[4].split()}
names = ("voxel_semantics", "voxel_coverage", "bev_probs", "bev_semantics", "gaussians", "frame_digests",
         "checksums")
sample = {name: group[name][row] for name in names}
np.savez(sys.argv[3], voxel_logits=logits, **sample)
assert {"schema", "teacher", "checkpoint_sha256", "config", "grid", "classes", "signals", "frame_digests",
        "columns", "code_version"} <= set(group.attrs)
"""
    arguments = [str(path), TOKENS[1], str(tmp_path / "read.npz"), " ".join(ARRAYS)]
    subprocess.run([sys.executable, "-c", program, *arguments], cwd=tmp_path, check=True)
    read, store = np.load(tmp_path / "read.npz"), TeacherStore(path)
    np.testing.assert_array_equal(read["voxel_logits"], log_probs(store, TOKENS[1]))
    np.testing.assert_array_equal(read["voxel_semantics"], store.semantics(TOKENS[1]))
    np.testing.assert_array_equal(read["bev_probs"], bev_probs(store, TOKENS[1]))
    np.testing.assert_array_equal(read["frame_digests"], digests(TOKENS[1]))
    attributes = json.loads((path / "zarr.json").read_text())["attributes"]
    assert attributes["frame_digests"] == [*CAMERAS, "LIDAR_TOP", "calibration"]
    for column, array in enumerate(attributes["columns"]):
        checksum = int.from_bytes(chunk(path, array, 1).read_bytes()[-4:], "little")
        assert read["checksums"][column] == checksum
    covered = read["voxel_coverage"]
    np.testing.assert_array_equal(covered, store.coverage(TOKENS[1]))
    bev_semantics = np.where(covered.any(2), teacher_output(TOKENS[1])[1].argmax(-1), 255)
    np.testing.assert_array_equal(read["bev_semantics"], bev_semantics)
    assert read["bev_semantics"][1, 2] == 255
    rows, told = read["gaussians"], teacher_gaussians(TOKENS[1])
    count = len(told.means_G3)
    assert rows.shape == (KIND.count, len(store_columns(path)))
    assert np.isnan(rows[count:]).all()
    np.testing.assert_allclose(rows[:count, :3], told.means_G3, atol=2**-12)
    np.testing.assert_allclose(rows[:count, store_columns(path).index("opacity")], told.opacities_G, rtol=2**-7)


def store_columns(path: Path) -> list[str]:
    """As any reader finds them."""
    return json.loads((path / "zarr.json").read_text())["attributes"]["signals"]["gaussians"]["columns"]


def test_can_be_sent_to_loader_workers(path: Path) -> None:
    store = TeacherStore(path)
    sent = pickle.loads(pickle.dumps(store))
    np.testing.assert_array_equal(codes(sent, TOKENS[0]), codes(store, TOKENS[0]))


def test_writing_again_replaces_a_sample(path: Path) -> None:
    writer = open_writer(path)
    writer.write(TOKENS[0], *everything(TOKENS[4]))
    store = TeacherStore(path)
    np.testing.assert_array_equal(store.coverage(TOKENS[0]), coverage(TOKENS[4]))
    np.testing.assert_array_equal(codes(store, TOKENS[0]), codes_of(TOKENS[4]))
    store.verify(TOKENS[0])
    assert writer.missing(TOKENS) == TOKENS[3:]


def test_summary_counts_and_weighs(path: Path) -> None:
    size = sum(chunk(path, array, row).stat().st_size for array in ARRAYS for row in range(3)) / 3
    assert TeacherStore(path).summary() == f"{path}: 3 of 5 keyframes, {size / 1e6:.2f} MB per keyframe"


@pytest.mark.parametrize("position", [0, 20, -1])
@pytest.mark.parametrize("array", ARRAYS)
def test_a_flipped_byte_is_found(path: Path, array: str, position: int) -> None:
    file = chunk(path, array, 1)
    flip_a_byte(file, position)
    store = TeacherStore(path)
    with pytest.raises(DamagedSample) as raised:
        store.verify(TOKENS[1])
    for expected in (TOKENS[1], array, str(file), "dump.overwrite=true"):
        assert expected in str(raised.value)
    for token in (TOKENS[0], TOKENS[2]):
        store.verify(token)
    if array in READERS:
        with pytest.raises(DamagedSample):
            READERS[array](store, TOKENS[1])


@pytest.mark.parametrize("harm", ["truncated", "deleted", "swapped", "record"])
@pytest.mark.parametrize("array", READERS)
def test_other_damage_is_found(path: Path, harm: str, array: str) -> None:
    file = chunk(path, array, 1)
    if harm == "truncated":
        os.truncate(file, 3)
    elif harm == "deleted":
        file.unlink()
    elif harm == "swapped":  # intact in itself, but of another keyframe
        file.write_bytes(Path(str(file).replace("c.1.", "c.0.")).read_bytes())
    else:
        flip_a_byte(path / "checksums" / "c.1.0", 0)
    with pytest.raises(DamagedSample, match=TOKENS[1]):
        READERS[array](TeacherStore(path), TOKENS[1])


def test_damaged_samples_can_be_discarded_and_written_again(path: Path) -> None:
    before = contents(path)
    flip_a_byte(chunk(path, "bev_semantics", 2), 7)
    writer = open_writer(path)
    assert writer.discard_damaged(TOKENS) == 1
    assert writer.missing(TOKENS) == TOKENS[2:]
    write(writer, TOKENS[2])
    assert contents(path) == before


@pytest.mark.parametrize("array", ["frame_digests", "checksums"])
def test_frames_are_compared_where_they_are_known(path: Path, array: str) -> None:
    """Damage of one sample is told to who reads it, not to who asks whether the others fit."""
    at_hand = {token: digests(token) for token in TOKENS}
    assert TeacherStore(path).other_frames(at_hand) == {}
    at_hand[TOKENS[0]][2] ^= 1
    os.truncate(chunk(path, array, 1), 0)
    assert TeacherStore(path).other_frames(at_hand) == {TOKENS[0]: [DIGESTS[2]]}
    assert open_writer(path).discard_damaged(TOKENS) == 1


def test_a_lost_chunk_weighs_nothing(path: Path) -> None:
    chunk(path, "bev_probs", 1).unlink()
    assert "3 of 5 keyframes" in TeacherStore(path).summary()


def test_foreign_files_are_left_alone(path: Path) -> None:
    foreign = [
        path / "checksums" / ".DS_Store",
        path / "bev_probs" / "film.partial",
        path / "bev_probs" / "c.x.partial",
    ]
    for file in foreign:
        file.touch()
    left = chunk(path, "bev_probs", 1).with_name("c.1.0.0.0.4711.partial")  # of a writer that was killed
    left.touch()
    assert open_writer(path).missing(TOKENS) == TOKENS[3:]
    assert all(file.exists() for file in foreign)
    assert not left.exists()


@pytest.mark.parametrize("is_there", [True, False])
def test_a_store_may_begin_behind_a_link(tmp_path: Path, is_there: bool) -> None:
    if is_there:
        (tmp_path / "elsewhere").mkdir()
    (tmp_path / "teacher.zarr").symlink_to("elsewhere")
    write(open_writer(tmp_path / "teacher.zarr"), TOKENS[0])
    assert (tmp_path / "teacher.zarr").is_symlink()
    TeacherStore(tmp_path / "elsewhere").verify(TOKENS[0])


def test_damaged_tokens_are_found(path: Path) -> None:
    flip_a_byte(path / "tokens" / "c" / "0", 30)
    with pytest.raises(InputError, match="tokens"):
        TeacherStore(path)


def test_absent_and_foreign_samples_are_told_apart(path: Path) -> None:
    store = TeacherStore(path)
    with pytest.raises(InputError, match="occ-dump") as absent:
        codes(store, TOKENS[4])
    assert not isinstance(absent.value, DamagedSample)
    with pytest.raises(InputError, match="another dataset version"):
        codes(store, "no such token")


def test_another_grid_or_class_set_is_refused(path: Path) -> None:
    store = TeacherStore(path)
    store.check(GRID, OCC3D_CLASSES, ["voxels", "bev"])
    renamed = dataclasses.replace(OCC3D_CLASSES, names=("noise", *OCC3D_CLASSES.names[1:]))
    for name in ("voxels", "bev"):
        with pytest.raises(InputError, match="grid"):
            store.check(dataclasses.replace(GRID, frame="lidar"), OCC3D_CLASSES, [name])
        with pytest.raises(InputError, match="noise"):
            store.check(GRID, renamed, [name])


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"teacher": "flash"}, "teacher is 'fusion' there, 'flash' here"),
        ({"checkpoint_sha256": "00"}, "checkpoint_sha256 is '5f5f"),
        ({"config": {"width": 64, "views": ["front", "back"]}}, "config.width is 32 there, 64 here"),
        ({"config": {"width": 32, "views": ["front"]}}, "config.views.1 is 'back' there, 'nothing' here"),
        ({"grid": dataclasses.replace(GRID, voxel_size=0.5)}, "grid.voxel_size is 1.0 there, 0.5 here"),
        ({"classes": ("noise", *IDENTITY.classes[1:])}, "classes.0 is 'others' there, 'noise' here"),
        ({"frame_digests": (*DIGESTS[:7], "map")}, "frame_digests.7 is 'calibration' there, 'map' here"),
        ([VOXELS, dataclasses.replace(BEV, rule="topmost"), GAUSSIANS], "rule is 'noisy_or' there, 'topmost' here"),
        ([VOXELS, BEV], "differently: dump.signals is 'bev, gaussians, voxels' there, 'bev, voxels' here; give"),
        ([GAUSSIANS], "dump.signals is 'bev, gaussians, voxels' there, 'gaussians' here"),
        ([VOXELS, BEV, of_kind(count=13)], "gaussians.count is 12 there, 13 here"),
        ([VOXELS, BEV, of_kind(det="upstream")], "gaussians.det is 'stable' there, 'upstream' here"),
        ([dataclasses.replace(VOXELS, levels=(0.0, -1.0, *VOXELS.levels[2:])), BEV, GAUSSIANS], "voxels.levels.1 is"),
    ],
)
def test_another_dump_is_not_continued(path: Path, change: dict | list[Signal], expected: str) -> None:
    identity = dataclasses.replace(IDENTITY, **change) if isinstance(change, dict) else holding(*change)
    with pytest.raises(InputError, match=r"give another store\.path") as raised:
        StoreWriter.open(path, identity, TOKENS, SCENES)
    assert expected in str(raised.value)


def test_the_order_in_which_signals_are_named_does_not_matter(path: Path) -> None:
    write(open_writer(path, holding(GAUSSIANS, BEV, VOXELS)), TOKENS[3])
    TeacherStore(path).verify(TOKENS[3])
    np.testing.assert_array_equal(codes(TeacherStore(path), TOKENS[3]), codes_of(TOKENS[3]))


def test_another_dataset_version_is_not_continued(path: Path) -> None:
    with pytest.raises(InputError, match="keyframes is 5 there, 4 here"):
        StoreWriter.open(path, IDENTITY, TOKENS[:4], SCENES[:4])
    with pytest.raises(InputError, match=f"tokens.0 is '{TOKENS[0]}' there"):
        StoreWriter.open(path, IDENTITY, TOKENS[::-1], SCENES)


def test_a_surroundocc_store_is_no_occ3d_store(tmp_path: Path) -> None:
    """The shapes are equal, the worlds are not (docs/formulas.md 1.4)."""
    identity = dataclasses.replace(IDENTITY, grid=SURROUNDOCC)
    store = StoreWriter.open(tmp_path / "gaussians.zarr", identity, TOKENS, SCENES).store
    with pytest.raises(InputError, match=r"is on grid .*surroundocc.* this run on .*occ3d"):
        store.check(OCC3D, OCC3D_CLASSES, ["voxels"])


def test_what_is_no_store_is_refused(path: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        TeacherStore(tmp_path / "nowhere.zarr")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    for open_it in (TeacherStore, open_writer):
        with pytest.raises(InputError, match="is not a teacher store"):
            open_it(tmp_path / "photos")
        with pytest.raises(InputError, match="no teacher store"):
            open_it(path / "voxel_logits")
    description = json.loads((path / "zarr.json").read_text())
    description["attributes"]["schema"] = 1
    (path / "zarr.json").write_text(json.dumps(description))
    with pytest.raises(InputError, match="schema 1, this version reads schemas 2, 3, 4 and 5"):
        TeacherStore(path)


EARLIER_COLUMNS = ("voxel_logits", "voxel_semantics", "voxel_coverage", "bev_probs", "bev_semantics", "gaussians")


def make_earlier(path: Path, schema: int) -> None:
    """What the versions before have left: arrays in another order, described elsewhere; schema 2 had no digests."""
    columns = [*EARLIER_COLUMNS, "frame_digests"] if schema == 3 else list(EARLIER_COLUMNS)
    if schema == 2:
        shutil.rmtree(path / "frame_digests")
        (path / "checksums" / "claims").unlink()
        told = json.loads((path / "checksums" / "zarr.json").read_text())
        (path / "checksums" / "zarr.json").write_text(json.dumps({**told, "shape": [5, 6]}))
    for record in (path / "checksums").glob("c.*"):
        row = int(record.name.split(".")[1])
        record.write_bytes(seal(b"".join(chunk(path, name, row).read_bytes()[-4:] for name in columns)))
    told = json.loads((path / "zarr.json").read_text())
    told["attributes"] = EARLIER | {"schema": schema, "frame_digests": list(DIGESTS)}
    (path / "zarr.json").write_text(json.dumps(told))


# the attributes of a store of schema 3
EARLIER = {
    **{key: value for key, value in IDENTITY.to_dict().items() if key not in ("signals", "frame_digests", "schema")},
    "content": "log_probabilities+gaussians",
    "bev_rule": "noisy_or",
    "quantisation": {
        "max_kl_nats": {"T=1": 1e-4, "T=2": 1e-3},
        "bev_probs_significant_bits": 7,
        "levels": LOG_PROBS.tolist(),
    },
    "gaussians": {**dataclasses.asdict(KIND), "columns": [], "quantisation": {}},
    "code_version": "",
}


@pytest.mark.parametrize("schema", [2, 3])
def test_stores_of_earlier_schemas_are_read(path: Path, schema: int) -> None:
    new = TeacherStore(path)
    expected = {name: READERS[name](new, TOKENS[1]) for name in ("voxel_logits", "voxel_semantics", "bev_probs")}
    make_earlier(path, schema)
    store = TeacherStore(path)
    assert store.present == set(TOKENS[:3])
    store.verify(TOKENS[1])
    for name, value in expected.items():
        np.testing.assert_array_equal(READERS[name](store, TOKENS[1]), value)
    assert_close(gaussians(store, TOKENS[1]), teacher_gaussians(TOKENS[1]))
    assert store.identity == IDENTITY
    assert store.knows_frames == (schema == 3)


def test_a_store_of_schema_2_is_not_continued(path: Path) -> None:
    make_earlier(path, 2)
    assert TeacherStore(path).frame_digests(TOKENS[1]) is None
    with pytest.raises(InputError, match=r"schema is 2 there, 5 here; give another store\.path"):
        open_writer(path)


def test_a_store_of_schema_3_is_continued(path: Path) -> None:
    make_earlier(path, 3)
    attributes = (path / "zarr.json").read_text()
    writer = open_writer(path)
    write(writer, TOKENS[0], TOKENS[3])
    store = TeacherStore(path)
    assert store.present == set(TOKENS[:4])
    for token in store.present:
        store.verify(token)
        np.testing.assert_array_equal(codes(store, token), codes_of(token))
    record = (path / "checksums" / "c.3.0").read_bytes()
    assert record[:4] == chunk(path, "voxel_logits", 3).read_bytes()[-4:]  # as the version before expects it
    assert (path / "zarr.json").read_text() == attributes


def test_an_identity_is_known_again_from_its_description() -> None:
    """That of schema 2, which checkpoints may hold, did not name the schema."""
    assert StoreIdentity.from_dict(json.loads(json.dumps(IDENTITY.to_dict()))) == IDENTITY
    assert StoreIdentity.from_dict({"schema": 3, **EARLIER}) == IDENTITY
    assert StoreIdentity.from_dict(EARLIER) == IDENTITY
    for content, kind, signals in (
        ("log_probabilities", None, [VOXELS, BEV]),
        ("gaussians", EARLIER["gaussians"], [GAUSSIANS]),
    ):
        assert StoreIdentity.from_dict(EARLIER | {"content": content, "gaussians": kind}) == holding(*signals)
    assert StoreIdentity.from_dict(EARLIER | {"bev_rule": "topmost"}) != IDENTITY


def test_output_that_is_no_distribution_is_not_written(path: Path) -> None:
    writer, (said, semantics, covered, told) = open_writer(path), everything(TOKENS[3])
    refused = pytest.raises(InputError, match=f"{TOKENS[3]} was not written: .*shape")
    with refused:
        writer.write(TOKENS[3], said | {"voxels": said["voxels"][:4]}, semantics, covered, told)
    with refused:
        writer.write(TOKENS[3], said, semantics[..., 0], covered[..., 0], told)
    with refused:
        writer.write(TOKENS[3], said, semantics, covered, told[:7])
    wrong = said["voxels"].copy()
    wrong[1, 2, 3, 4] = np.nan
    with pytest.raises(InputError, match=f"{TOKENS[3]} was not written: 1 of 256 voxels"):
        writer.write(TOKENS[3], said | {"voxels": wrong}, semantics, covered, told)
    assert writer.missing(TOKENS) == TOKENS[3:]


def test_a_store_holds_what_it_is_asked_for(tmp_path: Path) -> None:
    every = {"voxel_semantics", "voxel_coverage", "frame_digests"}
    for signals, expected in (
        ([VOXELS, BEV], every | {"voxel_logits", "bev_probs", "bev_semantics"}),
        ([VOXELS], every | {"voxel_logits"}),
        ([GAUSSIANS], every | {"gaussians"}),
        ([VOXELS, BEV, GAUSSIANS], set(ARRAYS)),
    ):
        path, identity = tmp_path / "".join(signal.name for signal in signals), holding(*signals)
        write(open_writer(path, identity), TOKENS[0])
        store = TeacherStore(path)
        assert store.identity == identity
        assert set(store.arrays) == expected == {file.parent.name for file in path.glob("*/c.0.*")} - {"checksums"}
        assert (path / "checksums" / "c.0.0").stat().st_size == 4 * len(expected) + 4
        store.verify(TOKENS[0])
        for array in expected & set(READERS):
            READERS[array](store, TOKENS[0])


def test_nothing_is_read_but_what_is_asked_for(path: Path) -> None:
    """Every other chunk may be damaged."""
    needed = {"voxels": ["voxel_logits"], "bev": ["bev_probs"], "gaussians": ["gaussians"]}
    for name, arrays in needed.items():
        write(open_writer(path), TOKENS[1])
        for array in set(ARRAYS) - set(arrays):
            os.truncate(chunk(path, array, 1), 0)
        told = TeacherStore(path).told(TOKENS[1], [name], coverage=False)
        assert (set(told.signals), told.covered, told.taught) == ({name}, None, True)
    write(open_writer(path), TOKENS[1])
    os.truncate(chunk(path, "voxel_logits", 1), 0)
    told = TeacherStore(path).told(TOKENS[1], [], coverage=True)
    np.testing.assert_array_equal(told.covered, coverage(TOKENS[1]))


def test_what_is_not_taught_looks_the_same(path: Path) -> None:
    store = TeacherStore(path)
    told, silence = store.told(TOKENS[0], list(store.signals), True), store.silence(list(store.signals), True)
    assert (told.taught, silence.taught) == (True, False)
    batch = stack([told, silence])
    assert batch.taught.tolist() == [True, False]
    assert not batch.covered[1].any()
    assert batch.signals["voxels"].codes.shape == (2, *GRID.shape, 18)
    assert batch.signals["bev"].probs.shape == (2, *GRID.shape[:2], 18)
    assert [len(each.means_G3) for each in batch.signals["gaussians"].gaussians] == [8, 0]


def test_students_are_told_what_a_store_does_not_hold(tmp_path: Path) -> None:
    only = open_writer(tmp_path / "only", holding(GAUSSIANS)).store
    none = open_writer(tmp_path / "none", holding(VOXELS, BEV)).store
    with pytest.raises(InputError, match=r"only holds gaussians and no voxels: .*dump\.signals=\[gaussians, voxels\]"):
        only.check(GRID, OCC3D_CLASSES, ["voxels"])
    with pytest.raises(InputError, match=r"none holds voxels, bev and no gaussians"):
        none.check(GRID, OCC3D_CLASSES, ["bev", "gaussians"])
    none.check(GRID, OCC3D_CLASSES, ["bev"])
    only.check(OCC3D, OCC3D_CLASSES, ["gaussians"])
    only.check(SURROUNDOCC, SURROUNDOCC_CLASSES, ["gaussians"])  # noise and empty have other names there
    cars = tuple(name.replace("car", "vehicle") for name in OCC3D_CLASSES.names)
    with pytest.raises(InputError, match="vehicle"):
        only.check(GRID, dataclasses.replace(OCC3D_CLASSES, names=cars), ["gaussians"])


@pytest.mark.parametrize("array", [*ARRAYS, "checksums"])
def test_a_full_disk_leaves_a_valid_store(path: Path, array: str) -> None:
    """/dev/full answers every write with the kernel's own ENOSPC."""
    writer = open_writer(path)
    file = chunk(path, array, 0)
    file.with_name(f"{file.name}.{os.getpid()}.partial").symlink_to("/dev/full")
    with pytest.raises(InputError, match="No space left on device"):
        write(writer, TOKENS[0])
    assert writer.missing(TOKENS) == [TOKENS[0], *TOKENS[3:]]
    assert writer.discard_damaged(TOKENS) == 0
    write(writer, TOKENS[0])
    TeacherStore(path).verify(TOKENS[0])


@pytest.fixture
def read_only() -> Iterator[Path]:
    """A store of which this process may change nothing."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "teacher.zarr"
        write(open_writer(path), *TOKENS[:3])
        for place in (Path(folder), path, *path.rglob("*")):
            place.chmod(0o555 if place.is_dir() else 0o444)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)  # permissions do not stop root
        yield path
        os.seteuid(user)
        for place in (Path(folder), path, *path.rglob("*")):
            place.chmod(0o755)


def test_a_read_only_store_is_read_and_not_harmed(read_only: Path) -> None:
    before, writer = contents(read_only), open_writer(read_only)
    for token in (TOKENS[0], TOKENS[3]):
        with pytest.raises(InputError, match="Permission denied"):
            write(writer, token)
    with pytest.raises(InputError, match=r"cannot create the store .* Permission denied"):
        open_writer(read_only.with_name("new.zarr"))
    assert contents(read_only) == before
    TeacherStore(read_only).verify(TOKENS[0])

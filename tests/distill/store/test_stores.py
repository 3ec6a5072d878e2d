"""occ-store: what it says of a store, what it finds damaged, and what it makes of one or several."""

from __future__ import annotations

import dataclasses
import re
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from test_crash import die_at, in_process
from test_store import chunk, flip_a_byte, make_earlier
from tiny_store import (
    GRID,
    IDENTITY,
    SCENES,
    TOKENS,
    contents,
    coverage,
    digests,
    everything,
    open_writer,
    teacher_output,
    write,
)

from distill.errors import InputError
from distill.frame import stack
from distill.signals.bev import Bev
from distill.signals.coarse import LevelBev, LevelVoxels
from distill.signals.columns import MAX_KL, ColumnVoxels
from distill.signals.levels import MAX_BEV_KL, MAX_VOXEL_KL
from distill.signals.voxels import Voxels
from distill.store import StoreWriter, TeacherStore
from distill.store.convert import Conversion


def voxels(store: TeacherStore, token: str) -> np.ndarray:
    """Log-probabilities that a student hears, (V, C)."""
    return heard(store, token, "voxels")


def heard(store: TeacherStore, token: str, name: str) -> np.ndarray:

    record = stack([store.told(token, [name], coverage=False).signals[name]])
    listener = store.signals[name].listen(record, None, GRID, 17, frozenset())
    count = GRID.shape[0] * GRID.shape[1] * (GRID.shape[2] if name == "voxels" else 1)
    found = (listener.voxels if name == "voxels" else listener.columns)(torch.arange(count))
    return found.log_softmax(-1).numpy()


def kl(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    p, q = p.astype(np.float64).reshape(-1, 18), q.astype(np.float64).reshape(-1, 18)
    return (np.exp(p) * (p - q)).sum(-1)


def test_info_says_what_is_there(path: Path, run) -> None:
    code, out, _ = run(f"path={path}")
    assert code == 0
    for expected in (
        f"{path}: schema 5, voxels by fine",
        "fusion (checkpoint 5f5f5f5f)",
        "tiny: 8 x 8 x 4 voxels of 1.0 m, ego frame",
        "18: others, barrier",
        "voxels (Voxels); bev (Bev); gaussians (GaussianSet)",
        "3 of 5, 2 missing; of 2 scenes 1 are whole, 0 partly there, 1 absent",
    ):
        assert expected in out
    sizes = {name: int(size) for name, size in re.findall(r"^(\w+) +(\d+) +\d+\.\d\d$", out, re.MULTILINE)}
    assert set(sizes) == {*TeacherStore(path).arrays, "all"}
    exact = sum(file.stat().st_size for file in path.glob("voxel_logits/c.*")) / 3
    assert abs(sizes["voxel_logits"] - exact) <= 0.5
    assert "KL" not in out


def test_info_says_how_good_it_is(path: Path, tmp_path: Path, run) -> None:
    new = tmp_path / "new.zarr"
    run("do=convert", f"path={path}", f"store.path={new}", "store.encoding=columns", "store.step=0.5")
    store = TeacherStore(new)
    found = np.stack([store.arrays["voxel_kl"].unpack(store.chunk(token, "voxel_kl")) for token in TOKENS[:3]])
    _, out, _ = run(f"path={new}")
    assert "schema 5, voxels by columns" in out
    assert "made of     schema 5, voxels by fine" in out
    for name, row in (("mean", found[:, 0].mean(0)), ("maximum", found[:, 1].max(0))):
        assert re.search(rf"^{name} +{' +'.join(f'{value:.2e}' for value in row)}$", out, re.MULTILINE)
    assert re.search(r"^steps, nats: [\d.]+ of \d keyframes", out, re.MULTILINE)
    flip_a_byte(chunk(new, "voxel_kl", 0), -1)
    assert run(f"path={new}")[0] == 0  # it says what it can


def test_damage_is_named_by_token_and_array(path: Path, run) -> None:
    assert run("do=verify", f"path={path}")[:2] == (0, f"{path}: 3 of 5 keyframes, 0 damaged\n")
    flip_a_byte(chunk(path, "voxel_logits", 1), 20)
    flip_a_byte(chunk(path, "gaussians", 1), 20)
    chunk(path, "voxel_coverage", 2).unlink()
    for _ in range(2):
        code, out, _ = run("do=verify", f"path={path}")
        assert code == 1
        assert set(re.findall(r"sample (\w+) is damaged in array (\w+)", out)) == {
            (TOKENS[1], "voxel_logits"),
            (TOKENS[1], "gaussians"),
            (TOKENS[2], "voxel_coverage"),
        }
        assert "2 damaged: take them out with discard=true" in out
    code, out, _ = run("do=verify", f"path={path}", "discard=true")
    assert code == 0
    assert "2 damaged, 2 discarded" in out
    assert TeacherStore(path).present == {TOKENS[0]}
    assert run("do=verify", f"path={path}")[:2] == (0, f"{path}: 1 of 5 keyframes, 0 damaged\n")
    write(open_writer(path), *TOKENS[1:3])
    assert run("do=verify", f"path={path}")[0] == 0


def test_a_damaged_basis_is_found(path: Path, tmp_path: Path, run, refused) -> None:
    new = tmp_path / "new.zarr"
    run("do=convert", f"path={path}", f"store.path={new}", "store.encoding=columns")
    (file,) = (each for each in (new / "column_basis").glob("c/**/0") if each.is_file())
    flip_a_byte(file, 100)
    assert "is damaged in column_basis" in refused("do=verify", f"path={new}")
    flip_a_byte(path / "scenes" / "c" / "0", 20)
    assert "is damaged in scenes" in refused("do=verify", f"path={path}")


@pytest.mark.parametrize("schema", [2, 3, 5])
def test_what_keeps_its_encoding_is_copied(path: Path, tmp_path: Path, run, schema: int) -> None:
    expected = contents(path)
    if schema < 5:
        make_earlier(path, schema)
    new = tmp_path / "new.zarr"
    code, out, _ = run("do=convert", f"path={path}", f"store.path={new}")
    assert code == 0
    assert "3 keyframes were written, 0 left out" in out
    store = TeacherStore(new)
    assert (store.schema, store.identity, store.present) == (5, IDENTITY, set(TOKENS[:3]))
    assert store.made_of == [f"schema {schema}, voxels by fine"]
    found = contents(new)
    apart = {name for name in expected if found[name] != expected[name]} - {"zarr.json"}
    unknown = {name for name in expected if name.startswith(("frame_digests/c", "checksums/c."))}
    assert apart == (unknown if schema == 2 else set())
    for token in store.present:
        store.verify(token)
    assert store.frame_digests(TOKENS[1]).any() == (schema != 2)
    assert store.other_frames({token: digests(token) for token in TOKENS}) == {}
    write(open_writer(new), *TOKENS[3:])  # a dump goes on with it
    assert TeacherStore(new).present == set(TOKENS)


KINDS = {"columns": (ColumnVoxels, LevelBev), "levels": (LevelVoxels, LevelBev), "fine": (Voxels, Bev)}


@pytest.mark.parametrize("encoding", ["columns", "levels"])
def test_another_encoding_says_the_same_and_back_again(path: Path, tmp_path: Path, run, encoding: str) -> None:
    new, back = tmp_path / "new.zarr", tmp_path / "back.zarr"
    for source, target, how in ((path, new, encoding), (new, back, "fine")):
        given = f"path={source}", f"store.path={target}", f"store.encoding={how}", "store.step=0.0625"
        assert run("do=convert", *given)[0] == 0
        store, old = TeacherStore(target), TeacherStore(source)
        assert tuple(type(store.signals[name]) for name in ("voxels", "bev")) == KINDS[how]
        for row, token in enumerate(TOKENS[:3]):
            store.verify(token)
            covered = coverage(token).ravel()
            missed = kl(voxels(old, token), voxels(store, token))[covered]
            assert missed.max() < (MAX_KL if encoding == "columns" else MAX_VOXEL_KL[1])
            assert kl(heard(old, token, "bev"), heard(store, token, "bev")).max() < MAX_BEV_KL[1]
            for array in ("voxel_semantics", "voxel_coverage", "gaussians", "frame_digests"):
                assert chunk(target, array, row).read_bytes() == chunk(path, array, row).read_bytes()
            told = kl(teacher_output(token)[0], voxels(store, token))[covered]
            assert told.max() < 3e-2
    bev = TeacherStore(back).arrays["bev_semantics"].unpack(TeacherStore(back).chunk(TOKENS[0], "bev_semantics"))
    assert bev[1, 2] == 255


def test_auto_leaves_what_is_small(path: Path, tmp_path: Path, run) -> None:
    new, same = tmp_path / "new.zarr", tmp_path / "same.zarr"
    _, out, _ = run("do=convert", f"path={path}", f"store.path={new}", "store.encoding=auto")
    assert "voxels are kept by levels (store.encoding" in out  # noise has no basis
    _, out, _ = run("do=convert", f"path={new}", f"store.path={same}", "store.encoding=auto")
    assert "voxels are kept" not in out
    assert {name for name, content in contents(new).items() if contents(same)[name] != content} == {"zarr.json"}


def asked(path: Path, **given: object) -> DictConfig:
    return OmegaConf.create({"path": str(path), "encoding": "columns", "step": 0.25, "keep": "same", **given})


def test_killed_and_resumed(path: Path, tmp_path: Path) -> None:
    def convert(new: Path, step: int = 0) -> int:
        if step:
            die_at(step)
        return Conversion.open([TeacherStore(path)], asked(new), None)[0].run(threads=1)

    assert convert(tmp_path / "whole.zarr") == 3
    expected, step, exit_code, left = contents(tmp_path / "whole.zarr"), 0, -signal.SIGKILL, [3]
    while exit_code == -signal.SIGKILL:
        step += 31
        new = tmp_path / f"killed-{step}.zarr"
        exit_code = in_process(lambda new=new, step=step: convert(new, step))
        left.append(convert(new))
        assert contents(new) == expected
    assert exit_code == 0
    assert sorted(left, reverse=True) == left
    assert set(left) == {3, 2, 1, 0}


@pytest.mark.parametrize("encoding", ["same", "columns", "levels"])
def test_what_cameras_do_not_show_is_left_out(path: Path, tmp_path: Path, encoding: str) -> None:
    """Of labelled keyframes; in columns that are kept at all, columns by the BEV rule stay what they are."""
    shown_XYZ = np.random.default_rng(0).random(GRID.shape) < 0.2
    wanted = asked(tmp_path / "new.zarr", encoding=encoding, keep="visible")
    conversion, _ = Conversion.open(
        [TeacherStore(path)], wanted, lambda token: shown_XYZ if token == TOKENS[0] else None
    )
    assert conversion.run(threads=2) == 3
    store, old = TeacherStore(tmp_path / "new.zarr"), TeacherStore(path)
    assert store.identity.keep == "visible"
    seen = shown_XYZ if encoding != "columns" else np.broadcast_to(shown_XYZ.any(-1, keepdims=True), GRID.shape)
    for token, kept in ((TOKENS[0], coverage(TOKENS[0]) & seen), (TOKENS[1], coverage(TOKENS[1]))):
        store.verify(token)
        np.testing.assert_array_equal(store.coverage(token), kept)
        np.testing.assert_array_equal(store.in_columns(token), coverage(token))
        np.testing.assert_array_equal(store.semantics(token), old.semantics(token))
        assert kl(voxels(old, token), voxels(store, token))[kept.ravel()].max() < 2e-2
        bev, expected = heard(store, token, "bev"), heard(old, token, "bev")
        columns = kept.any(-1).ravel()
        assert kl(expected, bev)[columns].max() < MAX_BEV_KL[1]
        np.testing.assert_allclose(bev[~columns], -np.log(18), rtol=1e-2)
    again = asked(tmp_path / "again.zarr", encoding="columns")
    if encoding != "columns":
        with pytest.raises(InputError, match=r"keeps single voxels, .* needs whole columns"):
            Conversion.open([store], again, None)
    with pytest.raises(InputError, match=r"keep is 'visible' there, 'all' here"):
        Conversion.open([old], asked(store.path, encoding=encoding), None)


def test_what_is_damaged_is_left_out_and_named(path: Path, tmp_path: Path, run) -> None:
    flip_a_byte(chunk(path, "voxel_logits", 0), 20)
    flip_a_byte(chunk(path, "gaussians", 2), 20)
    new = tmp_path / "new.zarr"
    code, out, _ = run("do=convert", f"path={path}", f"store.path={new}", "store.encoding=levels")
    assert code == 1
    assert f"sample {TOKENS[0]} is damaged in array voxel_logits" in out
    assert f"sample {TOKENS[2]} is damaged in array gaussians" in out
    assert "1 keyframes were written, 2 left out" in out
    assert TeacherStore(new).present == {TOKENS[1]}


def test_partial_dumps_become_one(path: Path, tmp_path: Path, run) -> None:
    other, new = tmp_path / "other.zarr", tmp_path / "new.zarr"
    write(open_writer(other), *TOKENS[2:])
    code, out, _ = run("do=merge", f"path=[{path},{other}]", f"store.path={new}")
    assert code == 0
    assert "1 keyframes are in several of these stores and are the same" in out
    write(open_writer(tmp_path / "whole.zarr"), *TOKENS)
    found = contents(new)
    apart = {name for name, content in contents(tmp_path / "whole.zarr").items() if found[name] != content}
    assert apart == {"zarr.json"}


def test_of_keyframes_in_several_stores_the_first_intact_one_is_taken(path: Path, tmp_path: Path, run) -> None:
    other, new = tmp_path / "other.zarr", tmp_path / "new.zarr"
    writer = open_writer(other)
    write(writer, TOKENS[0], TOKENS[2])

    writer.write(TOKENS[1], *everything(TOKENS[4]))
    flip_a_byte(chunk(path, "voxel_logits", 0), 20)
    code, out, _ = run("do=merge", f"path=[{path},{other}]", f"store.path={new}")
    assert "3 keyframes are in several of these stores, 1 of them differ, of which the first is taken" in out
    assert code == 0
    assert "3 keyframes were written, 0 left out" in out
    np.testing.assert_array_equal(TeacherStore(new).coverage(TOKENS[1]), coverage(TOKENS[1]))
    TeacherStore(new).verify(TOKENS[0])


def test_stores_of_other_bases_are_encoded_again(path: Path, tmp_path: Path, run) -> None:
    other, new = tmp_path / "other.zarr", tmp_path / "new.zarr"
    write(open_writer(other), *TOKENS[3:])
    columns = []
    for source in (path, other):
        columns.append(source.with_suffix(".columns"))
        run("do=convert", f"path={source}", f"store.path={columns[-1]}", "store.encoding=columns")
    first, second = map(TeacherStore, columns)
    assert not np.array_equal(first.signals["voxels"].column_basis, second.signals["voxels"].column_basis)
    assert run("do=merge", f"path=[{columns[0]},{columns[1]}]", f"store.path={new}")[0] == 0
    store = TeacherStore(new)
    assert store.present == set(TOKENS)
    for token in TOKENS:
        missed = kl(teacher_output(token)[0], voxels(store, token))[coverage(token).ravel()]
        assert missed.max() < 2 * MAX_KL
    for row in range(3):
        assert chunk(new, "column_coefs", row).read_bytes() == chunk(columns[0], "column_coefs", row).read_bytes()


def test_what_cannot_be_is_refused_in_one_line(path: Path, tmp_path: Path, refused) -> None:
    new, other, less = (tmp_path / name for name in ("new.zarr", "other.zarr", "less.zarr"))
    write(StoreWriter.open(other, dataclasses.replace(IDENTITY, teacher="flash"), TOKENS, SCENES), TOKENS[0])
    write(StoreWriter.open(less, IDENTITY, TOKENS[:4], SCENES[:4]), TOKENS[0])
    empty = open_writer(tmp_path / "empty.zarr").store.path
    to = f"store.path={new}"
    assert "path must be given" in refused("do=info")
    assert "does not exist" in refused(f"path={new}")
    assert "say where, with store.path" in refused("do=convert", f"path={path}")
    assert "do=convert is of one store, path has 2: set do=merge" in refused("do=convert", f"path=[{path},{other}]", to)
    assert "do=merge is of several stores, path has 1" in refused("do=merge", f"path={path}", to)
    assert "teacher is 'fusion' and 'flash'" in refused("do=merge", f"path=[{path},{other}]", to)
    assert "tokens.4 is" in refused("do=merge", f"path=[{path},{less}]", to)
    assert "is one of the stores that are read" in refused("do=convert", f"path={path}", f"store.path={path}")
    assert "no keyframe is in" in refused("do=convert", f"path={empty}", to)
    assert "teacher is 'flash' there, 'fusion' here" in refused("do=convert", f"path={path}", f"store.path={other}")
    assert "say where the labels are" in refused("do=convert", f"path={path}", to, "store.keep=visible")
    assert "keeps voxels by fine, store.encoding=levels is asked for" in refused(
        "do=convert", f"path={path}", f"store.path={empty}", "store.encoding=levels"
    )
    assert not new.exists()

"""Packs: what lies in them is read as before, whatever happened on the way."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_crash import claims_and_waits, die_at, in_process
from test_store import make_earlier
from tiny_store import TOKENS, contents, coverage, digests, everything, log_probs, open_writer, write

from distill.errors import InputError
from distill.store import DamagedSample, StoreWriter, TeacherStore
from distill.store.packing import Packing
from distill.store.place import Memory, Place

FORK = multiprocessing.get_context("fork")
OTHER = "99"  # what a keyframe says that was written again


def pack(place: Path | Place) -> Packing:
    packing = Packing(TeacherStore(place))
    packing.run()
    return packing


def said(store: TeacherStore) -> dict[str, list[bytes]]:
    """All that a store holds, checked."""
    return {
        token: [store.commit_record(token), *store.chunks(token, store.arrays).values()]
        for token in store.tokens
        if token in store.present
    }


def flip(file: Path, position: int) -> None:
    content = bytearray(file.read_bytes())
    content[position] ^= 0x10
    file.write_bytes(content)


@pytest.fixture
def packed(path: Path) -> Path:
    """A store of which the first three keyframes are in a pack, the first whole scene."""
    pack(path)
    return path


@pytest.mark.parametrize("where", ["disk", "memory"])
def test_what_is_packed_is_read_as_before(tmp_path: Path, where: str) -> None:
    place: Path | Place = tmp_path / "teacher.zarr" if where == "disk" else Memory()
    writer = open_writer(place)
    write(writer, *TOKENS[:4])
    before, told = TeacherStore(place), said(TeacherStore(place))
    versions = writer.versions(TOKENS)
    pack(place)
    after = TeacherStore(place)
    assert after.present == set(TOKENS[:4])
    assert said(after) == said(before) == told  # one that was opened before goes on, too
    for token in after.present:
        np.testing.assert_array_equal(after.coverage(token), coverage(token))
        np.testing.assert_array_equal(after.frame_digests(token), digests(token))
        assert after.told(token, list(after.signals), coverage=True).signals["voxels"].codes.shape
    assert writer.versions(TOKENS) == versions
    assert writer.missing(TOKENS) == TOKENS[4:]
    with pytest.raises(InputError, match="dump it with occ-dump"):
        after.semantics(TOKENS[4])
    assert f"{after.summary()}" == f"{before.path}: 4 of 5 keyframes, 0.01 MB per keyframe, 4 of them in 2 packs"
    assert before.sizes() == after.sizes()


def test_a_scene_is_a_file(packed: Path) -> None:
    assert [name for name in contents(packed) if "/c." in name] == []
    assert sorted(name for name in contents(packed) if name.startswith("packs")) == ["packs/0-2.zip", "packs/zarr.json"]
    before = contents(packed)
    assert pack(packed).run() == 0
    assert contents(packed) == before


def test_what_comes_later_is_packed_with_its_scene(packed: Path, tmp_path: Path) -> None:
    write(open_writer(packed), *TOKENS[3:])
    pack(packed)
    whole = tmp_path / "whole.zarr"
    write(open_writer(whole), *TOKENS[1:])
    pack(whole)
    assert {"packs/1-2.zip", "packs/3-4.zip"} < contents(whole).keys()
    write(open_writer(whole), TOKENS[0])
    pack(whole)
    assert contents(whole).keys() == contents(packed).keys() >= {"packs/0-2.zip", "packs/3-4.zip"}
    assert said(TeacherStore(whole)) == said(TeacherStore(packed))


def test_plain_zarr_reads_a_pack_without_our_code(packed: Path, tmp_path: Path) -> None:
    program = """
import sys, warnings
import numpy as np
import zarr
warnings.simplefilter("error")
assert "packs" in dict(zarr.open_group(sys.argv[1], mode="r").members())
group = zarr.open_group(zarr.storage.ZipStore(sys.argv[1] + "/packs/0-2.zip", mode="r"), mode="r")
assert not any(name.split(".")[0] in ("distill", "kernels") for name in sys.modules)
first, last = group.attrs["rows"]
row = first + group.attrs["tokens"].index(sys.argv[2])
assert (first, last, row) == (0, 2, 1) and group.attrs["teacher"] == "fusion"
assert group["checksums"][:].any(1).tolist() == [True, True, True, False, False]
assert "voxel_semantics" in dict(group.members())
np.save(sys.argv[3], group["voxel_logits"][row].astype("f4"))
"""
    arguments = [str(packed), TOKENS[1], str(tmp_path / "read.npy")]
    subprocess.run([sys.executable, "-c", program, *arguments], cwd=tmp_path, check=True)
    np.testing.assert_array_equal(np.load(tmp_path / "read.npy"), log_probs(TeacherStore(packed), TOKENS[1]))


class Counting(Memory):
    """Counts what is read."""

    reads: list[str]

    def read(self, name: str) -> bytes:
        self.reads.append(name)
        return super().read(name)

    def read_part(self, name: str, start: int, length: int) -> bytes:
        self.reads.append(name)
        return self._files[name][0][start : start + length]


def test_a_packed_sample_is_read_at_once(path: Path) -> None:
    place = Counting()
    place.reads = []
    writer = open_writer(place)
    write(writer, *TOKENS[:3])
    pack(place)
    store = TeacherStore(place)
    assert not any(name.startswith("packs/") and name.endswith("zip") for name in place.reads[-20:])
    for reads in (2, 1, 1):  # the index, once
        place.reads = []
        store.told(TOKENS[1], ["voxels", "bev"], coverage=True)
        assert place.reads == ["packs/0-2.zip"] * reads


def test_writing_again_replaces_what_is_packed(packed: Path) -> None:
    writer = open_writer(packed)
    old = writer.version(TOKENS[1])
    writer.write(TOKENS[1], *everything(OTHER))
    assert writer.version(TOKENS[1]) not in (None, old)
    for _ in range(2):
        for store in (TeacherStore(packed), open_writer(packed).store):
            assert store.present == set(TOKENS[:3])
            np.testing.assert_array_equal(store.coverage(TOKENS[1]), coverage(OTHER))
            np.testing.assert_array_equal(store.coverage(TOKENS[2]), coverage(TOKENS[2]))
        pack(packed)
    assert [name for name in contents(packed) if "/c." in name or "withdrawn" in name] == []


class Killed(BaseException):
    """What a process meets that no `except` of ours catches."""


class Fragile(Memory):
    """Whose user is killed before its `left`-th change."""

    left = 1 << 30

    def write(self, name: str, content: bytes) -> None:
        self._step()
        super().write(name, content)

    def delete(self, name: str) -> None:
        self._step()
        super().delete(name)

    def _step(self) -> None:
        self.left -= 1
        if not self.left:
            raise Killed


def write_version(writer: StoreWriter, token: str, version: str) -> None:
    writer.write(token, *everything(version))


def withdraw(writer: StoreWriter, token: str, _: str) -> None:
    writer.withdraw(token)


ACTIONS: dict[str, Callable[[StoreWriter, str, str], None]] = {
    "write": write_version,
    "withdraw": withdraw,
    "pack": lambda writer, *_: pack(writer.place) and None,
}
STEPS = st.tuples(
    st.sampled_from(["write", "write", "withdraw", "pack", "pack"]),
    st.sampled_from(TOKENS[:4]),
    st.sampled_from(["7", "8"]),
    st.integers(1, 60),
)


@settings(max_examples=12, deadline=None)
@given(st.lists(STEPS, min_size=2, max_size=10))
def test_killed_anywhere_everything_is_as_it_was_or_should_be(steps: list[tuple[str, str, str, int]]) -> None:
    """Each step is killed at some change; what it is about is then old, new or absent; all else is untouched."""
    place = Memory()
    open_writer(place)
    expected: dict[str, list[bytes]] = {}
    truth = {version: one_sample(version) for version in ("7", "8")}
    for action, token, version, left in steps:
        fragile = Fragile(place)
        writer = open_writer(fragile)
        fragile.left = left
        finished = True
        try:
            ACTIONS[action](writer, token, version)
        except Killed:
            finished = False
        del writer, fragile
        found = said(TeacherStore(place))
        if action == "pack":
            assert found == expected
            continue
        others = {each: value for each, value in expected.items() if each != token}
        assert {each: value for each, value in found.items() if each != token} == others
        new = truth[version] if action == "write" else None
        assert found.get(token) in ((new,) if finished else (new, expected.get(token), None))
        expected = found


def one_sample(version: str) -> list[bytes]:
    place = Memory()
    write_version(open_writer(place), TOKENS[0], version)
    return said(TeacherStore(place))[TOKENS[0]]


def test_packing_is_killed_before_every_change(path: Path) -> None:
    """In this process; nothing is lost, and whoever goes on leaves what an undisturbed one does."""
    expected = said(TeacherStore(path))
    undisturbed = Memory()
    undisturbed._files.update({name: (content, 0) for name, content in contents(path).items()})
    copy = dict(undisturbed._files)
    pack(undisturbed)
    for left in itertools.count(1):
        place = Memory()
        place._files.update(copy)
        fragile = Fragile(place)
        fragile.left = left
        reader = TeacherStore(place)
        try:
            pack(fragile)
            break
        except Killed:
            pass
        del fragile
        assert said(TeacherStore(place)) == said(reader) == expected
        open_writer(place)  # tidies
        pack(place)
        assert {name: content for name, (content, _) in place._files.items()} == {
            name: content for name, (content, _) in undisturbed._files.items()
        }
    assert left > 24


def test_packing_is_killed_for_good(path: Path) -> None:
    """A real process and a real disk."""
    write(open_writer(path), *TOKENS[3:])
    expected, step, exit_code = said(TeacherStore(path)), 0, -signal.SIGKILL

    def killed() -> None:
        die_at(step)
        pack(path)

    while exit_code == -signal.SIGKILL:
        step += 3
        exit_code = in_process(killed)
        assert said(TeacherStore(path)) == expected
    assert exit_code == 0
    assert step > 12
    assert not any(name.endswith(".partial") for name in contents(path))


def test_two_processes_pack_one_store(path: Path) -> None:
    write(open_writer(path), *TOKENS[3:])
    expected = said(TeacherStore(path))
    packers = [FORK.Process(target=pack, args=(path,)) for _ in range(2)]
    for process in packers:
        process.start()
    for process in packers:
        process.join()
    assert [process.exitcode for process in packers] == [0, 0]
    assert said(TeacherStore(path)) == expected
    pack(path)
    assert {name for name in contents(path) if name.endswith("zip")} == {"packs/0-2.zip", "packs/3-4.zip"}


def test_what_others_are_writing_is_left_alone(path: Path, run) -> None:
    process = claims_and_waits(path, TOKENS[1], fork=False)
    code, out, _ = run("do=pack", f"path={path}")
    assert code == 0
    assert "3 keyframes of scenes that others are writing were left alone" in out
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    code, out, _ = run("do=pack", f"path={path}")
    assert code == 0
    assert "3 keyframes were packed" in out
    assert "3 of them in 1 packs" in out
    assert "; 3 in 1 packs" in run(f"path={path}")[1]
    assert run("do=verify", f"path={path}")[:2] == (0, f"{path}: 3 of 5 keyframes, 0 damaged\n")


@pytest.mark.parametrize("part", ["index", "chunk", "header", "directory", "comment", "truncated", "empty"])
def test_damage_of_a_pack_is_named_and_taken_out(packed: Path, run, part: str) -> None:
    write(open_writer(packed), *TOKENS[3:])
    pack(packed)
    whole, file = said(TeacherStore(packed)), packed / "packs" / "0-2.zip"
    index = TeacherStore(packed).layout.index(TeacherStore(packed).layout.packs[0])
    start = int(index["start"][1][2])
    if part == "truncated":
        os.truncate(file, start + 1)  # of the second sample
    elif part == "empty":
        os.truncate(file, 0)
    else:
        where = {"index": 100, "chunk": start + 3, "header": start - 20, "directory": -100, "comment": -1}
        flip(file, where[part])
    lost = {"index": TOKENS[:3], "empty": TOKENS[:3], "chunk": TOKENS[1:2], "truncated": TOKENS[1:3]}.get(part, [])
    store = TeacherStore(packed)
    for token in TOKENS:
        if token in lost:
            with pytest.raises(DamagedSample, match=r"packs/0-2.zip.*dump.verify=true"):
                store.verify(token)
        else:
            assert store.chunks(token, store.arrays).values()
    code, out, _ = run("do=verify", f"path={packed}")
    assert code == 1
    assert f"5 of 5 keyframes, {len(lost)} damaged, 1 packs damaged" in out
    assert str(file) in out.splitlines()[0]
    code, out, _ = run("do=verify", f"path={packed}", "discard=true")
    assert code == 0
    assert f"{len(lost)} discarded: occ-dump does them again; 1 packs made again" in out
    assert said(TeacherStore(packed)) == {token: value for token, value in whole.items() if token not in lost}
    assert run("do=verify", f"path={packed}")[0] == 0
    write(open_writer(packed), *lost)
    pack(packed)
    assert said(TeacherStore(packed)) == whole


def test_damaged_samples_in_packs_are_dumped_again(packed: Path) -> None:
    index = TeacherStore(packed).layout.index(TeacherStore(packed).layout.packs[0])
    flip(packed / "packs" / "0-2.zip", int(index["start"][1][0]) + 9)
    assert open_writer(packed).discard_damaged(TOKENS) == 1
    assert open_writer(packed).missing(TOKENS) == [TOKENS[1], *TOKENS[3:]]
    write(open_writer(packed), TOKENS[1])
    np.testing.assert_array_equal(TeacherStore(packed).coverage(TOKENS[1]), coverage(TOKENS[1]))


def test_what_is_damaged_is_not_packed(path: Path, run) -> None:
    write(open_writer(path), *TOKENS[3:])
    flip(path / "voxel_coverage" / "c.1.0.0.0", 9)
    before = contents(path)
    code, out, _ = run("do=pack", f"path={path}")
    assert code == 1
    assert f"sample {TOKENS[1]} is damaged in array voxel_coverage" in out
    assert "do=verify discard=true" in out
    gone = {name for name in before if "/c.3." in name or "/c.4." in name}
    assert contents(path).keys() == before.keys() - gone | {"packs/3-4.zip", "packs/zarr.json"}


def test_a_pack_of_another_store_is_not_believed(packed: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.zarr"
    StoreWriter.create(foreign, TeacherStore(packed).identity, TOKENS, ["scene"] * 5, (), ["something else"])
    (foreign / "packs").mkdir()
    (foreign / "packs" / "0-2.zip").write_bytes((packed / "packs" / "0-2.zip").read_bytes())
    with pytest.raises(DamagedSample, match=r"0-2\.zip, which is of another store"):
        TeacherStore(foreign).semantics(TOKENS[0])
    (foreign / "packs" / "0-2.zip").rename(foreign / "packs" / "0-9.zip")
    with pytest.raises(InputError, match=r"packs/0-9.zip is not of this store, which has 5 rows: remove it"):
        TeacherStore(foreign)


def test_what_is_packed_is_converted_and_merged(packed: Path, tmp_path: Path, run) -> None:
    other, new, merged = tmp_path / "other.zarr", tmp_path / "new.zarr", tmp_path / "merged.zarr"
    write(open_writer(other), *TOKENS[2:])
    for override in ("same", "levels"):
        code, out, _ = run("do=convert", f"path={packed}", f"store.path={new}-{override}", f"store.encoding={override}")
        assert (code, "3 keyframes were written, 0 left out" in out) == (0, True)
    assert said(TeacherStore(Path(f"{new}-same"))) == said(TeacherStore(packed))
    code, out, _ = run("do=merge", f"path=[{packed},{other}]", f"store.path={merged}")
    assert "1 keyframes are in several of these stores and are the same" in out
    pack(merged)
    code, out, _ = run("do=merge", f"path=[{packed},{other}]", f"store.path={merged}")
    assert "0 keyframes were written" in out
    assert TeacherStore(merged).present == set(TOKENS)


def make_schema_4(path: Path) -> None:
    """What the version before has left: nothing was sealed, and all was kept."""
    description = json.loads((path / "zarr.json").read_text())
    later = ("keep", "files", "seal", "made_of")
    attributes = {name: value for name, value in description["attributes"].items() if name not in later}
    (path / "zarr.json").write_text(json.dumps({**description, "attributes": {**attributes, "schema": 4}}))


@pytest.mark.parametrize("schema", [3, 4])
def test_stores_of_earlier_schemas_are_packed_and_continued(path: Path, schema: int) -> None:
    expected = {token: set(chunks[1:]) for token, chunks in said(TeacherStore(path)).items()}  # all but the records
    make_schema_4(path) if schema == 4 else make_earlier(path, schema)
    attributes = (path / "zarr.json").read_bytes()
    pack(path)
    assert {token: set(chunks[1:]) for token, chunks in said(TeacherStore(path)).items()} == expected
    write(open_writer(path), *TOKENS[2:])
    pack(path)
    store = TeacherStore(path)
    assert (store.schema, store.present) == (schema, set(TOKENS))
    assert (path / "zarr.json").read_bytes() == attributes  # the version before goes on with it, too
    np.testing.assert_array_equal(store.coverage(TOKENS[1]), coverage(TOKENS[1]))


def test_what_only_another_version_can_pack_is_refused(path: Path, run) -> None:
    make_earlier(path, 2)
    code, _, err = run("do=pack", f"path={path}")
    assert (code, "has store schema 2: make a new one of it, with do=convert" in err) == (2, True)
    description = json.loads((path / "zarr.json").read_text())
    description["attributes"]["schema"] = 6
    (path / "zarr.json").write_text(json.dumps(description))
    for do in ("info", "verify", "pack"):
        code, _, err = run(f"do={do}", f"path={path}")
        assert code == 2
        assert "has store schema 6, this version reads schemas 2, 3, 4 and 5: read it with the version that made" in err


def test_a_version_without_packs_writes_beside_them(packed: Path) -> None:
    """To it, packed keyframes are absent; what it writes again is what counts."""
    other, place = Memory(), TeacherStore(packed).place
    write_version(open_writer(other), TOKENS[1], OTHER)
    files = {name: content for name, (content, _) in other._files.items() if "/c.1." in name}
    for name in sorted(files, key=lambda name: name.startswith("checksums")):
        np.testing.assert_array_equal(TeacherStore(packed).coverage(TOKENS[1]), coverage(TOKENS[1]))
        place.write(name, files[name])
    np.testing.assert_array_equal(TeacherStore(packed).coverage(TOKENS[1]), coverage(OTHER))
    pack(packed)
    np.testing.assert_array_equal(TeacherStore(packed).coverage(TOKENS[1]), coverage(OTHER))

"""Moving the keyframes of a store into packs, beside those who read and write it, killed at any moment."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
from tqdm import tqdm

from distill.errors import InputError
from distill.store.packs import DESCRIPTION, Layout, Pack, PackedRow, pack_content, withdrawn_name
from distill.store.reader import TeacherStore
from distill.store.sample import DamagedSample, Sample
from distill.store.schema import COMMITS, commit_name, read_attributes, read_whole
from distill.store.writer import StoreWriter, disk_errors

LONGEST = 64  # rows of a pack, which is made in memory
_ABOUT = "each FIRST-LAST.zip is a zarr group of these rows: zarr.open_group(zarr.storage.ZipStore(path), mode='r')"


class Packing:
    """Packs of the rows of each scene that follow each other and are present.

    Rows are packed by groups. What is in a group is claimed, so that nobody writes any of it meanwhile. First its packs
    are made of what is current, then packs that they replace go, then the marks of rows withdrawn from these, then the
    files that rows had of their own: whenever it ends, every row is read as it was before.

    Args:
        store: that one.

    Attributes:
        damaged: a line for each sample that keeps its group from being packed.
        in_use: how many keyframes are in groups of which other processes had claimed any.

    Raises:
        InputError: it is of a schema that is not continued, or cannot be written.
    """

    def __init__(self, store: TeacherStore) -> None:
        if not store.continued:
            raise InputError(f"{store.path} has store schema {store.schema}: make a new one of it, with do=convert")
        self.store, self.writer, self.place = store, StoreWriter(store), store.place
        self.damaged: list[str] = []
        self.in_use = 0
        with disk_errors(f"cannot pack keyframes of {store.path}"):
            self.writer.tidy()
            self._describe()
        attributes = read_attributes(self.place)
        self._attributes = {name: value for name, value in attributes.items() if name not in ("files", "seal")}
        self._shared = self._files_of_all_rows()
        scenes = read_whole(self.place, "scenes")
        begins = np.flatnonzero(np.append(True, scenes[1:] != scenes[:-1])).tolist()
        self._cuts = np.zeros(len(scenes), bool)  # of each row, whether a pack may begin there
        for first, end in pairwise([*begins, len(scenes)]):
            self._cuts[first:end:LONGEST] = True

    def _describe(self) -> None:
        """Let zarr know what the folder is."""
        first = self.store.tokens[0]
        if not self.place.exists(DESCRIPTION) and self.writer.claim(first):
            self.place.write(DESCRIPTION, _group({"about": _ABOUT}))
            self.writer.release(first)

    def run(self) -> int:
        """Pack whatever is not; how many keyframes were."""
        layout, packed = self.store.look(), 0
        groups = [group for group in self.groups(layout) if not self._is_packed(layout, group)]
        progress = tqdm(desc=self.store.name, total=sum(map(len, groups)), unit="keyframe", disable=not groups)
        with progress:
            for group in groups:
                packed += self.pack(group) or 0
                progress.update(len(group))
        return packed

    def groups(self, layout: Layout) -> list[range]:
        """All rows, cut where scenes end or get too long, but nowhere inside a pack."""
        cuts = self._cuts.copy()
        for pack in layout.packs:
            cuts[pack.first + 1 : pack.last + 1] = False
        return [range(first, end) for first, end in pairwise([*np.flatnonzero(cuts).tolist(), len(cuts)])]

    def pack(self, group: range, anew: bool = False) -> int | None:
        """Pack the rows of a group that are present; how many are packed now, 0 if they were before.

        None if it cannot be, as another process is at it or a sample is damaged.

        Args:
            group: one of `groups`.
            anew: whether packs are made again that seem to be right.

        Raises:
            InputError: the disk refuses; everything is read as before.
        """
        with self._claimed(group) as mine, disk_errors(f"cannot pack keyframes of {self.store.path}"):
            # again, now that nobody writes any of it
            loose = [row for row in group if self.place.exists(commit_name(row))]
            layout = self.store.layout = self.store.look(loose)
            packs = [pack for pack in layout.packs if pack.first < group.stop and pack.last >= group.start]
            if not mine or not all(pack.first in group and pack.last in group for pack in packs):
                self.in_use += len(group)
                return None
            if not anew and self._is_packed(layout, group):
                return 0
            runs = self._runs(layout, group)
            try:
                for run in runs:
                    if anew or not self._is_right(layout, run):
                        self.write(run, [self.sample(self.store.tokens[row]) for row in run.rows])
            except DamagedSample as error:
                self.damaged.append(error.what)
                return None
            self._remove_replaced(layout, group, set(packs) - set(runs))
            return sum(len(run.rows) for run in runs)

    def _runs(self, layout: Layout, group: range) -> list[Pack]:
        """The packs that a group should have."""
        rows = slice(group.start, group.stop)
        present, cuts = layout.present[rows], self._cuts[rows]
        begins = present & (cuts | ~np.append(False, present[:-1]))
        ends = present & np.append(cuts[1:] | ~present[1:], True)
        pairs = zip(np.flatnonzero(begins).tolist(), np.flatnonzero(ends).tolist(), strict=True)
        return [Pack(group.start + first, group.start + last) for first, last in pairs]

    def _is_right(self, layout: Layout, run: Pack) -> bool:
        """Whether there is a pack, and it holds what is current."""
        rows = slice(run.first, run.last + 1)
        return layout.has(run) and not (layout.loose[rows] | layout.withdrawn[rows]).any()

    def _is_packed(self, layout: Layout, group: range) -> bool:
        """Whether a group has the packs that it should have, and nothing else."""
        rows, runs = slice(group.start, group.stop), self._runs(layout, group)
        of_runs = layout.copies[rows].sum() == sum(len(run.rows) for run in runs)
        others = (layout.loose[rows] | layout.withdrawn[rows]).any()
        return bool(of_runs and not others and all(map(layout.has, runs)))

    def sample(self, token: str) -> PackedRow:
        """What is current of a sample.

        Raises:
            DamagedSample: it is not intact.
        """
        read = Sample(self.store, token, self.store.arrays)
        return PackedRow(read.found.version(), read.found.record, [read.chunk(name) for name in self.store.arrays])

    def write(self, pack: Pack, samples: list[PackedRow]) -> None:
        """Make a pack of these samples, one for each of its rows; the files that these have elsewhere stay."""
        attributes = {**self._attributes, "rows": list(pack), "tokens": [self.store.tokens[row] for row in pack.rows]}
        shared, arrays = {"zarr.json": _group(attributes), **self._shared}, list(self.store.arrays.values())
        self.place.write(pack.name, pack_content(pack, self.store.seal, arrays, shared, samples))

    def _remove_replaced(self, layout: Layout, group: range, packs: set[Pack]) -> None:
        """Remove what the new packs of a group replace; the order keeps anything old from coming back."""
        for pack in packs:
            self.place.delete(pack.name)
        for row in group:
            if layout.withdrawn[row]:
                self.place.delete(withdrawn_name(row))
        for row in group:
            if layout.loose[row]:
                self.place.delete(commit_name(row))
                for array in self.store.arrays.values():
                    self.place.delete(array.chunk(row))

    def _files_of_all_rows(self) -> dict[str, bytes]:
        """Those that a pack has, too: what arrays are, and what signals keep once."""
        constants = [name for signal in self.store.signals.values() for name in signal.constants()]
        names = [f"{array}/zarr.json" for array in (*self.store.arrays, COMMITS)]
        names += [f"{name}/{file}" for name in constants for file in self.place.names(name)]
        return {name: self.place.read(name) for name in names}

    @contextmanager
    def _claimed(self, group: range) -> Iterator[bool]:
        """Whether all of a group could be claimed; given back at the end."""
        tokens = [self.store.tokens[row] for row in group]
        mine: list[str] = []
        try:
            for token in tokens:
                if not self.writer.claim(token):
                    break
                mine.append(token)
            yield mine == tokens
        finally:
            for token in mine:
                self.writer.release(token)


def _group(attributes: dict[str, object]) -> bytes:
    """The `zarr.json` of a group."""
    return json.dumps({"zarr_format": 3, "node_type": "group", "attributes": attributes}, indent=2).encode()

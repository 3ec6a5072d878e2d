"""A store in an object store: S3 and what speaks like it, Google Cloud Storage, Azure.

A file is an object, which is put whole or not at all. Nothing is locked or renamed here; what takes the place of that
are conditional puts, which an object store answers for one of several who ask (`client`), and leases (`lease`).
"""

from __future__ import annotations

import functools
import hashlib
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import obstore
from obstore.exceptions import BaseError
from typing_extensions import override

from distill.store.client import Client, listed, status
from distill.store.lease import LEASES, check_lease, claim_name, lease_of
from distill.store.place import Place

_WHOLE = "zarr.json"  # what makes a store of what lies there
_MAKING = "making"  # what is claimed by who makes a store


class Objects(Place):
    """Objects whose names begin alike.

    A request that fails is made again for a minute: answers of 500 and 503, timeouts, bodies that end early.

    Args:
        address: such as s3://bucket/stores/name.zarr.

    Raises:
        Unreachable: it is the address of no object store.
    """

    remote = True  # threads of obstore do not outlive a fork: whoever asks in one would wait for ever

    def __init__(self, address: str) -> None:
        self._client = Client(address)

    def __reduce__(self) -> tuple[type[Objects], tuple[str]]:
        return Objects, (self.address,)

    @property
    def address(self) -> str:
        """Its URL."""
        return self._client.address

    def empty(self) -> bool:
        """Whether there is nothing, or what a process was making when it ended."""
        if self.exists(_WHOLE):
            return False
        there = self._client.ask(
            "", lambda store: any(not name.startswith(f"{LEASES}/") for name, _ in listed(store, ""))
        )
        return not there or self.exists(claim_name(_MAKING, 0))

    def create(self, files: Mapping[str, bytes]) -> None:
        """Put them one by one, "zarr.json" last, while others who would do so wait."""
        while not self.claim(_MAKING, 0):
            if self.exists(_WHOLE):
                return
            time.sleep(0.2)
        try:
            if self.empty():
                for name, content in files.items():
                    if name != _WHOLE:
                        self.write(name, content)
                self._client.put_if_absent(_WHOLE, files[_WHOLE])
        finally:
            self.release(_MAKING, 0)

    @override
    def read(self, name: str) -> bytes:
        return self._client.ask(name, lambda store: obstore.get(store, name).bytes().to_bytes())

    @override
    def read_several(self, names: Sequence[str]) -> list[bytes]:
        one_by_one = super().read_several
        if len(names) == 1:
            return one_by_one(names)
        # most of the time it takes is waiting
        return [content for (content,) in _readers().map(lambda name: one_by_one([name]), names)]

    @override
    def read_part(self, name: str, start: int, length: int) -> bytes:
        def part(store: Any) -> bytes:
            try:
                return obstore.get_range(store, name, start=start, length=length).to_bytes()
            except BaseError as error:
                if status(error) == 416 or "StartTooLarge" in str(error):  # it ends before
                    return b""
                raise

        return self._client.ask(name, part) if length else b""

    @override
    def write(self, name: str, content: bytes) -> None:
        check_lease(self.address)
        # what was written again is told from what was there, whatever it says
        written = {"written": uuid.uuid4().hex}
        self._client.ask(name, lambda store: obstore.put(store, name, bytes(content), attributes=written))

    @override
    def delete(self, name: str) -> None:
        check_lease(self.address)
        self._client.delete(name)

    @override
    def exists(self, name: str) -> bool:
        return self._client.head(name) is not None

    @override
    def sizes(self, folder: str) -> dict[str, int]:
        return self._client.sizes(folder)

    @override
    def free(self) -> None:
        return None

    @override
    def version(self, name: str) -> int | None:
        found = self._client.head(name)
        if found is None:
            return None
        told = found.attributes.get("written"), found.meta["e_tag"], str(found.meta["last_modified"])
        return int.from_bytes(hashlib.sha256(repr(told).encode()).digest()[:8], "little")

    @override
    def names(self, folder: str) -> list[str]:
        return list(self.sizes(folder))

    @override
    def folders(self) -> list[str]:
        found = self._client.ask("", lambda store: obstore.list_with_delimiter(store)["common_prefixes"])
        return [name for name in found if name != LEASES]

    def leftovers(self, folder: str) -> Iterator[tuple[str, str]]:
        """None: an object that was not put whole is not there."""
        return iter(())

    def claim(self, claims: str, number: int) -> bool:
        """See `Place`; when the process ends without a word, others may claim it `LEASE` seconds later.

        On the same machine they may at once.
        """
        return lease_of(self._client).claim(claim_name(claims, number))

    @override
    def release(self, claims: str, number: int) -> None:
        lease_of(self._client).release(claim_name(claims, number))


@functools.cache
def _readers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(8)

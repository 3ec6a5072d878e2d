"""A store in an object store: S3 and what speaks like it, Google Cloud Storage, Azure.

A file is an object, which is put whole or not at all. Nothing is locked or renamed here; what takes the place of that
are conditional puts, which an object store answers for one of several who ask, and leases (`_Lease`).

Credentials and endpoints come from where these stores' own tools have them: AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL and the
like in the environment, or what the machine is given.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import itertools
import json
import os
import random
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    NotFoundError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import from_url
from typing_extensions import override

from distill.errors import Unreachable
from distill.store.place import Place

T = TypeVar("T")

# seconds; a request that is not answered is made again so long, once anything has been answered, and before
PATIENCE, FIRST_PATIENCE = 60.0, 10.0
# seconds: without a sign of life for so long, a process has lost what it claimed; from one to the next; and how long a
# request may take that was begun within PATIENCE, so that none arrives when the claim is another's
LEASE, SIGN_OF_LIFE, SLOWEST = 180.0, 20.0, 105.0
_RETRIES: Any = {
    "max_retries": 5,
    "retry_timeout": timedelta(seconds=15),
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=3), "base": 2},
}
_STATUS = re.compile(r"status code: (\d{3})")
_NO_BUCKET = re.compile(r"NoSuchBucket|ContainerNotFound|specified bucket does not exist")
_NO_CREDENTIALS = re.compile(r"169\.254\.169\.254|metadata\.google\.internal")  # who is asked when nothing was given
_WHOLE = "zarr.json"  # what makes a store of what lies there
_LEASES, _MAKING = "leases", "making"  # where claims lie, and what is claimed by who makes a store


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
        self._address, self._process, self._answered = address, os.getpid(), False
        try:
            self.store = _connection(address)
        except (BaseError, ValueError) as error:
            raise Unreachable(f"{address}: {_cause(error)}: look at it, and at AWS_... in the environment") from error

    def __reduce__(self) -> tuple[type[Objects], tuple[str]]:
        return Objects, (self._address,)

    @property
    def address(self) -> str:
        """Its URL."""
        return self._address

    def empty(self) -> bool:
        """Whether there is nothing, or what a process was making when it ended."""
        if self.exists(_WHOLE):
            return False
        there = self._ask("", lambda: any(not name.startswith(f"{_LEASES}/") for name, _ in self._listed("")))
        return not there or self.exists(_claim_name(_MAKING, 0))

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
                with contextlib.suppress(AlreadyExistsError):
                    self._ask(_WHOLE, lambda: obstore.put(self.store, _WHOLE, files[_WHOLE], mode="create"))
        finally:
            self.release(_MAKING, 0)

    @override
    def read(self, name: str) -> bytes:
        return self._ask(name, lambda: obstore.get(self.store, name).bytes().to_bytes())

    @override
    def read_several(self, names: Sequence[str]) -> list[bytes]:
        one_by_one = super().read_several
        if len(names) == 1:
            return one_by_one(names)
        # most of the time it takes is waiting
        return [content for (content,) in _readers().map(lambda name: one_by_one([name]), names)]

    @override
    def read_part(self, name: str, start: int, length: int) -> bytes:
        def part() -> bytes:
            try:
                return obstore.get_range(self.store, name, start=start, length=length).to_bytes()
            except BaseError as error:
                if _status(error) == 416 or "StartTooLarge" in str(error):  # it ends before
                    return b""
                raise

        return self._ask(name, part) if length else b""

    @override
    def write(self, name: str, content: bytes) -> None:
        self._check_lease()
        # what was written again is told from what was there, whatever it says
        written = {"written": uuid.uuid4().hex}
        self._ask(name, lambda: obstore.put(self.store, name, bytes(content), attributes=written))

    @override
    def delete(self, name: str) -> None:
        self._check_lease()
        with contextlib.suppress(FileNotFoundError):
            self._ask(name, lambda: obstore.delete(self.store, name))

    @override
    def exists(self, name: str) -> bool:
        return self._head(name) is not None

    @override
    def sizes(self, folder: str) -> dict[str, int]:
        return self._ask(folder, lambda: {name: int(meta["size"]) for name, meta in self._listed(folder)})

    @override
    def free(self) -> None:
        return None

    @override
    def version(self, name: str) -> int | None:
        found = self._head(name)
        if found is None:
            return None
        told = found.attributes.get("written"), found.meta["e_tag"], str(found.meta["last_modified"])
        return int.from_bytes(hashlib.sha256(repr(told).encode()).digest()[:8], "little")

    @override
    def names(self, folder: str) -> list[str]:
        return list(self.sizes(folder))

    @override
    def folders(self) -> list[str]:
        found = self._ask("", lambda: obstore.list_with_delimiter(self.store)["common_prefixes"])
        return [name for name in found if name != _LEASES]

    def leftovers(self, folder: str) -> Iterator[tuple[str, str]]:
        """None: an object that was not put whole is not there."""
        return iter(())

    def claim(self, claims: str, number: int) -> bool:
        """See `Place`; when the process ends without a word, others may claim it `LEASE` seconds later.

        On the same machine they may at once.
        """
        lease, name = _lease(self._address), _claim_name(claims, number)
        if name in lease.held:
            lease.check()
        elif self._put_if_absent(name, lease.owner) or self._take_over(name, lease):
            lease.held.add(name)
        return name in lease.held

    @override
    def release(self, claims: str, number: int) -> None:
        lease, name = _lease(self._address), _claim_name(claims, number)
        if name in lease.held:
            lease.held.discard(name)
            self.delete(name)

    def _take_over(self, name: str, lease: _Lease) -> bool:
        """Put a claim in the place of one whose owner is gone, or find that it is this process's."""
        try:
            found = self._ask(name, lambda: obstore.get(self.store, name))
        except FileNotFoundError:  # it was given back
            return self._put_if_absent(name, lease.owner)
        owner = found.bytes().to_bytes()
        if owner == lease.owner:  # which has not heard the answer
            return True
        if lease.lives(owner):
            return False
        version: Any = {key: found.meta[key] for key in ("e_tag", "version") if found.meta[key] is not None}
        try:
            self._ask(name, lambda: obstore.put(self.store, name, lease.owner, mode=version))
        except (PreconditionError, FileNotFoundError):
            return False
        return True

    def _put_if_absent(self, name: str, content: bytes) -> bool:
        try:
            self._ask(name, lambda: obstore.put(self.store, name, content, mode="create"))
        except AlreadyExistsError:
            return False
        return True

    def _check_lease(self) -> None:
        """Refuse to change anything when what this process has claimed may be another's by now."""
        if self._address in _OPENED:
            _OPENED[self._address].check()

    def _head(self, name: str) -> obstore.GetResult | None:
        try:
            return self._ask(name, lambda: obstore.get(self.store, name, options={"head": True}))
        except FileNotFoundError:
            return None

    def _listed(self, folder: str) -> Iterable[tuple[str, obstore.ObjectMeta]]:
        """What lies in a folder: names relative to it, and what is known of them."""
        for batch in obstore.list(self.store, folder or None, chunk_size=1000):
            for meta in batch:
                yield meta["path"].removeprefix(f"{folder}/"), meta

    def _ask(self, name: str, request: Callable[[], T]) -> T:
        """The answer to a request, which is made again as long as there is hope and patience.

        Raises:
            FileNotFoundError: there is no such object.
            AlreadyExistsError, PreconditionError: as it was asked for.
            Unreachable: whatever else, in one line.
        """
        if os.getpid() != self._process:
            raise RuntimeError(f"{self._address} cannot be read in a fork of the process that opened it: spawn it")
        began = time.monotonic()
        for attempt in itertools.count(1):
            try:
                answer = request()
            except (AlreadyExistsError, PreconditionError):
                self._answered = True
                raise
            except (BaseError, NotFoundError) as error:
                spent, patience = time.monotonic() - began, PATIENCE if self._answered else FIRST_PATIENCE
                self._raise_if_final(name, error, spent > patience, f"asked for {spent:.0f} s")
                time.sleep(min(0.1 * 2**attempt, 3.0) * random.uniform(0.5, 1.0))
            else:
                self._answered = True
                return answer
        raise AssertionError

    def _raise_if_final(self, name: str, error: Exception, enough: bool, tried: str) -> None:
        """Say what cannot be mended by asking again, or was asked for often enough."""
        told, status = str(error), _status(error)
        where = f"{self._address}/{name}" if name else self._address
        if _NO_BUCKET.search(told):
            raise Unreachable(f"{self._address}: there is no such bucket: make it, or give another address") from error
        if isinstance(error, NotFoundError):
            self._answered = True
            raise FileNotFoundError(where) from error
        if _NO_CREDENTIALS.search(told):
            raise Unreachable(
                f"{self._address}: no credentials were found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or what "
                "your object store's tools need"
            ) from error
        if isinstance(error, PermissionDeniedError | UnauthenticatedError):
            raise Unreachable(
                f"{where}: permission denied ({_cause(error)}): look at the credentials (AWS_ACCESS_KEY_ID) and "
                "at what they may do"
            ) from error
        if "builder error" in told:
            raise Unreachable(f"{self._address}: its endpoint is not https: set AWS_ALLOW_HTTP=true if so") from error
        if enough or (status is not None and 400 <= status < 500 and status not in (408, 429)):
            advice = "look at the endpoint (AWS_ENDPOINT_URL, AWS_ALLOW_HTTP) and the network, and run again to go on"
            raise Unreachable(f"{where}: {_cause(error)} ({tried}): {advice}") from error


class _Lease:
    """What a process claims in a store, and the object by which others see that it lives.

    It is put again every `SIGN_OF_LIFE` seconds. Who finds a claim whose owner gave no sign for `LEASE` seconds, by the
    clock of the object store, takes it over; who could not give one stops writing so much earlier that no request of
    its own is on its way then. What is written in spite of all does not fit the checksums of the sample.

    Args:
        place: of the claims.

    Attributes:
        owner: what a claim of this process says.
        held: names of its claims.
    """

    def __init__(self, place: Objects) -> None:
        self._place, self.held = place, set[str]()
        self._machine, self._ended = _machine(), threading.Event()
        process = {"pid": os.getpid(), "started": _started(os.getpid())}
        self.owner = json.dumps({"lease": uuid.uuid4().hex, "machine": self._machine, **process}).encode()
        self._name, self._signs = _sign_of(self.owner), itertools.count()
        self._check_conditions()
        self._sign()
        self._ahead = self._last_sign(self._name) - _clock()  # of the object store's clock, seconds
        self._remove_dead()
        atexit.register(self._end)
        threading.Thread(target=self._go_on_living, daemon=True).start()

    def check(self) -> None:
        """Raise Unreachable if what is held may be another's by now."""
        silent = _clock() - self._signed
        if self.held and silent > LEASE - SLOWEST:
            raise Unreachable(
                f"{self._place.address}: it could not be reached for {silent:.0f} s, and others may have claimed what "
                "this process was writing: run again to go on"
            )

    def lives(self, owner: bytes) -> bool:
        """Whether the owner of a claim is still there."""
        try:
            told = json.loads(owner)
            machine, pid, started = (told[key] for key in ("machine", "pid", "started"))
            name = _sign_of(owner)
        except (ValueError, KeyError, TypeError):
            return False
        if machine == self._machine and machine is not None:
            return _started(pid) == started
        try:
            return self._last_sign(name) > _clock() + self._ahead - LEASE
        except FileNotFoundError:
            return False

    def _check_conditions(self) -> None:
        """Raise Unreachable unless the object store refuses to put what is there already, as is asked of it."""
        if self._place._put_if_absent(self._name, b"") and self._place._put_if_absent(self._name, b""):
            raise Unreachable(
                f"{self._place.address}: this object store does not heed conditions (If-None-Match), so that writers "
                "cannot share it: write to a local store.path and copy it there"
            )

    def _last_sign(self, name: str) -> float:
        found = self._place._head(name)
        if found is None:
            raise FileNotFoundError(name)
        return float(found.meta["last_modified"].timestamp())

    def _sign(self) -> None:
        now = _clock()
        content = f"{next(self._signs)}".encode()
        self._place._ask(self._name, lambda: obstore.put(self._place.store, self._name, content))
        self._signed = now

    def _go_on_living(self) -> None:
        while not self._ended.wait(SIGN_OF_LIFE):
            if _clock() - self._signed > LEASE - SLOWEST:
                return  # what was held may be another's: never again
            with contextlib.suppress(OSError):
                self._sign()

    def _remove_dead(self) -> None:
        """Remove the signs of those who gave none for long."""
        for name in (f"{_LEASES}/{each}" for each in self._place.names(_LEASES) if each.startswith("lives-")):
            with contextlib.suppress(FileNotFoundError):
                if self._last_sign(name) < _clock() + self._ahead - LEASE:
                    self._place.delete(name)

    def _end(self) -> None:
        """Give back everything, if that is quickly done."""
        self._ended.set()
        with contextlib.suppress(BaseError, NotFoundError, OSError):
            self.check()
            obstore.delete(self._place.store, [*self.held, self._name])


_OPENED: dict[str, _Lease] = {}  # of this process, by the address of the store
_OPENING = threading.Lock()


def _lease(address: str) -> _Lease:
    """The one of this process."""
    with _OPENING:
        if address not in _OPENED:
            _OPENED[address] = _Lease(Objects(address))
        return _OPENED[address]


@functools.cache
def _readers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(8)


@functools.cache
def _connection(address: str) -> Any:
    """One of a process, whose connections all who use the store share."""
    return from_url(address, retry_config=_RETRIES)


def _claim_name(claims: str, number: int) -> str:
    return f"{_LEASES}/{claims.replace('/', '.')}.{number}"


def _sign_of(owner: bytes) -> str:
    """The object by which an owner says that it lives."""
    return f"{_LEASES}/lives-{json.loads(owner)['lease']}"


def _status(error: Exception) -> int | None:
    """The HTTP status that an error is about."""
    found = _STATUS.search(str(error))
    return None if found is None else int(found[1])


def _cause(error: Exception) -> str:
    """What went wrong, without the source code, the XML and the statistics of it."""
    told = re.split(r": <|\n", str(error), maxsplit=1)[0].rpartition(" - ")[2]
    for said, meant in (("Server returned non-2xx status code:", "the server answers"), ("Generic URL error: ", "")):
        told = told.replace(said, meant)
    return told.strip(": ")[:300]


def _clock() -> float:
    """Seconds that pass even while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _machine() -> str | None:
    """What tells this machine's process numbers from all others; None if nothing does."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def _started(pid: int) -> str | None:
    """When a process of this machine began; None if there is none, or it has ended."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else fields[18]  # nobody has asked yet how it ended

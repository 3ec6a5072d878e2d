"""Leases: what takes the place of locks in an object store, which knows none.

A claim is an object that is put if there is none. It says whose it is, and its owner says again and again, by another
object, that it lives.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import json
import os
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import obstore
from obstore.exceptions import BaseError, NotFoundError, PreconditionError

from distill.errors import Unreachable
from distill.store.client import Client

# seconds: without a sign of life for so long, a process has lost what it claimed; from one to the next; and how long a
# request may take that was begun within `client.PATIENCE`, so that none arrives when the claim is another's
LEASE, SIGN_OF_LIFE, SLOWEST = 180.0, 20.0, 105.0
LEASES = "leases"  # the folder of claims and signs of life


class Lease:
    """What a process claims in a store, and the object by which others see that it lives.

    It is put again every `SIGN_OF_LIFE` seconds. Who finds a claim whose owner gave no sign for `LEASE` seconds, by the
    clock of the object store, takes it over; who could not give one stops writing so much earlier that no request of
    its own is on its way then. What is written in spite of all does not fit the checksums of the sample.

    Args:
        client: of the store.

    Attributes:
        owner: what a claim of this process says.
        held: names of its claims.
    """

    def __init__(self, client: Client) -> None:
        self._client, self.held = client, set[str]()
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

    def claim(self, name: str) -> bool:
        """Whether a claim is this process's, after claiming it.

        Raises:
            Unreachable: what is held may be another's by now.
        """
        if name in self.held:
            self.check()
        elif self._client.put_if_absent(name, self.owner) or self._take_over(name):
            self.held.add(name)
        return name in self.held

    def release(self, name: str) -> None:
        """Give back a claim, if it is held."""
        if name in self.held:
            self.held.discard(name)
            self.check()
            self._client.delete(name)

    def check(self) -> None:
        """Raise Unreachable if what is held may be another's by now."""
        silent = _clock() - self._signed
        if self.held and silent > LEASE - SLOWEST:
            raise Unreachable(
                f"{self._client.address}: it could not be reached for {silent:.0f} s, and others may have claimed what "
                "this process was writing: run again to go on"
            )

    def _take_over(self, name: str) -> bool:
        """Put a claim in the place of one whose owner is gone, or find that it is this process's."""
        try:
            found = self._client.ask(name, lambda store: obstore.get(store, name))
        except FileNotFoundError:  # it was given back
            return self._client.put_if_absent(name, self.owner)
        owner = found.bytes().to_bytes()
        if owner == self.owner:  # which has not heard the answer
            return True
        if self._lives(owner):
            return False
        version: Any = {key: found.meta[key] for key in ("e_tag", "version") if found.meta[key] is not None}
        try:
            self._client.ask(name, lambda store: obstore.put(store, name, self.owner, mode=version))
        except (PreconditionError, FileNotFoundError):
            return False
        return True

    def _lives(self, owner: bytes) -> bool:
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
        if self._client.put_if_absent(self._name, b"") and self._client.put_if_absent(self._name, b""):
            raise Unreachable(
                f"{self._client.address}: this object store does not heed conditions (If-None-Match), so that writers "
                "cannot share it: write to a local store.path and copy it there"
            )

    def _last_sign(self, name: str) -> float:
        found = self._client.head(name)
        if found is None:
            raise FileNotFoundError(name)
        return float(found.meta["last_modified"].timestamp())

    def _sign(self) -> None:
        now = _clock()
        content = f"{next(self._signs)}".encode()
        self._client.ask(self._name, lambda store: obstore.put(store, self._name, content))
        self._signed = now

    def _go_on_living(self) -> None:
        while not self._ended.wait(SIGN_OF_LIFE):
            if _clock() - self._signed > LEASE - SLOWEST:
                return  # what was held may be another's: never again
            with contextlib.suppress(OSError):
                self._sign()

    def _remove_dead(self) -> None:
        """Remove the signs of those who gave none for long."""
        for name in (f"{LEASES}/{each}" for each in self._client.sizes(LEASES) if each.startswith("lives-")):
            with contextlib.suppress(FileNotFoundError):
                if self._last_sign(name) < _clock() + self._ahead - LEASE:
                    self._client.delete(name)

    def _end(self) -> None:
        """Give back everything, if that is quickly done."""
        self._ended.set()
        with contextlib.suppress(BaseError, NotFoundError, OSError):
            self.check()
            obstore.delete(self._client.store, [*self.held, self._name])


_OPENED: dict[str, Lease] = {}  # of this process, by the address of the store
_OPENING = threading.Lock()


def lease_of(client: Client) -> Lease:
    """The one that this process has in a store."""
    with _OPENING:
        if client.address not in _OPENED:
            _OPENED[client.address] = Lease(client)
        return _OPENED[client.address]


def check_lease(address: str) -> None:
    """Refuse to change anything in a store when what this process has claimed there may be another's by now."""
    if address in _OPENED:
        _OPENED[address].check()


def claim_name(claims: str, number: int) -> str:
    """The object that is the claim of a number."""
    return f"{LEASES}/{claims.replace('/', '.')}.{number}"


def _sign_of(owner: bytes) -> str:
    """The object by which an owner says that it lives."""
    return f"{LEASES}/lives-{json.loads(owner)['lease']}"


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

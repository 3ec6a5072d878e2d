"""Requests to an object store, made again while there is hope; what is no use is said in one line.

Credentials and endpoints come from where these stores' own tools have them: AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL and the
like in the environment, or what the machine is given.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import random
import re
import time
from collections.abc import Callable, Iterable
from datetime import timedelta
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

from distill.errors import Unreachable

T = TypeVar("T")

# seconds; a request that is not answered is made again so long, once anything has been answered, and before
PATIENCE, FIRST_PATIENCE = 60.0, 10.0
_RETRIES: Any = {
    "max_retries": 5,
    "retry_timeout": timedelta(seconds=15),
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=3), "base": 2},
}
_STATUS = re.compile(r"status code: (\d{3})")
_NO_BUCKET = re.compile(r"NoSuchBucket|ContainerNotFound|specified bucket does not exist")
_NO_CREDENTIALS = re.compile(r"169\.254\.169\.254|metadata\.google\.internal")  # who is asked when nothing was given


class Client:
    """What is asked of the objects whose names begin alike.

    Args:
        address: such as s3://bucket/stores/name.zarr.

    Attributes:
        address: the same.
        store: obstore's.

    Raises:
        Unreachable: it is the address of no object store.
    """

    def __init__(self, address: str) -> None:
        self.address, self._process, self._answered = address, os.getpid(), False
        try:
            self.store = _connection(address)
        except (BaseError, ValueError) as error:
            raise Unreachable(f"{address}: {_cause(error)}: look at it, and at AWS_... in the environment") from error

    def put_if_absent(self, name: str, content: bytes) -> bool:
        """Whether an object was put, as there was none."""
        try:
            self.ask(name, lambda store: obstore.put(store, name, content, mode="create"))
        except AlreadyExistsError:
            return False
        return True

    def delete(self, name: str) -> None:
        """Remove an object, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self.ask(name, lambda store: obstore.delete(store, name))

    def head(self, name: str) -> obstore.GetResult | None:
        """What is known of an object; None: there is none."""
        try:
            return self.ask(name, lambda store: obstore.get(store, name, options={"head": True}))
        except FileNotFoundError:
            return None

    def sizes(self, folder: str) -> dict[str, int]:
        """Bytes of each object in a folder, by its name relative to it."""
        return self.ask(folder, lambda store: {name: int(meta["size"]) for name, meta in listed(store, folder)})

    def ask(self, name: str, request: Callable[[Any], T]) -> T:
        """The answer to a request, which is made again as long as there is hope and patience.

        Args:
            name: of the object that it is about, "" for all of them.
            request: is given obstore's object store.

        Raises:
            FileNotFoundError: there is no such object.
            AlreadyExistsError, PreconditionError: as it was asked for.
            Unreachable: whatever else, in one line.
        """
        if os.getpid() != self._process:
            raise RuntimeError(f"{self.address} cannot be read in a fork of the process that opened it: spawn it")
        began = time.monotonic()
        for attempt in itertools.count(1):
            try:
                answer = request(self.store)
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
        told, code = str(error), status(error)
        where = f"{self.address}/{name}" if name else self.address
        if _NO_BUCKET.search(told):
            raise Unreachable(f"{self.address}: there is no such bucket: make it, or give another address") from error
        if isinstance(error, NotFoundError):
            self._answered = True
            raise FileNotFoundError(where) from error
        if _NO_CREDENTIALS.search(told):
            raise Unreachable(
                f"{self.address}: no credentials were found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or what "
                "your object store's tools need"
            ) from error
        if isinstance(error, PermissionDeniedError | UnauthenticatedError):
            raise Unreachable(
                f"{where}: permission denied ({_cause(error)}): look at the credentials (AWS_ACCESS_KEY_ID) and "
                "at what they may do"
            ) from error
        if "builder error" in told:
            raise Unreachable(f"{self.address}: its endpoint is not https: set AWS_ALLOW_HTTP=true if so") from error
        if enough or (code is not None and 400 <= code < 500 and code not in (408, 429)):
            advice = "look at the endpoint (AWS_ENDPOINT_URL, AWS_ALLOW_HTTP) and the network, and run again to go on"
            raise Unreachable(f"{where}: {_cause(error)} ({tried}): {advice}") from error


@functools.cache
def _connection(address: str) -> Any:
    """One of a process, whose connections all who use the store share."""
    return from_url(address, retry_config=_RETRIES)


def listed(store: Any, folder: str) -> Iterable[tuple[str, obstore.ObjectMeta]]:
    """What lies in a folder: names relative to it, and what is known of them."""
    for batch in obstore.list(store, folder or None, chunk_size=1000):
        for meta in batch:
            yield meta["path"].removeprefix(f"{folder}/"), meta


def status(error: Exception) -> int | None:
    """The HTTP status that an error is about."""
    found = _STATUS.search(str(error))
    return None if found is None else int(found[1])


def _cause(error: Exception) -> str:
    """What went wrong, without the source code, the XML and the statistics of it."""
    told = re.split(r": <|\n", str(error), maxsplit=1)[0].rpartition(" - ")[2]
    for said, meant in (("Server returned non-2xx status code:", "the server answers"), ("Generic URL error: ", "")):
        told = told.replace(said, meant)
    return told.strip(": ")[:300]

"""Which place the address of a store means."""

from __future__ import annotations

from pathlib import Path

from distill.errors import InputError
from distill.store.place import Local, Place


def place_of(address: str | Path) -> Place:
    """The place that an address of a store means: a path, or the URL of an object store.

    Raises:
        InputError: it is a URL, and what reads it is not installed.
        Unreachable: it is no URL of an object store.
    """
    if "://" not in str(address):
        return Local(Path(address))
    try:
        from distill.store.objects import Objects
    except ModuleNotFoundError as error:
        if error.name != "obstore":
            raise
        raise InputError(
            f"{address} is in an object store, which needs another package: pip install 'occ-distill[objects]'"
        ) from error
    return Objects(str(address))


def stores_in(folder: str) -> list[str]:
    """The addresses of the zarr groups in a folder, in order; none if there is no such folder."""
    place = place_of(folder)
    names = sorted(name for name in place.folders() if place.exists(f"{name}/zarr.json"))
    return [f"{place.address}/{name}" for name in names]

"""Whether two frames hold the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch


def assert_same(found: Any, expected: Any, where: str = "") -> None:
    """Records, mappings, lists and tuples of them, tensors, arrays and whatever else: of one kind, and equal."""
    assert type(found) is type(expected), where
    if is_dataclass(expected):
        for each in fields(expected):
            assert_same(getattr(found, each.name), getattr(expected, each.name), f"{where}.{each.name}")
    elif isinstance(expected, Mapping):
        assert found.keys() == expected.keys(), where
        for name in expected:
            assert_same(found[name], expected[name], f"{where}[{name}]")
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), where
        for index, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_same(one, other, f"{where}[{index}]")
    elif isinstance(expected, torch.Tensor | np.ndarray):
        assert found.dtype == expected.dtype, where
        np.testing.assert_array_equal(np.asarray(found), np.asarray(expected), err_msg=where)
    else:
        assert found == expected, where


def held(record: Any) -> dict[str, Any]:
    """What a record holds, by name."""
    return {name: value for name, value in vars(record).items() if value is not None}

"""How deep is deep."""

from __future__ import annotations

from typing import Any

import pytest

from llamaduo.nesting import is_deeper


@pytest.mark.parametrize(
    ("value", "levels"),
    [(1, 0), ([], 1), ({}, 1), ([1], 1), ([[]], 2), ({"a": [1, {"b": 2}]}, 3), ([1, [2], [[3]]], 3)],
)
def test_levels_are_counted(value: Any, levels: int) -> None:
    assert not is_deeper(value, levels)
    assert levels == 0 or is_deeper(value, levels - 1)

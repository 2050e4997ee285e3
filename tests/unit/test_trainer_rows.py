"""Reading training rows, and the order in which they are seen."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.trainer.engine import TrainingImpossible
from services.trainer.rows import read_rows, row_order

GOOD = '{"id":"%s","messages":[{"role":"user","content":"q"},{"role":"assistant","content":"a"}]}'


def test_rows_are_sorted_by_id_whatever_the_order_in_the_file(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join([GOOD % "b", "", GOOD % "a"]))
    assert [row.id for row in read_rows(file)] == ["a", "b"]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"id":"x"}', ":2: messages"),
        ("{", ":2: "),
        (
            '{"id":"x","messages":[{"role":"assistant","content":"a"},{"role":"user","content":"q"}]}',
            ":2: the last message must be the assistant's",
        ),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path: Path, line: str, expected: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text((GOOD % "a") + "\n" + line + "\n")
    with pytest.raises(TrainingImpossible, match=expected) as caught:
        read_rows(file)
    assert str(file) in str(caught.value)


def test_no_rows_at_all_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("\n")
    with pytest.raises(TrainingImpossible, match="holds no rows"):
        read_rows(file)


@given(
    lengths=st.lists(st.integers(1, 400), min_size=1, max_size=150),
    batch_size=st.integers(1, 16),
    batches=st.integers(1, 40),
    seed=st.integers(0, 5),
)
def test_every_row_is_seen_equally_often_in_full_batches(
    lengths: list[int], batch_size: int, batches: int, seed: int
) -> None:
    order = row_order(lengths, batch_size, batches, seed)
    assert len(order) == batch_size * batches
    seen = Counter(order)
    counts = [seen[index] for index in range(len(lengths))]
    assert max(counts) - min(counts) <= 1
    assert order == row_order(lengths, batch_size, batches, seed)


def test_another_seed_is_another_order() -> None:
    assert row_order(range(1, 60), 4, 20, 0) != row_order(range(1, 60), 4, 20, 1)


def test_rows_of_like_length_share_a_batch() -> None:
    lengths = [10 + (97 * i) % 300 for i in range(128)]
    order = row_order(lengths, 8, 16, 0)

    def padded(indices: list[int]) -> int:
        return sum(8 * max(lengths[i] for i in indices[b : b + 8]) for b in range(0, len(indices), 8))

    assert sorted(order) == list(range(128))
    assert padded(order) < 0.8 * padded(list(range(128)))

"""Captured rows on disk: none lost, none doubled, none cut in two, and never more than allowed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from services.gateway.spool import Spool, SpoolFull, segments, shippable, used_bytes
from tests.support import environment


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def spool(folder: Path, **other: float) -> tuple[Spool, Clock]:
    clock = Clock()
    given = {"max_bytes": 10_000, "segment_bytes": 1000, "segment_s": 60.0, **other}
    return (
        Spool(
            folder,
            max_bytes=int(given["max_bytes"]),
            segment_bytes=int(given["segment_bytes"]),
            segment_s=given["segment_s"],
            clock=clock,
        ),
        clock,
    )


def shipped(folder: Path) -> list[bytes]:
    """The lines of all files that can be shipped now; those are removed."""
    lines = []
    for path in segments(folder):
        with shippable(path) as ours:
            if ours:
                lines += path.read_bytes().splitlines()
                path.unlink()
    return lines


def test_a_file_is_shipped_once_it_is_old_enough_and_not_while_it_is_written_to(tmp_path: Path) -> None:
    one, clock = spool(tmp_path)
    one.write("triage", b"1\n")
    clock.now = 59.0
    one.sync()
    assert shipped(tmp_path) == []
    one.write("triage", b"2\n")
    clock.now = 60.0
    one.sync()
    assert shipped(tmp_path) == [b"1", b"2"]
    one.write("triage", b"3\n")
    one.close()
    assert shipped(tmp_path) == [b"3"] and shipped(tmp_path) == []


def test_a_file_is_closed_when_it_is_large_enough(tmp_path: Path) -> None:
    one, _ = spool(tmp_path, segment_bytes=10)
    for number in range(5):
        one.write("triage", b"%05d\n" % number)
    one.sync()
    assert len(segments(tmp_path)) == 3 and shipped(tmp_path) == [b"00000", b"00001", b"00002", b"00003"]


def test_each_alias_has_files_of_its_own(tmp_path: Path) -> None:
    one, _ = spool(tmp_path)
    one.write("triage", b"t\n")
    one.write("refunds", b"r\n")
    assert sorted(path.parent.name for path in segments(tmp_path)) == ["refunds", "triage"]


def test_nothing_is_written_beyond_what_is_allowed_until_there_is_room_again(tmp_path: Path) -> None:
    one, _ = spool(tmp_path, max_bytes=10)
    one.write("triage", b"12345678\n")
    with pytest.raises(SpoolFull):
        one.write("triage", b"9\n")
    one.close()
    assert used_bytes(tmp_path) == 9 and shipped(tmp_path) == [b"12345678"]
    one.sync()
    one.write("triage", b"again\n")


def test_what_is_left_behind_counts_from_the_start(tmp_path: Path) -> None:
    one, _ = spool(tmp_path)
    one.write("triage", b"12345678\n")
    other, _ = spool(tmp_path, max_bytes=10)
    with pytest.raises(SpoolFull):
        other.write("triage", b"9\n")


def test_a_row_that_cannot_be_written_whole_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, _ = spool(tmp_path)
    one.write("triage", b"first\n")
    real = os.write
    calls = []

    def full_after_three_bytes(handle: int, data: bytes) -> int:
        calls.append(data)
        if len(calls) > 1:
            raise OSError(28, "no space left")
        return real(handle, data[:3])

    monkeypatch.setattr("services.gateway.spool.os.write", full_after_three_bytes)
    with pytest.raises(OSError, match="no space"):
        one.write("triage", b"second\n")
    monkeypatch.undo()
    one.write("triage", b"third\n")
    one.close()
    assert shipped(tmp_path) == [b"first", b"third"]


def test_a_row_that_a_kill_cut_off_is_left_out_and_the_others_are_shipped(tmp_path: Path) -> None:
    folder = tmp_path / "triage"
    folder.mkdir()
    (folder / "1.jsonl").write_bytes(b"whole\nhal")
    (folder / "2.jsonl").write_bytes(b"ha")
    (folder / "3.jsonl").write_bytes(b"")
    assert shipped(tmp_path) == [b"whole"] and segments(tmp_path) == []


def test_a_killed_process_leaves_its_rows_to_the_next_and_a_living_one_keeps_them(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from services.gateway.spool import Spool\n"
        "one = Spool(Path(sys.argv[1]), max_bytes=1000, segment_bytes=1000, segment_s=1000)\n"
        "one.write('triage', b'of another process\\n'); print('written', flush=True); sys.stdin.read()\n"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert other.stdout is not None and other.stdout.readline() == b"written\n"
    assert shipped(tmp_path) == []
    other.kill()
    other.wait(20)
    assert shipped(tmp_path) == [b"of another process"]


def test_two_never_ship_the_same_file_at_once(tmp_path: Path) -> None:
    one, _ = spool(tmp_path)
    one.write("triage", b"1\n")
    one.close()
    [path] = segments(tmp_path)
    with shippable(path) as first, shippable(path) as second:
        assert first and not second
    path.unlink()
    with shippable(path) as gone:
        assert not gone


def test_only_its_owner_can_read_what_waits(tmp_path: Path) -> None:
    one, _ = spool(tmp_path / "spool")
    one.write("triage", b"1\n")
    [path] = segments(tmp_path / "spool")
    assert path.stat().st_mode & 0o077 == 0 and path.parent.stat().st_mode & 0o077 == 0

"""Faults replay by seed, come at their rates, and spoil answers in the ways they say; the ledger outlives a kill."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from services.emulator.answers import Answer
from services.emulator.faults import FaultRates, cut_off, draw_fault, malform, spoil
from services.emulator.ledger import Ledger
from services.emulator.rate_limit import RateLimit
from services.emulator.settings import EmulatorSettings

RATES = FaultRates(rate_limited=0.1, server_error=0.2, cut=0.1, malformed=0.1)
PAIRS = Answer(
    json.dumps({"pairs": [{"prompt": f"p{n}", "answer": f"a{n}"} for n in range(5)]}, separators=(",", ":")),
    None,
    "stop",
)


def test_faults_are_a_function_of_seed_caller_and_arrival() -> None:
    def run(seed: int) -> list[str]:
        return [draw_fault(RATES, seed, f"key k{n}", n % 3 + 1) for n in range(200)]

    assert run(1) == run(1) != run(2)
    assert len({draw_fault(RATES, 1, "key k", arrival) for arrival in range(1, 60)}) == 5


def test_faults_come_at_their_rates() -> None:
    drawn = [draw_fault(RATES, 0, f"key {n}", 1) for n in range(4000)]
    shares = {fault: drawn.count(fault) / 4000 for fault in set(drawn)}
    assert shares == {
        "rate_limited": pytest.approx(0.1, abs=0.02),
        "server_error": pytest.approx(0.2, abs=0.02),
        "cut": pytest.approx(0.1, abs=0.02),
        "malformed": pytest.approx(0.1, abs=0.02),
        "none": pytest.approx(0.5, abs=0.03),
    }
    assert all(draw_fault(FaultRates(), 0, f"key {n}", 1) == "none" for n in range(100))


def test_a_cut_answer_is_a_beginning_that_says_so() -> None:
    for arrival in range(1, 30):
        cut = cut_off(PAIRS, 0, "key k", arrival)
        assert PAIRS.text.startswith(cut.text) and 0 < len(cut.text) < len(PAIRS.text)
        assert cut.finish_reason == "length"
        with pytest.raises(ValueError):
            json.loads(cut.text)


def test_malformed_answers_are_of_three_kinds_and_one_keeps_the_good_items() -> None:
    spoiled = {malform(PAIRS, 0, "key k", arrival).text for arrival in range(1, 60)}
    incomplete = [text for text in spoiled if text.startswith('{"pairs":[') and text.endswith("}")]
    assert any(text.startswith("Sure") for text in spoiled)
    assert any(text.startswith('{"pairs" ') for text in spoiled)
    assert incomplete
    for text in incomplete:
        items = json.loads(text)["pairs"]
        assert sorted(len(item) for item in items) == [1, 2, 2, 2, 2]


def test_refused_empty_and_odd_answers() -> None:
    marks = Answer('{"similarity_reason":"x 7","similarity":100,"precision":85}', None, "stop")
    refused, nothing = (spoil(fault, marks, 0, "key k", 1) for fault in ("refused", "empty"))
    assert (refused.text, refused.finish_reason) == ("", "content_filter")
    assert (nothing.text, nothing.finish_reason) == ("", "stop")
    odd = {spoil("odd", marks, 0, "key k", arrival).text for arrival in range(1, 30)}
    assert {json.loads(text)["precision"] for text in odd} == {"85/100", "85 %", 85.5}
    assert all(json.loads(text)["similarity_reason"] == "x 7" for text in odd)
    assert spoil("odd", PAIRS, 0, "key k", 1) == PAIRS
    assert spoil("none", marks, 0, "key k", 1) == marks


def test_the_rate_limit_slides_over_a_minute() -> None:
    now = [0.0]
    limit = RateLimit(2, lambda: now[0])
    assert [limit.admit(), limit.admit(), limit.admit()] == [None, None, 60]
    now[0] = 59.5
    assert limit.admit() == 1
    now[0] = 60.0
    assert [limit.admit(), limit.admit(), limit.admit()] == [None, None, 60]
    assert all(RateLimit(None, lambda: 0.0).admit() is None for _ in range(100))


def test_the_ledger_counts_by_key_and_in_total() -> None:
    ledger = Ledger()
    assert [ledger.arrive("a", "key a"), ledger.arrive("a", "key a"), ledger.arrive("b", "key b")] == [1, 2, 1]
    assert [ledger.arrive(None, "body x"), ledger.arrive(None, "body y"), ledger.arrive(None, "body x")] == [1, 1, 2]
    ledger.settle("a", 200, 10, 5, fault="cut")
    ledger.settle("a", 500)
    ledger.settle("b", 429)
    ledger.settle(None, 200, 1, 1, batched=True)
    assert ledger.view().model_dump() == {
        "keys": {"a": {"arrived": 2, "completed": 1}, "b": {"arrived": 1, "completed": 0}},
        "without_key": {"arrived": 3, "completed": 1},
        "totals": {
            "arrived": 6,
            "completed": 2,
            "refused_429": 1,
            "failed_500": 1,
            "prompt_tokens": 11,
            "completion_tokens": 6,
            "batched": 1,
            "billed_tokens": 16.0,
            "spoiled": {"cut": 1},
        },
    }


def test_the_ledger_file_survives_a_restart_and_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    first = Ledger(path)  # never closed, as after a kill
    first.arrive("a", "key a")
    first.settle("a", 200, 3, 4)
    with path.open("ab") as file:
        file.write(b'{"key": "a", "sta')
    with Ledger(path) as second:
        assert second.view() == first.view()
        assert second.arrive("a", "key a") == 2
    with Ledger(path) as third:
        assert third.view().keys["a"].arrived == 2
        third.reset()
        third.arrive("b", "key b")
    with Ledger(path) as fourth:
        assert list(fourth.view().keys) == ["b"]


def test_a_file_that_is_no_ledger_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("my notes\nwithout an end")
    with pytest.raises(ValueError, match=r"notes\.txt:1"):
        Ledger(path)
    assert path.read_text() == "my notes\nwithout an end"


def test_rates_above_one_together_are_refused() -> None:
    with pytest.raises(ValueError, match=r"1\.3"):
        EmulatorSettings(error_rate=0.7, cut_rate=0.6)


def test_settings_are_read_from_the_environment_and_the_key_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMADUO_EMULATOR_API_KEY", "sk-very-secret")
    monkeypatch.setenv("LLAMADUO_EMULATOR_RPM", "7")
    settings = EmulatorSettings()
    assert settings.rpm == 7
    assert "sk-very-secret" not in repr(settings)

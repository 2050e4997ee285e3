"""A server that fails is left alone, tried by one request after a pause, and trusted again once that is answered."""

from __future__ import annotations

from services.gateway.circuit import Circuit, CircuitRules, failed, leave, probing, succeeded, untold

RULES = CircuitRules(failures=3, pause_s=1.0, longest_s=3.0, probe_s=60.0)


def opened(at: float = 100.0) -> Circuit:
    circuit = Circuit()
    for _ in range(RULES.failures):
        circuit = failed(circuit, RULES, "send", at)
    return circuit


def test_it_opens_after_so_many_failures_in_a_row_and_no_sooner() -> None:
    circuit = failed(failed(Circuit(), RULES, "send", 1.0), RULES, "send", 2.0)
    assert leave(circuit, RULES, 3.0) == "send"
    assert leave(failed(circuit, RULES, "send", 3.0), RULES, 3.0) == "no"


def test_an_answer_between_begins_the_count_anew() -> None:
    circuit = failed(failed(Circuit(), RULES, "send", 1.0), RULES, "send", 2.0)
    circuit = failed(succeeded(circuit, "send"), RULES, "send", 3.0)
    assert leave(circuit, RULES, 3.0) == "send"


def test_after_the_pause_one_request_probes_and_the_others_wait_for_it() -> None:
    circuit = opened(at=100.0)
    assert leave(circuit, RULES, 100.9) == "no"
    assert leave(circuit, RULES, 101.0) == "probe"
    assert leave(probing(circuit, 101.0), RULES, 101.5) == "no"


def test_an_answered_probe_closes_it() -> None:
    circuit = succeeded(probing(opened(), 101.0), "probe")
    assert circuit == Circuit()


def test_a_failed_probe_doubles_the_pause_up_to_the_longest() -> None:
    circuit = failed(probing(opened(at=100.0), 101.0), RULES, "probe", 101.0)
    assert leave(circuit, RULES, 102.9) == "no" and leave(circuit, RULES, 103.0) == "probe"
    circuit = failed(probing(circuit, 103.0), RULES, "probe", 103.0)
    assert leave(circuit, RULES, 105.9) == "no" and leave(circuit, RULES, 106.0) == "probe"


def test_what_was_sent_before_it_opened_neither_closes_it_nor_prolongs_the_pause() -> None:
    circuit = opened(at=100.0)
    assert succeeded(circuit, "send") == circuit
    assert failed(circuit, RULES, "send", 100.9) == circuit


def test_a_probe_whose_caller_left_gives_its_place_to_the_next_request() -> None:
    circuit = probing(opened(at=100.0), 101.0)
    assert leave(untold(circuit, "probe"), RULES, 101.0) == "probe"
    assert untold(circuit, "send") == circuit


def test_a_probe_that_nothing_is_heard_of_does_not_hold_the_place_for_ever() -> None:
    assert leave(probing(opened(at=100.0), 101.0), RULES, 161.0) == "probe"

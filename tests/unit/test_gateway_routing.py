"""Who is asked, by the alias's mode, by who is well, and by the key in the request."""

from __future__ import annotations

import pytest

from services.gateway.gateway_file import Alias, Canary
from services.gateway.routing import Place, route, share_of

CANARY = Alias(mode="canary", canary=Canary(percent=30))


def order(
    alias: Alias, *, key: str = "", local: bool = True, service: bool = True, is_open: bool = False
) -> list[Place]:
    return list(route("triage", alias, key=key, service=service, local=local, service_open=is_open).order)


@pytest.mark.parametrize("mode", ["service", "capture", "shadow"])
def test_the_service_llm_answers_and_the_local_model_stands_by(mode: str) -> None:
    assert order(Alias.model_validate({"mode": mode})) == ["service", "local"]


def test_while_the_circuit_is_open_the_local_model_is_asked_first() -> None:
    assert order(Alias(mode="capture"), is_open=True) == ["local", "service"]


def test_without_fail_over_nobody_steps_in() -> None:
    assert order(Alias(fail_over=False), is_open=True) == ["service"]


def test_with_no_approved_local_model_the_service_llm_is_asked_whatever_its_circuit_says() -> None:
    assert order(Alias(), local=False, is_open=True) == ["service"]
    assert order(Alias(mode="local"), local=False) == ["service"]
    assert order(CANARY, key="in any case", local=False) == ["service"]


def test_in_mode_local_the_service_llm_is_the_fallback_also_without_fail_over() -> None:
    assert order(Alias(mode="local")) == ["local", "service"]
    assert order(Alias(mode="local", fail_over=False)) == ["local", "service"]
    assert order(Alias(mode="local"), service=False) == ["local"]


def test_nobody_is_asked_where_there_is_nobody() -> None:
    assert order(Alias(), service=False, local=False) == []


def test_a_canary_takes_its_share_of_keys_and_each_key_always_goes_the_same_way() -> None:
    keys = [f"user-{number}" for number in range(2000)]
    first = [order(CANARY, key=key)[0] for key in keys]
    assert first == [order(CANARY, key=key)[0] for key in keys]
    assert 0.27 < first.count("local") / len(keys) < 0.33


def test_a_larger_canary_keeps_the_keys_of_the_smaller_one() -> None:
    wider = Alias(mode="canary", canary=Canary(percent=60))
    keys = [f"user-{number}" for number in range(500)]
    moved = [key for key in keys if order(CANARY, key=key)[0] == "local"]
    assert moved and all(order(wider, key=key)[0] == "local" for key in moved)


def test_the_ends_of_the_scale_mean_nobody_and_everybody() -> None:
    nobody, everybody = (Alias(mode="canary", canary=Canary(percent=p)) for p in (0, 100))
    for number in range(200):
        assert order(nobody, key=str(number))[0] == "service"
        assert order(everybody, key=str(number))[0] == "local"


def test_where_a_key_stands_is_the_same_in_every_release() -> None:
    assert share_of("triage", "user-1") == pytest.approx(0.7536601390762945, abs=1e-12)
    assert share_of("other", "user-1") != share_of("triage", "user-1")


def test_who_records_and_who_asks_the_local_model_beside() -> None:
    def way(mode: str, *, local: bool = True, is_open: bool = False) -> tuple[bool, bool]:
        alias = CANARY if mode == "canary" else Alias.model_validate({"mode": mode})
        found = route("triage", alias, key="k", service=True, local=local, service_open=is_open)
        return found.record, found.shadow

    assert way("service") == (False, False)
    assert way("capture") == (True, False)
    assert way("shadow") == (True, True)
    assert way("shadow", local=False) == (True, False)
    assert way("shadow", is_open=True) == (True, False)
    assert way("canary") == (True, False)
    assert way("local") == (False, False)

"""Keys, prices, and what it weighs to import the client."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from llamaduo.errors import ServiceLLMRefused
from llamaduo.migrations.spec import ServiceLLM
from llamaduo.service_llm import ProviderSender, ServiceLLMMisconfigured
from llamaduo.service_llm.credentials import NO_KEY, api_key
from llamaduo.service_llm.prices import largest, money
from tests.unit.service_llm_fakes import call

ROOT = Path(__file__).parents[2]
CLOUD = ServiceLLM(model="openai:gpt-4o")
LOCAL = ServiceLLM(model="openai:gpt-4o", base_url="http://127.0.0.1:9/v1", api_key_env="LOCAL_KEY")


def test_the_key_comes_from_the_variable_or_from_its_file(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("from-file\n")
    assert api_key(CLOUD, {"OPENAI_API_KEY": "from-variable", "OPENAI_API_KEY_FILE": str(file)}) == "from-variable"
    assert api_key(CLOUD, {"OPENAI_API_KEY_FILE": str(file)}) == "from-file"
    assert api_key(LOCAL, {"OPENAI_API_KEY": "not for this server"}) == NO_KEY
    assert api_key(LOCAL, {"LOCAL_KEY": "k"}) == "k"


def test_a_missing_key_names_the_variable(tmp_path: Path) -> None:
    with pytest.raises(ServiceLLMMisconfigured, match="OPENAI_API_KEY"):
        api_key(CLOUD, {})
    with pytest.raises(ServiceLLMMisconfigured, match="nowhere"):
        api_key(CLOUD, {"OPENAI_API_KEY_FILE": str(tmp_path / "nowhere")})
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(ServiceLLMMisconfigured, match="empty"):
        api_key(CLOUD, {"OPENAI_API_KEY_FILE": str(tmp_path / "empty")})
    with pytest.raises(ServiceLLMRefused, match="OPENAI_API_KEY"):
        ProviderSender({}).check(CLOUD)


def test_a_provider_whose_package_is_missing_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("anthropic", "bedrock", "google_cloud"):
        monkeypatch.setitem(sys.modules, f"pydantic_ai.providers.{module}", None)
    for model, extra in (("anthropic:claude-sonnet-5", "anthropic"), ("bedrock:x", "bedrock")):
        with pytest.raises(ServiceLLMMisconfigured, match=rf"pip install 'llamaduo\[{extra}\]'"):
            ProviderSender({"ANTHROPIC_API_KEY": "k"}).check(ServiceLLM(model=model))
    with pytest.raises(ServiceLLMMisconfigured, match=r"pip install 'llamaduo\[google\]'"):
        ProviderSender({}).check(ServiceLLM(model="google-cloud:gemini-2.5-flash"))
    with pytest.raises(ServiceLLMMisconfigured, match="nonesuch"):
        ProviderSender({}).check(ServiceLLM(model="nonesuch:model"))


def test_a_providers_own_key_is_asked_for_by_its_name() -> None:
    for provider, variable in (("anthropic", "ANTHROPIC"), ("mistral", "MISTRAL"), ("google", "GOOGLE")):
        with pytest.raises(ServiceLLMMisconfigured, match=f"{variable}_API_KEY"):
            ProviderSender({"OPENAI_API_KEY": "of openai alone"}).check(ServiceLLM(model=f"{provider}:model"))


def test_an_address_is_refused_where_it_would_be_ignored() -> None:
    for model in ("bedrock:anthropic.claude-sonnet-5", "google-cloud:gemini-2.5-flash"):
        with pytest.raises(ServiceLLMMisconfigured, match="openai:MODEL"):
            ProviderSender({}).check(ServiceLLM(model=model, base_url="http://127.0.0.1:9"))


def test_another_provider_never_gets_the_default_providers_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "of openai alone")
    monkeypatch.delenv("DEEPSEEK_API_KEY", raising=False)
    deepseek = ServiceLLM(model="deepseek:deepseek-chat")
    with pytest.raises(ServiceLLMMisconfigured, match="DEEPSEEK_API_KEY"):
        ProviderSender({"OPENAI_API_KEY": "of openai alone"}).check(deepseek)
    named = deepseek.model_copy(update={"api_key_env": "TEAM_KEY"})
    with pytest.raises(ServiceLLMMisconfigured, match="TEAM_KEY"):
        ProviderSender({}).check(named)
    ProviderSender({"TEAM_KEY": "k"}).check(named)


def test_prices_are_real_and_unknown_ones_are_none() -> None:
    assert money(CLOUD, 1_000_000, 0) == pytest.approx(2.5)
    assert money(CLOUD, 0, 1_000_000) == pytest.approx(10)
    assert money(LOCAL, 0, 1_000_000) == pytest.approx(10)
    assert money(ServiceLLM(model="openai:scripted-teacher", base_url="http://127.0.0.1:9/v1"), 10, 10) is None


def test_the_largest_price_covers_a_token_for_every_byte() -> None:
    text = "é" * 100
    most = largest(call(text, max_tokens=50))
    assert most.calls == 1
    assert most.tokens >= 200 + 50
    assert most.money >= (money(CLOUD, 200, 50) or 0)


@pytest.mark.parametrize("module", ["llamaduo.service_llm", "services.judge.catalogue", "services.judge.llm_judge"])
def test_importing_loads_no_provider_and_no_ml_library(module: str) -> None:
    heavy = {"torch", "transformers", "vllm", "datasets", "pydantic_ai", "openai", "genai_prices", "numpy"}
    code = f"import sys, {module}; print(*sorted({heavy!r} & set(sys.modules)))"
    # This checkout, and not the one that is installed.
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'shared'}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, env=environment)
    assert done.stdout.strip() == ""

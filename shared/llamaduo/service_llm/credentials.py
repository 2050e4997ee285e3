"""The key of a service LLM: from the environment or from a file, never from a spec and never in a message."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from llamaduo.migrations.spec import ServiceLLM
from llamaduo.service_llm.sending import ServiceLLMMisconfigured

NO_KEY = "none"
"""Sent to a server of one's own when no key is set: such servers mostly need none."""

DEFAULT_VARIABLE = "OPENAI_API_KEY"
PROVIDER_KEYS: dict[str, tuple[str, ...]] = {
    "alibaba": ("ALIBABA_API_KEY", "DASHSCOPE_API_KEY"),
    "anthropic": ("ANTHROPIC_API_KEY",),
    "azure": ("AZURE_OPENAI_API_KEY",),
    "bedrock": (),
    "cerebras": ("CEREBRAS_API_KEY",),
    "cohere": ("CO_API_KEY",),
    "crusoe": ("CRUSOE_API_KEY",),
    "deepseek": ("DEEPSEEK_API_KEY",),
    "fireworks": ("FIREWORKS_API_KEY",),
    "github": ("GITHUB_API_KEY",),
    "google": ("GOOGLE_API_KEY", "GEMINI_API_KEY"),
    "google-cloud": (),
    "groq": ("GROQ_API_KEY",),
    "heroku": ("HEROKU_INFERENCE_KEY",),
    "huggingface": (),
    "litellm": (),
    "meta": ("META_API_KEY",),
    "mistral": ("MISTRAL_API_KEY",),
    "moonshotai": ("MOONSHOTAI_API_KEY",),
    "nebius": ("NEBIUS_API_KEY",),
    "ollama": (),
    "openai": (DEFAULT_VARIABLE,),
    "openai-chat": (DEFAULT_VARIABLE,),
    "openai-responses": (DEFAULT_VARIABLE,),
    "openrouter": ("OPENROUTER_API_KEY",),
    "ovhcloud": ("OVHCLOUD_API_KEY",),
    "sambanova": ("SAMBANOVA_API_KEY",),
    "snowflake": (),
    "together": ("TOGETHER_API_KEY",),
    "vercel": (),
    "vllm": (),
    "xai": ("XAI_API_KEY",),
    "zai": ("ZAI_API_KEY",),
}
"""Providers of pydantic-ai that chat, and where it looks for their key; empty where that is not one variable."""

OWN_PROTOCOL = ("anthropic", "azure", "google", "mistral")
"""Providers that are spoken to in their own way, with their own key, at another address too."""

CHAT_PROVIDERS = ("openai", "openai-chat")
"""Providers that are spoken to by OpenAI's chat completions API wherever they are."""


def speaks_chat(llm: ServiceLLM) -> bool:
    """Whether this one is spoken to by OpenAI's chat completions API, so that it may know its batches, too."""
    provider = llm.model.partition(":")[0]
    return provider in CHAT_PROVIDERS or (llm.base_url is not None and provider not in OWN_PROTOCOL)


def key_variables(llm: ServiceLLM) -> tuple[str, ...]:
    """Variables of which one must hold the key: the spec's own, or the provider's where the spec names none.

    Empty where the provider takes its credentials from elsewhere.
    """
    provider = llm.model.partition(":")[0]
    at_another_address = llm.base_url is not None and provider not in OWN_PROTOCOL
    if at_another_address or llm.api_key_env != DEFAULT_VARIABLE:
        return (llm.api_key_env,)
    return PROVIDER_KEYS.get(provider, ())


def key_sources(llm: ServiceLLM) -> list[str]:
    """Variables that may hold the key, or name a file that does; empty as `key_variables`."""
    variables = key_variables(llm)
    # Of other providers pydantic-ai looks for their variable alone.
    files = llm.api_key_env in variables or llm.model.partition(":")[0] in OWN_PROTOCOL
    return [*variables, *(f"{name}_FILE" for name in variables if files)]


def api_key(llm: ServiceLLM, environment: Mapping[str, str]) -> str:
    """The key in the variable that the spec names, or in the file that `<NAME>_FILE` names.

    ServiceLLMMisconfigured names the variable where there is none, or the file where it cannot be read.
    """
    name = llm.api_key_env
    if environment.get(name):
        return environment[name].strip()
    file = environment.get(f"{name}_FILE")
    if file:
        try:
            key = Path(file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ServiceLLMMisconfigured(
                f"the key of {llm.model} cannot be read: {type(error).__name__}", file=file, field="api_key_env"
            ) from error
        if key:
            return key
        raise ServiceLLMMisconfigured(f"the key of {llm.model} is empty", file=file, field="api_key_env")
    if llm.base_url is not None:
        return NO_KEY
    raise ServiceLLMMisconfigured(
        f"no key for {llm.model}",
        field="api_key_env",
        hint=f"set the environment variable {name}, or {name}_FILE to a file that holds the key",
    )

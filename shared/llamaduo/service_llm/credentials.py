"""The key of a service LLM: from the environment or from a file, never from a spec and never in a message."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from llamaduo.migrations.spec import ServiceLLM
from llamaduo.service_llm.sending import ServiceLLMMisconfigured

NO_KEY = "none"
"""Sent to a server of one's own when no key is set: such servers mostly need none."""


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

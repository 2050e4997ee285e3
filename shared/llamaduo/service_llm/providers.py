"""Sends calls through pydantic-ai's models: any provider it knows, and any OpenAI-compatible server by URL.

The provider's name decides how it is spoken to. Another server (`base_url`) is spoken to as that provider is, where
that has a protocol of its own, else as OpenAI is.

Importing this module is cheap; pydantic-ai is imported when the first call is sent, so an idle service does not carry
it. No SDK retries: limits, retries and the ledger are the client's.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from llamaduo.masking import learn, masked
from llamaduo.migrations.spec import ServiceLLM
from llamaduo.service_llm.call import Call, FinishReason
from llamaduo.service_llm.credentials import (
    DEFAULT_VARIABLE,
    NO_KEY,
    OWN_PROTOCOL,
    api_key,
    key_variables,
    speaks_chat,
)
from llamaduo.service_llm.sending import Reply, SendFailed, ServiceLLMMisconfigured
from llamaduo.tool_calls import SaidAndCalled, ToolCall, call_of

if TYPE_CHECKING:
    from openai import AsyncOpenAI, DefaultAsyncHttpxClient
    from pydantic_ai.messages import ModelMessage, ModelResponse
    from pydantic_ai.models import Model, ModelRequestParameters
    from pydantic_ai.settings import ModelSettings
    from pydantic_ai.tools import ToolDefinition

_ADDRESS = {"anthropic": "base_url", "azure": "azure_endpoint", "google": "base_url", "mistral": "base_url"}
"""How the clients of providers with a protocol of their own call the address of a server."""
_OWN_ADDRESS = ("bedrock", "google-cloud")
"""Providers whose address follows from an account; their credentials are the cloud's own."""
_EXTRAS = {"google-cloud": "google", "azure": "openai"}
_OWN_EXTRAS = ("anthropic", "bedrock", "google", "mistral")
"""Extras of pyproject.toml, which pin what they install."""
LONGEST_MESSAGE = 300


class ProviderSender:
    """A `Send`: one request a call, with models kept open between calls."""

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        self._environment = os.environ if environment is None else environment
        self._models: dict[tuple[str, str | None, str], Model] = {}

    async def __call__(self, call: Call, idempotency_key: str) -> Reply:
        return await ask_model(self._model(call.llm), call, idempotency_key, self._secret(call.llm))

    def check(self, llm: ServiceLLM) -> None:
        """Build the model without sending anything. ServiceLLMMisconfigured names what is missing."""
        self._model(llm)

    async def close(self) -> None:
        """Close the connections of all models; those that are asked again are opened anew."""
        models, self._models = self._models, {}
        for model in models.values():
            async with model:  # leaving a model closes the connections that its provider opened
                pass

    def _model(self, llm: ServiceLLM) -> Model:
        identity = (llm.model, llm.base_url, llm.api_key_env)
        if identity not in self._models:
            self._models[identity] = _build(llm, self._environment)
        return self._models[identity]

    def _secret(self, llm: ServiceLLM) -> str:
        try:
            key = api_key(_with_own_key(llm, self._environment), self._environment)
        except ServiceLLMMisconfigured:
            return ""
        return "" if key == NO_KEY else key


async def ask_model(model: Model, call: Call, idempotency_key: str, secret: str = "") -> Reply:
    """One request to a model. SendFailed, without the `secret` in its message, where it brings no answer."""
    from pydantic_ai.direct import model_request

    try:
        response = await model_request(
            model,
            _messages(call),
            model_settings=_with_format(_settings(call, idempotency_key, model), call, model),
            model_request_parameters=_parameters(call, model),
        )
    except Exception as error:
        failure = _failure(error, secret)
        if failure is None:
            raise
        raise failure from None
    return Reply(
        text=_text(response),
        finish_reason=_finish_reason(response),
        input_tokens=response.usage.input_tokens,
        output_tokens=response.usage.output_tokens,
    )


def is_installed() -> bool:
    """Whether this machine can call providers at all: the command line's container, for one, cannot."""
    return importlib.util.find_spec("pydantic_ai") is not None


def check_package(llm: ServiceLLM) -> None:
    """ServiceLLMMisconfigured where the provider is unknown or its package is missing here; asks for no key."""
    provider = llm.model.partition(":")[0]
    if speaks_chat(llm):
        if importlib.util.find_spec("openai") is None:
            raise _package_missing("openai")
        return
    from pydantic_ai.providers import infer_provider_class

    try:
        infer_provider_class(provider)
    except ImportError as error:
        raise _package_missing(provider) from error
    except ValueError as error:
        raise ServiceLLMMisconfigured(f"there is no provider {provider!r}", field="service_llm.model") from error


def _package_missing(provider: str) -> ServiceLLMMisconfigured:
    extra = _EXTRAS.get(provider, provider)
    return ServiceLLMMisconfigured(
        f"the provider {provider!r} needs a package that is not installed",
        field="service_llm.model",
        hint=f"pip install '{'llamaduo' if extra in _OWN_EXTRAS else 'pydantic-ai-slim'}[{extra}]'",
    )


def _build(llm: ServiceLLM, environment: Mapping[str, str]) -> Model:
    from pydantic_ai.exceptions import UserError

    provider = llm.model.partition(":")[0]
    if provider in _OWN_ADDRESS and llm.base_url is not None:
        raise ServiceLLMMisconfigured(
            f"the address of {provider} follows from its own settings",
            field="service_llm.base_url",
            hint="leave base_url out; for an OpenAI-compatible server write openai:MODEL",
        )
    try:
        if provider in OWN_PROTOCOL:
            return _own_client(_with_own_key(llm, environment), environment)
        if speaks_chat(llm):
            return openai_chat(llm, openai_client(llm, api_key(llm, environment)))
        return _inferred(llm, environment)
    except ImportError as error:
        raise _package_missing(provider) from error
    except UserError as error:
        raise ServiceLLMMisconfigured(str(error), field="service_llm.model") from error


def _with_own_key(llm: ServiceLLM, environment: Mapping[str, str]) -> ServiceLLM:
    """With the variable that holds the provider's key where the spec names none; never another provider's key."""
    variables = key_variables(llm)
    if llm.api_key_env in variables or not variables:
        return llm
    held = [name for name in variables if environment.get(name) or environment.get(f"{name}_FILE")]
    return llm.model_copy(update={"api_key_env": (held or list(variables))[0]})


def _own_client(llm: ServiceLLM, environment: Mapping[str, str]) -> Model:
    """A model whose provider's client takes one key and, where given, an address."""
    from pydantic_ai.models import infer_model
    from pydantic_ai.providers import Provider, infer_provider_class

    key = api_key(llm, environment)

    def provider_of(name: str) -> Provider[Any]:
        make: Any = infer_provider_class(name)
        address = {} if llm.base_url is None else {_ADDRESS[name]: llm.base_url}
        built: Provider[Any] = make(api_key=key, **address)
        return built

    return infer_model(llm.model, provider_of)


def openai_client(llm: ServiceLLM, key: str, http_client: DefaultAsyncHttpxClient | None = None) -> AsyncOpenAI:
    """OpenAI's client for this one's address; it tries nothing again."""
    from openai import AsyncOpenAI

    return AsyncOpenAI(
        base_url=llm.base_url, api_key=key, max_retries=0, timeout=llm.timeout_s, http_client=http_client
    )


def openai_chat(llm: ServiceLLM, client: AsyncOpenAI) -> Model:
    """The model as it is asked by OpenAI's chat completions API."""
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    class OwnClient(OpenAIProvider):
        """Closes the client that it was given."""

        async def __aexit__(self, *_: object) -> None:
            await self.client.close()

    return OpenAIChatModel(llm.model.partition(":")[2], provider=OwnClient(openai_client=client))


def _inferred(llm: ServiceLLM, environment: Mapping[str, str]) -> Model:
    """A model of another provider; its own variables hold its key, unless the spec names one."""
    from pydantic_ai.models import infer_model
    from pydantic_ai.providers import Provider, infer_provider, infer_provider_class

    if llm.api_key_env == DEFAULT_VARIABLE:
        return infer_model(llm.model, infer_provider)
    key = api_key(llm, environment)

    def with_key(provider: str) -> Provider[Any]:
        make: Any = infer_provider_class(provider)
        built: Provider[Any] = make(api_key=key)
        return built

    try:
        return infer_model(llm.model, with_key)
    except (TypeError, ValueError) as error:
        raise ServiceLLMMisconfigured(
            f"{llm.model} cannot be used with a single key: {error}",
            field="service_llm.api_key_env",
            hint="leave api_key_env out and set the provider's own variables",
        ) from error


def _messages(call: Call) -> list[ModelMessage]:
    from pydantic_ai.messages import (
        ModelRequest,
        ModelRequestPart,
        ModelResponse,
        ModelResponsePart,
        SystemPromptPart,
        TextPart,
        ToolCallPart,
        ToolReturnPart,
        UserPromptPart,
    )

    built: list[ModelMessage] = []
    asked: list[ModelRequestPart] = []
    names: dict[str, str] = {}
    for message in call.messages:
        match message["role"]:
            case "system":
                asked.append(SystemPromptPart(message["content"]))
            case "user":
                asked.append(UserPromptPart(message["content"]))
            case "tool":
                number = message["tool_call_id"]
                asked.append(ToolReturnPart(names.get(number, ""), message["content"], number))
            case _:
                if asked:
                    built.append(ModelRequest(parts=asked))
                    asked = []
                said: list[ModelResponsePart] = [TextPart(message["content"])] if message["content"] else []
                for one in message.get("tool_calls") or ():
                    names[one["id"]] = one["function"]["name"]
                    said.append(ToolCallPart(one["function"]["name"], one["function"]["arguments"], one["id"]))
                built.append(ModelResponse(parts=said))
    built.append(ModelRequest(parts=asked))
    return built


def _text(response: ModelResponse) -> str:
    """What was said, and the tools that were called, as we write them; half a surrogate pair as a question mark."""
    from pydantic_ai.messages import ToolCallPart

    parts = [part for part in response.parts if isinstance(part, ToolCallPart)]
    said, calls = response.text or "", list[ToolCall]()
    for part in parts:
        try:
            calls.append(call_of({"name": part.tool_name, "arguments": part.args or {}}))
        except ValueError:
            # Arguments that are no JSON object, as models write now and then: an answer, and a wrong one.
            calls = []
            said = "\n".join([response.text or "", *(f"{one.tool_name}({one.args})" for one in parts)]).strip()
            break
    # What no file can hold could not be written into the ledger, and would be bought again and again.
    return SaidAndCalled(said, tuple(calls)).text.encode(errors="replace").decode()


def _settings(call: Call, idempotency_key: str, model: Model) -> ModelSettings:
    from pydantic_ai.settings import ModelSettings

    settings = ModelSettings(
        max_tokens=call.max_tokens,
        timeout=call.llm.timeout_s,
        request_timeout=call.llm.timeout_s,
        max_retries=0,
    )
    if "extra_headers" not in model.unsupported_settings:
        settings["extra_headers"] = {"Idempotency-Key": idempotency_key}
    if call.warmth is not None:
        settings["temperature"] = call.warmth
    if call.seed is not None:
        settings["seed"] = call.seed
    return settings


def _speaks_chat(model: Model) -> bool:
    """Whether this model is asked by OpenAI's chat completions API, so that a `response_format` can go as it is."""
    from pydantic_ai.models.openai import OpenAIChatModel

    return isinstance(model, OpenAIChatModel)


def _with_format(settings: ModelSettings, call: Call, model: Model) -> ModelSettings:
    if call.response_format is not None and _speaks_chat(model):
        settings["extra_body"] = {"response_format": dict(call.response_format)}
    return settings


def _parameters(call: Call, model: Model) -> ModelRequestParameters:
    """Typed output as a native JSON schema; models without it are asked in words."""
    from pydantic_ai.models import ModelRequestParameters
    from pydantic_ai.output import OutputObjectDefinition

    tools = [_tool(one["function"]) for one in call.tools or ()]
    if call.schema is not None:
        form = OutputObjectDefinition(json_schema=call.schema.model_json_schema(), name=call.schema.__name__)
    elif call.response_format is not None and not _speaks_chat(model):
        asked = call.response_format.get("json_schema", {})
        form = OutputObjectDefinition(json_schema=asked.get("schema", {"type": "object"}), name=asked.get("name"))
    else:
        return ModelRequestParameters(function_tools=tools)
    # A bare object says nothing that a native schema could hold a model to.
    native = model.profile.get("supports_json_schema_output", False) and "properties" in form.json_schema
    return ModelRequestParameters(
        function_tools=tools, output_mode="native" if native else "prompted", output_object=form
    )


def _tool(function: Mapping[str, Any]) -> ToolDefinition:
    from pydantic_ai.tools import ToolDefinition

    return ToolDefinition(
        name=function["name"],
        parameters_json_schema=function.get("parameters") or {"type": "object", "properties": {}},
        description=function.get("description"),
        # As it was asked, not as a provider could hold it to: the caller's own requests were not held to it either.
        strict=bool(function.get("strict")),
    )


def _finish_reason(response: ModelResponse) -> FinishReason:
    match response.finish_reason:
        case "stop" | "length" | "content_filter":
            return response.finish_reason
        case "tool_call":
            return "stop"
        case _:
            return "other"


def _failure(error: Exception, secret: str) -> SendFailed | None:
    """What a model's error means for the call; None for one that is no answer of a provider."""
    from pydantic_ai import exceptions as errors

    # Masked before it is cut: half a key would be found by no mask.
    learn(secret)
    message = masked(" ".join(str(error).split()))[:LONGEST_MESSAGE]
    match error:
        case errors.ModelQuotaExceededError() | errors.ModelRequestRejectedError() | errors.UserError():
            return SendFailed("refused", message)
        case errors.ModelRateLimitError():
            return SendFailed("limited", message, _retry_after(error))
        case errors.ModelHTTPError() if error.status_code >= 500 or error.status_code in (408, 409, 425):
            return SendFailed("failed", message, _retry_after(error))
        case errors.ModelHTTPError():
            return SendFailed("refused", message)
        case errors.ModelConnectionError() if error.phase in ("connect", "pool"):
            return SendFailed("failed", message)
        case errors.ModelAPIError() | errors.UnexpectedModelBehavior():
            return SendFailed("unknown", message)
        case _:
            return None


def _retry_after(error: Any) -> float | None:
    """Seconds the provider asks us to wait; a fraction of a second in the header counts too."""
    headers: Mapping[str, str] = getattr(error, "headers", None) or {}
    try:
        return max(0.0, float(headers["retry-after"]))
    except (KeyError, ValueError):
        pass
    asked: float | None = error.retry_after
    return asked

"""Batches of OpenAI, and of servers that speak its batch API: a file of requests up, files of answers down.

A call's request in the file is the one that it would be asked by online, and its answer is read as one that came
online: both go through the same model of pydantic-ai, with a tape in the place of the network.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Awaitable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from llamaduo.masking import learn, masked
from llamaduo.migrations.spec import ServiceLLM
from llamaduo.service_llm.call import Call
from llamaduo.service_llm.credentials import NO_KEY, api_key, speaks_chat
from llamaduo.service_llm.providers import LONGEST_MESSAGE, ask_model, openai_chat, openai_client
from llamaduo.service_llm.sending import Reply, SendFailed, ServiceLLMMisconfigured
from llamaduo.service_llm.sending_batches import BatchLook

if TYPE_CHECKING:
    import httpx2
    from openai import AsyncOpenAI
    from openai.types import Batch
    from pydantic_ai.models import Model

T = TypeVar("T")

TAG = "llamaduo"
"""The key of a batch's metadata by which it is found again."""
ENDPOINT: Literal["/v1/chat/completions"] = "/v1/chat/completions"

_ENDED = ("completed", "expired", "cancelled", "failed")
_FULL = "token_limit_exceeded"
_EARLIER_S = 3600.0
"""The clocks of a provider and ours may differ by so much."""
_NO_API = (404, 405, 501)
_NOTHING_SAID: dict[str, Any] = {
    "id": "tape",
    "object": "chat.completion",
    "created": 0,
    "model": "tape",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": ""}, "finish_reason": "stop"}],
}


class OpenAIBatches:
    """A `SendBatches`, with clients kept open between calls."""

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        self._environment = os.environ if environment is None else environment
        self._clients: dict[tuple[str | None, str], AsyncOpenAI] = {}

    async def start(self, llm: ServiceLLM, tag: str, calls: Sequence[Call]) -> str:
        client, tape = self._client(llm), _Tape(llm)
        lines = [
            {"custom_id": call.key, "method": "POST", "url": ENDPOINT, "body": await tape.body(call)}
            for call in calls
        ]
        content = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
        file = await self._of(llm, client.files.create(file=(f"{tag}.jsonl", content), purpose="batch"))
        batch = await self._of(
            llm,
            client.batches.create(
                input_file_id=file.id,
                endpoint=ENDPOINT,
                completion_window="24h",
                metadata={TAG: tag},
                extra_headers={"Idempotency-Key": tag},
            ),
        )
        return batch.id

    async def find(self, llm: ServiceLLM, tag: str, since: float) -> str | None:
        async def found() -> str | None:
            async for batch in self._client(llm).batches.list(limit=100):
                if (batch.metadata or {}).get(TAG) == tag:
                    return batch.id
                if batch.created_at < since - _EARLIER_S:  # the newest come first
                    return None
            return None

        return await self._of(llm, found())

    async def look(self, llm: ServiceLLM, batch: str) -> BatchLook:
        from openai import NotFoundError

        async def retrieved() -> Batch | None:
            try:
                return await self._client(llm).batches.retrieve(batch)
            except NotFoundError:
                return None

        seen = await self._of(llm, retrieved())
        if seen is None:
            return BatchLook("lost", ended=True, done=0, failed=0, total=0, lost=True)
        counts, errors = seen.request_counts, (seen.errors.data if seen.errors else None) or []
        why = "; ".join(error.message or error.code or "" for error in errors[:3])
        return BatchLook(
            status=seen.status,
            ended=seen.status in _ENDED,
            done=counts.completed if counts else 0,
            failed=counts.failed if counts else 0,
            total=counts.total if counts else 0,
            rejected=(why or "no reason given")[:LONGEST_MESSAGE] if seen.status == "failed" else "",
            full=any(error.code == _FULL for error in errors),
        )

    async def cancel(self, llm: ServiceLLM, batch: str) -> None:
        from openai import BadRequestError, ConflictError, NotFoundError

        async def cancelled() -> None:
            # One that has ended cannot be cancelled any more.
            with contextlib.suppress(BadRequestError, ConflictError, NotFoundError):
                await self._client(llm).batches.cancel(batch)

        await self._of(llm, cancelled())

    async def replies(self, llm: ServiceLLM, batch: str, calls: Mapping[str, Call]) -> dict[str, Reply | SendFailed]:
        seen = await self._of(llm, self._client(llm).batches.retrieve(batch))
        found = dict[str, Reply | SendFailed]()
        for file in (seen.output_file_id, seen.error_file_id):
            if file:
                content = await self._of(llm, self._client(llm).files.content(file))
                found = {**await read_answers(llm, content.text, calls), **found}
        return found

    async def close(self) -> None:
        clients, self._clients = self._clients, {}
        for client in clients.values():
            await client.close()

    def _client(self, llm: ServiceLLM) -> AsyncOpenAI:
        if not speaks_chat(llm):
            raise ServiceLLMMisconfigured(
                f"{llm.model.partition(':')[0]} is not asked in batches", field="batch", hint="leave batch out"
            )
        identity = (llm.base_url, llm.api_key_env)
        if identity not in self._clients:
            self._clients[identity] = openai_client(llm, api_key(llm, self._environment))
        return self._clients[identity]

    async def _of(self, llm: ServiceLLM, asked: Awaitable[T]) -> T:
        """What comes of one request. SendFailed says in one line why nothing does."""
        from openai import APIConnectionError, APIStatusError

        try:
            return await asked
        except APIStatusError as error:
            message = self._without_key(llm, str(error))
            if error.status_code in _NO_API:
                message = f"{llm.base_url or 'this server'} takes no batches, leave batch out: {message}"
            wait = error.response.headers.get("retry-after", "")
            after = float(wait) if wait.replace(".", "", 1).isdigit() else None
            if error.status_code == 429:
                raise SendFailed("limited", message, after) from None
            again = error.status_code in (408, 409, 425) or (error.status_code >= 500 and error.status_code != 501)
            raise SendFailed("failed" if again else "refused", message, after) from None
        except APIConnectionError as error:
            raise SendFailed("unknown", self._without_key(llm, f"{error} {error.__cause__ or ''}")) from None

    def _without_key(self, llm: ServiceLLM, message: str) -> str:
        if (key := api_key(llm, self._environment)) != NO_KEY:
            learn(key)
        return masked(" ".join(message.split()))[:LONGEST_MESSAGE]


class _Tape:
    """Stands where the network would: keeps what is asked, and answers what it was given. One call at a time."""

    def __init__(self, llm: ServiceLLM) -> None:
        import httpx2
        from openai import DefaultAsyncHttpxClient

        client = DefaultAsyncHttpxClient(transport=httpx2.MockTransport(self._handle))
        self._model: Model = openai_chat(llm, openai_client(llm, NO_KEY, client))
        self._asked: dict[str, Any] = {}
        self._status, self._answer = 200, _NOTHING_SAID

    async def _handle(self, request: httpx2.Request) -> httpx2.Response:
        import httpx2

        self._asked = json.loads(request.content)
        return httpx2.Response(self._status, json=self._answer)

    async def body(self, call: Call) -> dict[str, Any]:
        """The body that this call is asked by."""
        self._status, self._answer = 200, _NOTHING_SAID
        await ask_model(self._model, call, call.key)
        return self._asked

    async def reply(self, call: Call, status: int, body: Any) -> Reply:
        """The provider's answer as this call reads it. SendFailed where it is none."""
        self._status, self._answer = status, body
        return await ask_model(self._model, call, call.key)


async def read_answers(llm: ServiceLLM, text: str, calls: Mapping[str, Call]) -> dict[str, Reply | SendFailed]:
    """What a file of answers says of these calls. A line that is none is passed over: its call counts as not done."""
    tape, found = _Tape(llm), dict[str, Reply | SendFailed]()
    for line in _lines(text):
        call = calls.get(str(line.get("custom_id")))
        if call is not None:
            found.setdefault(call.key, await _outcome(tape, call, line))
    return found


async def _outcome(tape: _Tape, call: Call, line: Mapping[str, Any]) -> Reply | SendFailed:
    response, error = line.get("response"), line.get("error")
    if not isinstance(response, Mapping):
        why = error.get("message") or error.get("code") if isinstance(error, Mapping) else None
        return SendFailed("failed", f"in a batch: {why or 'no answer'}"[:LONGEST_MESSAGE])
    try:
        return await tape.reply(call, int(response.get("status_code", 0)), response.get("body"))
    except SendFailed as failure:
        return failure


def _lines(text: str) -> Iterator[Mapping[str, Any]]:
    for line in text.splitlines():
        try:
            read = json.loads(line)
        except ValueError:
            continue
        if isinstance(read, Mapping):
            yield read

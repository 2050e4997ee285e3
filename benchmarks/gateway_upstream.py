"""A server that answers each chat completion with the same text after a while, as a process.

python -m benchmarks.gateway_upstream NAME PORT MILLISECONDS
"""

from __future__ import annotations

import asyncio
import sys

from aiohttp import web

ANSWER = "Your parcel was handed to the carrier this morning and should be with you on Thursday. " * 3


async def serve(name: str, port: int, latency_s: float) -> None:
    """Until killed."""
    message = {"role": "assistant", "content": ANSWER}
    body = {
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": name,
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 40, "completion_tokens": 60, "total_tokens": 100},
    }  # fmt: skip

    async def chat(request: web.Request) -> web.Response:
        await request.read()
        await asyncio.sleep(latency_s)
        return web.json_response(body)

    app = web.Application()
    app.router.add_post("/v1/chat/completions", chat)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]) / 1000))

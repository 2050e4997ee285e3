"""What `burst` compares with: nats-py alone, doing the traffic of an evaluator.

It pulls a message, reads the artifact that the message names, publishes as many bytes as an evaluator's marks have,
and acks. Use: python -m benchmarks.bare_evaluator URL DURABLE BUCKET STREAM RESULT_BYTES
"""

from __future__ import annotations

import asyncio
import json
import sys

import nats


async def work(url: str, durable: str, bucket: str, stream: str, result_bytes: int) -> None:
    """Until it is stopped."""
    js = (await nats.connect(url)).jetstream(timeout=30)
    store = await js.object_store(bucket)
    sub = await js.pull_subscribe_bind(durable=durable, stream=stream)
    while True:
        try:
            [message] = await sub.fetch(1, timeout=5)
        except TimeoutError:
            continue
        read = await store.get(json.loads(message.data)["responses"]["uri"].removeprefix("obj:"))
        told = {"Nats-Msg-Id": f"{durable}-{message.metadata.sequence.stream}"}
        await js.publish(f"{stream}.out", (read.data or b"").ljust(result_bytes)[:result_bytes], headers=told)
        await message.ack_sync(timeout=30)


if __name__ == "__main__":
    url, durable, bucket, stream, result_bytes = sys.argv[1:]
    asyncio.run(work(url, durable, bucket, stream, int(result_bytes)))

"""Several streams read as one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from gemma4_serve.engine.contract import Event, Stream


async def merged(streams: Sequence[Stream]) -> AsyncIterator[tuple[int, list[Event]]]:
    """Batches of all streams as they come, each with its stream's number."""
    if len(streams) == 1:
        async for events in streams[0].batches():
            yield 0, events
        return
    queue: asyncio.Queue[tuple[int, list[Event] | None]] = asyncio.Queue(len(streams))

    async def read(number: int, stream: Stream) -> None:
        async for events in stream.batches():
            await queue.put((number, events))
        await queue.put((number, None))

    readers = [asyncio.ensure_future(read(number, stream)) for number, stream in enumerate(streams)]
    left = len(readers)
    try:
        while left:
            number, found = await queue.get()
            if found is None:
                left -= 1
            else:
                yield number, found
    finally:
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)

"""Server-sent events: what a page or a program is told as it happens. https://html.spec.whatwg.org/multipage/server-sent-events.html"""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import anyio
from anyio.to_thread import run_sync
from fastapi import Depends, Request
from fastapi.responses import StreamingResponse

SECONDS = 1.0  # between two looks
BEAT_SECONDS = 15.0  # so long nothing is said before a comment says that the line is alive


@dataclass(frozen=True)
class Told:
    """One event of a stream: its id, with which a client resumes, its kind, and the data."""

    id: int | None
    kind: str
    data: Mapping[str, Any]

    def encoded(self) -> str:
        head = "" if self.id is None else f"id: {self.id}\n"
        return f"{head}event: {self.kind}\ndata: {json.dumps(self.data)}\n\n"


def _ending(request: Request) -> threading.Event:
    return request.app.state.ending


Ending = Annotated[threading.Event, Depends(_ending)]
"""Set when the server is asked to end: an answer that would go on for ever ends then."""


def stream(look: Callable[[], tuple[Sequence[Told], bool]], ending: threading.Event) -> StreamingResponse:
    """Tells what each look finds, until one says that it was the last, or the server ends. `look` runs in a thread."""

    async def told() -> AsyncIterator[str]:
        yield "retry: 2000\n\n"
        quiet = 0.0
        while True:
            found, is_last = await run_sync(look)
            for each in found:
                yield each.encoded()
            if is_last or ending.is_set():
                return
            quiet = 0.0 if found else quiet + SECONDS
            if quiet >= BEAT_SECONDS:
                quiet = 0.0
                yield ": still here\n\n"
            await anyio.sleep(SECONDS)

    return StreamingResponse(told(), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})


def last_id(header: str | None) -> int | None:
    """Of `Last-Event-ID`; None for what is no number of ours."""
    return int(header) if header is not None and header.isascii() and header.isdigit() and len(header) <= 18 else None

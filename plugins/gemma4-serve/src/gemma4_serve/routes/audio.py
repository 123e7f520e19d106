"""``/v1/audio/transcriptions``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from python_multipart.exceptions import MultipartParseError
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message

from gemma4_core import Part
from gemma4_serve.dialects.asking import asked_of
from gemma4_serve.dialects.sound import Recording, as_wav, cut, read_recording
from gemma4_serve.engine.contract import Asked
from gemma4_serve.errors import ApiError, wrong
from gemma4_serve.outcome import Outcomes
from gemma4_serve.security.bodies import check_length, check_type, too_large
from gemma4_serve.server import Server
from gemma4_serve.streaming import PING, EventStream, answered_while_there, event

FORMATS = ("json", "text", "verbose_json")
FIELDS = 16
LONGEST_PROMPT = 2000
TOKENS_PER_SECOND = 12
"""The longest transcript: people say four words a second at most."""


@dataclass(frozen=True)
class TranscriptForm:
    """How the transcript is wanted."""

    format: str
    stream: bool
    language: str | None


def routes(server: Server) -> list[BaseRoute]:
    """The route of transcriptions."""

    async def transcribe(request: Request) -> ASGIApp:
        if "audio" not in server.card.modalities:
            raise wrong("this model takes no audio", "file")
        form, pieces, values = await read_form(server, request)
        asked = [request_for(server, piece, form, values) for piece in pieces]
        outcomes: list[Outcomes] = []
        if form.stream:
            return EventStream(chunks(server, asked, outcomes), server.settings.limits.stall_seconds,
                               lambda: server.end(request, *outcomes))
        try:
            await answered_while_there(request, collect(server, asked, outcomes))
        finally:
            server.end(request, *outcomes)
        return told(form, pieces, outcomes)

    return [Route("/v1/audio/transcriptions", transcribe, methods=["POST"])]


async def read_form(server: Server, request: Request) -> tuple[TranscriptForm, list[Recording], FormData]:
    """The fields of a multipart body, and its recording in pieces. Raises ApiError."""
    limits = server.settings.limits
    check_type(request, "multipart/form-data")
    check_length(request, limits)
    receive, size = request.receive, 0

    async def counted() -> Message:
        nonlocal size
        message = await asyncio.wait_for(receive(), limits.body_seconds)
        size += len(message.get("body", b""))
        if size > limits.body_bytes:
            raise too_large(limits)
        return message

    try:
        form = await Request(request.scope, counted).form(max_files=1, max_fields=FIELDS, max_part_size=64 << 10)
    except (HTTPException, MultipartParseError, ValueError, KeyError, UnicodeDecodeError) as error:
        raise wrong("the multipart body cannot be read") from error
    except TimeoutError:
        raise ApiError(408, "the body did not arrive in time") from None
    try:
        file = form.get("file")
        if not isinstance(file, UploadFile):
            raise wrong("file: give a sound file as multipart/form-data", "file")
        data = await file.read()
    finally:
        await form.close()
    found = TranscriptForm(text(form, "response_format") or "json", text(form, "stream") in ("true", "True", "1"),
                           text(form, "language"))
    if found.format not in FORMATS:
        raise wrong(f"response_format must be one of {', '.join(FORMATS)}", "response_format")
    if found.language is not None and not (found.language.isalpha() and len(found.language) <= 20):
        raise wrong("language must be a language's code or name", "language")
    pieces = await asyncio.to_thread(lambda: cut(read_recording(data)))
    return found, pieces, form


def text(form: FormData, name: str) -> str | None:
    """A field's text, None where it is absent or empty. Raises ApiError."""
    value = form.get(name)
    if value is not None and (not isinstance(value, str) or len(value) > LONGEST_PROMPT):
        raise wrong(f"{name} must be text of at most {LONGEST_PROMPT} characters", name)
    return value or None


def request_for(server: Server, piece: Recording, form: TranscriptForm, values: FormData) -> Asked:
    """The request that has one piece written down. Raises ApiError."""
    spoken = f"in {form.language} " if form.language else ""
    said = f"Transcribe the following speech segment {spoken}as text."
    if hint := text(values, "prompt"):
        said += f" Context: {hint}"
    parts = [{"type": "text", "text": said}, {"type": "audio", "audio": as_wav(piece)}]
    body: dict[str, Any] = {"model": text(values, "model"), "temperature": 0.0,
                            "max_tokens": max(16, round(piece.seconds * TOKENS_PER_SECOND))}  # fmt: skip
    if (temperature := text(values, "temperature")) is not None:
        try:
            body["temperature"] = float(temperature)
        except ValueError:
            raise wrong("temperature must be a number", "temperature") from None
    asked, _ = asked_of(body, {"messages": [{"role": "user", "content": parts}]}, server.card, server.settings)
    return asked


async def collect(server: Server, asked: list[Asked], outcomes: list[Outcomes]) -> None:
    """Transcribe pieces one after another. Raises ApiError where one fails."""
    for one in asked:
        outcomes.append(Outcomes(await server.engine.submit(one), server.engine, server.settings, 1))
        await outcomes[-1].whole()


def transcript(outcomes: list[Outcomes]) -> str:
    """The text of all pieces."""
    return " ".join(filter(None, (each.each[0].answer.text.strip() for each in outcomes)))


def usage(outcomes: list[Outcomes]) -> dict[str, Any]:
    """Tokens in the form of transcriptions."""
    heard = sum(each.stream.prompt_tokens for each in outcomes)
    written = sum(each.completion_tokens for each in outcomes)
    return {"type": "tokens", "input_tokens": heard, "output_tokens": written, "total_tokens": heard + written}


def told(form: TranscriptForm, pieces: list[Recording], outcomes: list[Outcomes]) -> Response:
    """The transcript in the form that is wanted."""
    whole = transcript(outcomes)
    if form.format == "text":
        return PlainTextResponse(whole + "\n")
    found: dict[str, Any] = {"text": whole, "usage": usage(outcomes)}
    if form.format == "verbose_json":
        at, segments = 0.0, []
        for number, (piece, each) in enumerate(zip(pieces, outcomes, strict=True)):
            segments.append({"id": number, "start": at, "end": at + piece.seconds,
                             "text": each.each[0].answer.text.strip()})  # fmt: skip
            at += piece.seconds
        found |= {"task": "transcribe", "language": form.language or "", "duration": at, "segments": segments}
    return JSONResponse(found)


async def chunks(server: Server, asked: list[Asked], outcomes: list[Outcomes]) -> AsyncIterator[bytes]:
    """Events of a transcript on its way. Raises ApiError where a piece fails."""
    for number, one in enumerate(asked):
        stream = await server.engine.submit(one)
        outcomes.append(Outcomes(stream, server.engine, server.settings, 1))
        before = " " if number else ""
        async for events in stream.batches():
            delta = ""
            for found in events:
                outcomes[-1].take(found)
                delta += found.text if isinstance(found, Part) and found.kind == "text" else ""
            if delta or not events:
                yield event({"type": "transcript.text.delta", "delta": before + delta}) if delta else PING
                before = "" if delta else before
    yield event({"type": "transcript.text.done", "text": transcript(outcomes), "usage": usage(outcomes)})

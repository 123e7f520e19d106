"""``ApiError``: what a client is told when something is wrong, in OpenAI's words and in Anthropic's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gemma4_core import Gemma4Error

TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error",
         500: "server_error", 503: "unavailable_error"}  # fmt: skip
"""OpenAI's ``type`` by status; everything else is ``invalid_request_error``."""
ANTHROPIC_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error",
                   413: "request_too_large", 429: "rate_limit_error", 500: "api_error",
                   503: "overloaded_error"}  # fmt: skip
RETRY_SECONDS = 1
PATH = re.compile(r"(?<![\w.:/])/(?:[^\s/:,;'\"]+/)+([^\s/:,;'\"]*)")
PARAMETER = re.compile(r"([a-z_]+)(?:\[[0-9]+\])*[ :]")
ENDS = ("; --raw does without the template", " or raise --context (max_context)")
"""What messages say to somebody at a command line."""


@dataclass
class ApiError(Exception):
    """An answer that is an error."""

    status: int
    message: str
    code: str | None = None
    param: str | None = None
    more: Mapping[str, Any] = field(default_factory=dict)
    """Further keys of OpenAI's error object."""

    def __post_init__(self) -> None:
        super().__init__(self.message)

    @property
    def headers(self) -> dict[str, str]:
        """Headers that belong to it."""
        if self.status == 503:
            return {"retry-after": str(RETRY_SECONDS)}
        return {"www-authenticate": "Bearer"} if self.status == 401 else {}

    def openai(self) -> dict[str, Any]:
        """The body in OpenAI's form."""
        kind = TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code, **self.more}}

    def anthropic(self) -> dict[str, Any]:
        """The body in Anthropic's form."""
        kind = ANTHROPIC_TYPES.get(self.status, "invalid_request_error")
        return {"type": "error", "error": {"type": kind, "message": self.message}}


def body_of(error: ApiError, path: str) -> dict[str, Any]:
    """The body of an error in the words of the route's dialect."""
    return error.anthropic() if path.startswith("/v1/messages") else error.openai()


def wrong(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """A request that cannot be answered as it is."""
    return ApiError(400, message, code, param)


def refused(error: Gemma4Error | str, known: tuple[str, ...] = ()) -> ApiError:
    """A request that the model refuses: the error's sentence without the server's paths; ``param`` is the parameter of
    ``known`` that it begins with."""
    text = without_paths(str(error))
    found = PARAMETER.match(text)
    return wrong(text, found[1] if found and found[1] in known else None)


def without_paths(text: str) -> str:
    """A sentence in which paths are cut to their last part, and advice for the command line is left out."""
    for end in ENDS:
        text = text.replace(end, "")
    return PATH.sub(lambda found: found[1] or "…", text)


def busy(message: str = "too many requests wait already; try again in a moment") -> ApiError:
    """There is no room now. Clients try again after 503, some of them not after 429."""
    return ApiError(503, message, "queue_full")


def too_long(tokens: int, context: int) -> ApiError:
    """A prompt that the context does not hold."""
    message = f"the prompt has {tokens} tokens, the context of this server holds {context}; shorten it"
    return ApiError(400, message, "context_length_exceeded", "messages", {"n_prompt_tokens": tokens, "n_ctx": context})


def broken() -> ApiError:
    """Something of ours failed; the log says what."""
    return ApiError(500, "the server failed to answer this request; its log says why", "internal_error")

"""Rows of the output: chat completions as OpenAI's API writes them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gemma4_core.openai import choice, token_logprobs, usage

if TYPE_CHECKING:
    from gemma4_core.contracts import Tokenizer
    from gemma4_core.generation.answers import Answer


def digest(id: str, *what: object) -> str:
    """Hexadecimal digits that stand for a row, or for something in it: the same in every run."""
    return hashlib.sha256("\0".join(map(str, (id, *what))).encode()).hexdigest()[:24]


def answered(id: str, answers: Sequence[Answer], logprobs: bool, model: str, created: int,
             tokenizer: Tokenizer) -> dict[str, Any]:
    """The row of answers to a request."""

    def told(answer: Answer) -> dict[str, Any]:
        calls = lambda number: f"call_{digest(id, answer.choice, number)}"  # noqa: E731
        return choice(answer, calls, [*token_logprobs(answer, tokenizer)] if logprobs else None)

    return {
        "id": f"batch_req_{digest(id)}",
        "custom_id": id,
        "response": {
            "status_code": 200,
            "request_id": f"req_{digest(id, 'request')}",
            "body": {
                "id": f"chatcmpl-{digest(id, 'completion')}",
                "object": "chat.completion",
                "created": created,
                "model": model,
                "choices": [told(answer) for answer in answers],
                "usage": usage(answers),
            },
        },
        "error": None,
    }


def failed(id: str, code: str, message: str) -> dict[str, Any]:
    """The row of a request that has no answer."""
    return {"id": f"batch_req_{digest(id)}", "custom_id": id, "response": None,
            "error": {"code": code, "message": message}}

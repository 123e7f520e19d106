"""Rows of the output: chat completions as OpenAI's API writes them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from gemma4_core.errors import TokenizerError

if TYPE_CHECKING:
    from gemma4_core.contracts import Tokenizer
    from gemma4_core.generation.answers import Answer

REASONS = {"tool_call": "tool_calls"}
"""Finish reasons under other names."""


def digest(id: str, *what: object) -> str:
    """Hexadecimal digits that stand for a row, or for something in it: the same in every run."""
    return hashlib.sha256("\0".join(map(str, (id, *what))).encode()).hexdigest()[:24]


def answered(id: str, answers: Sequence[Answer], logprobs: bool, model: str, created: int,
             tokenizer: Tokenizer) -> dict[str, Any]:
    """The row of answers to a request."""
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
                "choices": [choice(id, answer, logprobs, tokenizer) for answer in answers],
                "usage": usage(answers),
            },
        },
        "error": None,
    }


def failed(id: str, code: str, message: str) -> dict[str, Any]:
    """The row of a request that has no answer."""
    return {"id": f"batch_req_{digest(id)}", "custom_id": id, "response": None,
            "error": {"code": code, "message": message}}


def choice(id: str, answer: Answer, logprobs: bool, tokenizer: Tokenizer) -> dict[str, Any]:
    """One of several answers."""
    message: dict[str, Any] = {"role": "assistant", "content": answer.text}
    if answer.thinking:
        message["reasoning_content"] = answer.thinking
    if answer.tool_calls:
        message["content"] = answer.text or None
        message["tool_calls"] = [
            {"id": f"call_{digest(id, answer.choice, number)}", "type": "function",
             "function": {"name": call["name"], "arguments": json.dumps(call["arguments"], ensure_ascii=False)}}
            for number, call in enumerate(answer.tool_calls)
        ]
    reason = answer.finish_reason or "stop"
    told = {"content": list(token_logprobs(answer, tokenizer))} if logprobs else None
    return {"index": answer.choice, "message": message, "finish_reason": REASONS.get(reason, reason), "logprobs": told}


def token_logprobs(answer: Answer, tokenizer: Tokenizer) -> Iterator[dict[str, Any]]:
    """For each token its text, what it adds to the text where characters are cut, and its log-probability."""
    stream = tokenizer.stream(skip_special=True)
    texts = [stream.add(token) for token in answer.tokens]
    if texts:
        texts[-1] += stream.flush()
    tops = answer.top_logprobs or [[]] * len(texts)
    for text, logprob, top in zip(texts, answer.logprobs, tops, strict=True):
        likeliest = [likely(alone(token, tokenizer), value) for token, value in top]
        yield likely(text, logprob) | {"top_logprobs": likeliest}


def alone(token: int, tokenizer: Tokenizer) -> str:
    """The text of one id; none where the tokenizer has fewer ids than the model."""
    try:
        return tokenizer.decode([token])
    except TokenizerError:
        return ""


def likely(text: str, logprob: float) -> dict[str, Any]:
    """A token with its log-probability."""
    return {"token": text, "logprob": max(logprob, -9999.0), "bytes": list(text.encode())}


def usage(answers: Sequence[Answer]) -> dict[str, int]:
    """Tokens of a prompt and its answers. How much of a prompt was reused depends on what ran beside it, and is left
    out, so that a row is the same in every run."""
    prompt = next((answer.stats.prompt_tokens for answer in answers if answer.stats is not None), 0)
    made = sum(len(answer.tokens) for answer in answers)
    return {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made}

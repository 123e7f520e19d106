"""Chat completions as OpenAI's API writes them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gemma4_core.errors import TokenizerError

if TYPE_CHECKING:
    from gemma4_core.contracts import Tokenizer
    from gemma4_core.generation.answers import Answer

REASONS = {"tool_call": "tool_calls"}
"""Finish reasons under other names."""


def choice(
    answer: Answer, call_id: Callable[[int], str], logprobs: Sequence[Mapping[str, Any]] | None
) -> dict[str, Any]:
    """One of several answers. ``call_id`` names its tool calls by their number, ``logprobs`` are of its tokens."""
    message: dict[str, Any] = {"role": "assistant", "content": answer.text}
    if answer.thinking:
        message["reasoning_content"] = answer.thinking
    if answer.tool_calls:
        message["content"] = answer.text or None
        message["tool_calls"] = [
            {"id": call_id(number), "type": "function",
             "function": {"name": call["name"], "arguments": arguments(call)}}
            for number, call in enumerate(answer.tool_calls)
        ]
    told = None if logprobs is None else {"content": list(logprobs)}
    return {"index": answer.choice, "message": message, "finish_reason": reason(answer), "logprobs": told}


def reason(answer: Answer) -> str:
    """Why an answer ended, in OpenAI's words."""
    found = answer.finish_reason or "stop"
    return REASONS.get(found, found)


def arguments(call: Mapping[str, Any]) -> str:
    """A tool call's arguments as JSON."""
    return json.dumps(call["arguments"], ensure_ascii=False)


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

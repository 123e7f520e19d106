"""What a body of OpenAI's Responses asks for: items into messages, parameters as chat completions have them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gemma4_core.formatting import shown
from gemma4_serve.dialects.asking import asked_of, flag
from gemma4_serve.dialects.conversation import clean_messages
from gemma4_serve.engine.contract import Asked, ModelCard
from gemma4_serve.errors import wrong
from gemma4_serve.settings import Settings

STATEFUL = ("previous_response_id", "conversation", "prompt")
"""Parameters that refer to something the server would have to hold."""
SAME = ("model", "temperature", "top_p", "top_k", "min_p", "seed", "parallel_tool_calls", "top_logprobs", "cache_salt",
        "chat_template_kwargs", "thinking_budget", "repetition_penalty", "presence_penalty",
        "frequency_penalty")  # fmt: skip
"""Parameters that chat completions have under the same name."""
INPUT = "input"
"""The one argument of a tool that takes free text."""
LOGPROBS = "message.output_text.logprobs"


@dataclass(frozen=True)
class ResponseForm:
    """How the answer is wanted."""

    stream: bool
    logprobs: bool
    timings: bool
    progress: bool
    custom: frozenset[str]
    """Names of tools that take free text."""
    echo: Mapping[str, Any]
    """What the response repeats of its request."""


async def response_request(body: Mapping[str, Any], card: ModelCard, settings: Settings) -> tuple[Asked, ResponseForm]:
    """What a body asks for. Raises ApiError."""
    for name in STATEFUL:
        if body.get(name) is not None:
            raise wrong(f"{name} is not served: this server holds no state; send the whole conversation as input", name)
    if flag(body, "background"):
        raise wrong("background is not served", "background")
    messages = messages_of(body.get("input"))
    instructions = body.get("instructions")
    if instructions is not None:
        if not isinstance(instructions, str):
            raise wrong("instructions must be text", "instructions")
        messages = joined_system([{"role": "system", "content": instructions}, *messages])
    tools, custom = tools_of(body.get("tools"))
    same = {name: body[name] for name in SAME if body.get(name) is not None}
    chat = {**same, **format_of(body.get("text")), **effort_of(body.get("reasoning")), "tools": tools or None,
            "max_tokens": body.get("max_output_tokens"), "tool_choice": choice_of(body.get("tool_choice"), tools)}
    clean = await clean_messages(messages, settings, card.modalities)
    asked, _ = asked_of(chat, {"messages": clean}, card, settings)
    include = body.get("include") or []
    form = ResponseForm(
        flag(body, "stream"), isinstance(include, list) and LOGPROBS in include, flag(body, "timings_per_token"),
        flag(body, "return_progress"), custom, echo_of(body),
    )
    return Asked(asked.kind, asked.prompt, asked.options, asked.one_call, form.progress), form


def joined_system(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages whose leading system messages are one, as chat templates want it."""
    count = next((i for i, one in enumerate(messages) if one["role"] not in ("system", "developer")), len(messages))
    if count < 2:
        return messages
    parts: list[Any] = []
    for one in messages[:count]:
        content = one.get("content")
        parts += content if isinstance(content, list) else [{"type": "text", "text": str(content or "")}]
    texts = [str(part.get("text", "")) for part in parts if isinstance(part, Mapping)]
    return [{"role": "system", "content": "\n\n".join(texts)}, *messages[count:]]


# ------------------------------------------------------------------------------------------------------ items


def messages_of(given: Any) -> list[dict[str, Any]]:
    """Input items as messages. Raises ApiError."""
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    if not isinstance(given, list) or not given:
        raise wrong("input must be text or a list of items that is not empty", "input")
    found: list[dict[str, Any]] = []
    for number, item in enumerate(given):
        if not isinstance(item, Mapping):
            raise wrong(f"input[{number}] must be an object, not {shown(item, 60)}", "input")
        _add(item, f"input[{number}]", found)
    return found


def _add(item: Mapping[str, Any], where: str, found: list[dict[str, Any]]) -> None:
    kind = item.get("type", "message")
    if kind == "message":
        if item.get("role") == "assistant":
            _assistant(found)["content"] = item.get("content")
            found[-1].pop("open", None)
        else:
            found.append({"role": item.get("role"), "content": item.get("content")})
    elif kind in ("function_call", "custom_tool_call"):
        arguments = item.get("arguments") if kind == "function_call" else {INPUT: item.get("input")}
        call = {"id": item.get("call_id"), "type": "function",
                "function": {"name": item.get("name"), "arguments": arguments}}  # fmt: skip
        _assistant(found, calls=True).setdefault("tool_calls", []).append(call)
    elif kind in ("function_call_output", "custom_tool_call_output"):
        found.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": item.get("output")})
    elif kind == "reasoning":
        texts = [part.get("text") for key in ("content", "summary") for part in item.get(key) or ()
                 if isinstance(part, Mapping)]  # fmt: skip
        _assistant(found)["reasoning_content"] = "\n".join(text for text in texts if isinstance(text, str))
    elif kind == "item_reference":
        raise wrong(f"{where}: this server holds no items; send them whole", "input")


def _assistant(found: list[dict[str, Any]], calls: bool = False) -> dict[str, Any]:
    """The message of the assistant that items belong to: reasoning, text and calls that follow each other are one."""
    last = found[-1] if found else None
    if last is not None and last["role"] == "assistant" and (calls or "open" in last):
        return last
    found.append({"role": "assistant", "open": True})
    return found[-1]


# -------------------------------------------------------------------------------------------------- parameters


def tools_of(given: Any) -> tuple[list[dict[str, Any]], frozenset[str]]:
    """Tools in the form of chat completions, and the names of those that take free text. Tools that the server would
    have to run itself are left out. Raises ApiError."""
    if given is None:
        return [], frozenset()
    if not isinstance(given, list):
        raise wrong("tools must be a list", "tools")
    tools: list[dict[str, Any]] = []
    custom: set[str] = set()
    for tool in given:
        kind = tool.get("type") if isinstance(tool, Mapping) else None
        if kind == "function":
            names = ("name", "description", "parameters")
            tools.append({"type": "function", "function": {name: tool[name] for name in names if tool.get(name)}})
        elif kind == "custom":
            custom.add(str(tool.get("name")))
            schema = {"type": "object", "properties": {INPUT: {"type": "string"}}, "required": [INPUT]}
            described = {"name": tool.get("name"), "description": tool.get("description") or ""}
            tools.append({"type": "function", "function": {**described, "parameters": schema}})
    return tools, frozenset(custom)


def choice_of(given: Any, tools: list[dict[str, Any]]) -> Any:
    """``tool_choice`` in the form of chat completions. One that asks for a tool which was left out is ``auto``."""
    if not isinstance(given, Mapping):
        return given if tools else None
    if given.get("type") == "allowed_tools":
        return dict(given)
    return {"type": "function", "function": {"name": given.get("name")}} if given.get("name") else "auto"


def format_of(given: Any) -> dict[str, Any]:
    """``text.format`` as ``response_format``. Raises ApiError."""
    if given is not None and not isinstance(given, Mapping):
        raise wrong("text must be an object", "text")
    form = (given or {}).get("format")
    if form is None:
        return {}
    if isinstance(form, Mapping) and form.get("type") == "json_schema":
        return {"response_format": {"type": "json_schema", "json_schema": {"schema": form.get("schema")}}}
    return {"response_format": form}


def effort_of(given: Any) -> dict[str, Any]:
    """``reasoning.effort``. Raises ApiError."""
    if given is not None and not isinstance(given, Mapping):
        raise wrong("reasoning must be an object", "reasoning")
    effort = (given or {}).get("effort")
    return {} if effort is None else {"reasoning_effort": effort}


def echo_of(body: Mapping[str, Any]) -> dict[str, Any]:
    """What a response repeats of its request."""
    text, reasoning = body.get("text") or {}, body.get("reasoning") or {}
    metadata = body.get("metadata")
    return {
        "instructions": body.get("instructions"), "max_output_tokens": body.get("max_output_tokens"),
        "parallel_tool_calls": body.get("parallel_tool_calls", True) is not False, "previous_response_id": None,
        "reasoning": {"effort": reasoning.get("effort"), "summary": None}, "store": False,
        "temperature": body.get("temperature", 1.0), "text": {"format": text.get("format") or {"type": "text"}},
        "tool_choice": body.get("tool_choice") or "auto", "tools": body.get("tools") or [],
        "top_p": body.get("top_p", 1.0), "truncation": "disabled", "background": False, "service_tier": "default",
        "metadata": metadata if isinstance(metadata, Mapping) else {},
    }  # fmt: skip

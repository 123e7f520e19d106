"""What a body of Anthropic's Messages asks for: blocks into messages, tools, parameters under OpenAI's names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from gemma4_core.formatting import shown
from gemma4_serve.dialects.asking import asked_of, flag
from gemma4_serve.dialects.conversation import clean_messages
from gemma4_serve.engine.contract import Asked, ModelCard
from gemma4_serve.errors import wrong
from gemma4_serve.settings import Settings

SAME = ("model", "temperature", "top_p", "top_k", "cache_salt", "seed")
"""Parameters that chat completions have under the same name."""
THINKING = ("enabled", "adaptive")
MEDIA = ("image", "audio", "video")


async def message_request(
    body: Mapping[str, Any], card: ModelCard, settings: Settings, counting: bool = False
) -> tuple[Asked, bool]:
    """What a body asks for, and whether it streams. ``counting`` needs no ``max_tokens``. Raises ApiError."""
    if body.get("max_tokens") is None and not counting:
        raise wrong("max_tokens: Field required", "max_tokens")
    messages = messages_of(body.get("messages"))
    if system := system_text(body.get("system")):
        messages.insert(0, {"role": "system", "content": system})
    tools = tools_of(body.get("tools"))
    chat: dict[str, Any] = {name: body[name] for name in SAME if body.get(name) is not None}
    chat |= {"max_tokens": body.get("max_tokens"), "stop": body.get("stop_sequences") or None, "tools": tools or None}
    chat |= thinking_of(body.get("thinking")) | choice_of(body.get("tool_choice"), bool(tools))
    clean = await clean_messages(messages, settings, card.modalities)
    asked, _ = asked_of(chat, {"messages": clean}, card, settings)
    return asked, flag(body, "stream")


def system_text(given: Any) -> str:
    """The system prompt: a text, or the texts of its blocks. Raises ApiError."""
    if given is None or isinstance(given, str):
        return given or ""
    if not isinstance(given, list):
        raise wrong("system must be text or a list of text blocks", "system")
    return "\n".join(block_text(block, "system") for block in given)


def block_text(block: Any, where: str) -> str:
    """The text of a text block. Raises ApiError."""
    if not isinstance(block, Mapping) or not isinstance(block.get("text"), str):
        raise wrong(f"{where}: expected a text block, not {shown(block, 60)}", "messages")
    return block["text"]


def messages_of(given: Any) -> list[dict[str, Any]]:
    """Messages in OpenAI's form. Raises ApiError."""
    if not isinstance(given, list) or not given:
        raise wrong("messages must be a list of messages that is not empty", "messages")
    found: list[dict[str, Any]] = []
    for number, message in enumerate(given):
        where = f"messages[{number}]"
        role = message.get("role") if isinstance(message, Mapping) else None
        if role not in ("user", "assistant", "system"):
            raise wrong(f"{where} must have the role user or assistant, not {shown(role, 40)}", "messages")
        content = message.get("content")
        if isinstance(content, str):
            content = [{"type": "text", "text": content}]
        if not isinstance(content, list):
            raise wrong(f"{where}.content must be text or a list of blocks", "messages")
        for block in content:
            if not isinstance(block, Mapping):
                raise wrong(f"{where}.content holds {shown(block, 40)} in place of a block", "messages")
        if role == "assistant":
            _add_assistant(content, where, found)
        else:
            _add_user(role, content, where, found)
    return found


def _add_assistant(blocks: list[Mapping[str, Any]], where: str, found: list[dict[str, Any]]) -> None:
    texts = [block_text(block, where) for block in blocks if block.get("type") == "text"]
    thoughts = [str(block.get("thinking", "")) for block in blocks if block.get("type") == "thinking"]
    calls = [{"id": block.get("id"), "type": "function",
              "function": {"name": block.get("name"), "arguments": block.get("input") or {}}}
             for block in blocks if block.get("type") == "tool_use"]  # fmt: skip
    last = found[-1] if found and found[-1]["role"] == "assistant" else None
    if last is not None and not last.get("tool_calls"):  # neighbouring turns are one, as Anthropic has it
        texts.insert(0, str(last["content"]))
        found.pop()
    message: dict[str, Any] = {"role": "assistant", "content": "".join(texts)}
    if thoughts:
        message["reasoning_content"] = "\n".join(thoughts)
    if calls:
        message["tool_calls"] = calls
    found.append(message)


def _add_user(role: str, blocks: list[Mapping[str, Any]], where: str, found: list[dict[str, Any]]) -> None:
    """Results of tools become messages of their own, before what the user says beside them."""
    parts: list[dict[str, Any]] = []
    for block in blocks:
        if block.get("type") == "tool_result":
            text, media = _result(block, where)
            found.append({"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": text})
            parts += media
    parts += [_part(block, where) for block in blocks if block.get("type") != "tool_result"]
    if parts:
        found.append({"role": role, "content": parts})


def _result(block: Mapping[str, Any], where: str) -> tuple[str, list[dict[str, Any]]]:
    """The text of a tool's result, and media in it, which a user's message then holds. Raises ApiError."""
    content = block.get("content")
    if content is None or isinstance(content, str):
        return content or "", []
    if not isinstance(content, list):
        raise wrong(f"{where}: the content of a tool_result must be text or a list of blocks", "messages")
    parts = [_part(one, where) for one in content if isinstance(one, Mapping)]
    text = "".join(part["text"] for part in parts if part["type"] == "text")
    return text, [part for part in parts if part["type"] != "text"]


def _part(block: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A block of a user as a content part. Raises ApiError."""
    kind, source = block.get("type"), block.get("source")
    if kind == "text":
        return {"type": "text", "text": block_text(block, where)}
    if kind in MEDIA:
        return {"type": kind, "source": source}
    if kind == "document" and isinstance(source, Mapping) and source.get("type") == "text":
        return {"type": "text", "text": str(source.get("data", ""))}
    raise wrong(f"{where}: blocks of type {shown(kind, 40)} are not read", "messages")


def tools_of(given: Any) -> list[dict[str, Any]]:
    """Tools in OpenAI's form; those that the server would have to run itself are left out. Raises ApiError."""
    if given is None:
        return []
    if not isinstance(given, list) or not all(isinstance(tool, Mapping) for tool in given):
        raise wrong("tools must be a list of objects", "tools")
    return [
        {"type": "function", "function": {"name": tool.get("name"), "description": tool.get("description") or "",
                                          "parameters": tool["input_schema"]}}
        for tool in given if tool.get("type") in (None, "custom") and tool.get("input_schema") is not None
    ]  # fmt: skip


def thinking_of(given: Any) -> dict[str, Any]:
    """``thinking`` as OpenAI's parameters and ours. Raises ApiError."""
    if given is None:
        return {}
    if not isinstance(given, Mapping) or given.get("type") not in (*THINKING, "disabled"):
        raise wrong("thinking must be an object of type enabled, adaptive or disabled", "thinking")
    if given["type"] == "disabled":
        return {"thinking": False}
    budget = given.get("budget_tokens")
    return {"thinking": True} | ({} if budget is None else {"thinking_budget": budget})


def choice_of(given: Any, tools: bool) -> dict[str, Any]:
    """``tool_choice`` as OpenAI's parameters. Raises ApiError."""
    if given is None or (not tools and isinstance(given, Mapping) and given.get("type") in ("auto", "none")):
        return {}
    kinds = {"auto": "auto", "any": "required", "none": "none"}
    kind = given.get("type") if isinstance(given, Mapping) else None
    if kind != "tool" and kind not in kinds:
        raise wrong(f"tool_choice {json.dumps(given)[:60]}: its type must be auto, any, tool or none", "tool_choice")
    named = {"type": "function", "function": {"name": given.get("name")}}
    found: dict[str, Any] = {"tool_choice": named if kind == "tool" else kinds[str(kind)]}
    return found | ({"parallel_tool_calls": False} if given.get("disable_parallel_tool_use") is True else {})

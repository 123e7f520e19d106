"""Messages of a conversation: checked, and made plain for a template."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gemma4_core.errors import InputError
from gemma4_core.formatting import shown
from gemma4_core.text.calls import parse_call

ROLES = ("system", "developer", "user", "assistant", "model", "tool")
PART_TYPES = ("text", "image", "audio", "video")
RESERVED_VARIABLES = {
    "messages": "it is the conversation itself", "tools": "give tools beside it",
    "add_generation_prompt": "it is set by the call", "thinking": "the variable is enable_thinking",
}
"""Names that chat_template_kwargs may not hold, and why."""
REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")
"""Where a message may carry reasoning; transformers fills the first for templates."""
SYSTEM_ROLES = ("system", "developer")
TOO_DEEP = "messages or tools are nested too deeply for a chat template"


def template_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages as a template sees them: checked, plain values only, keys whose value is None dropped.

    A message is ``{"role": …, "content": …}`` with a role of ``ROLES`` and content that is text or a list of parts
    ``{"type": "text", "text": …}``, ``{"type": "image"}``, ``audio`` or ``video``; an assistant's may be absent beside
    ``tool_calls``, ``tool_responses`` or reasoning, and a tool's may be an object. System and developer messages hold
    text only; a tool's parts of text become one text. Raises InputError naming the message by its index, counted
    from 0.
    """
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise InputError(f"messages must be a list of objects with role and content, not {type(messages).__name__}")
    if not messages:
        raise InputError("messages is empty: give at least one message with role and content")
    checked = []
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise InputError(f"messages[{index}] must be an object with role and content, not {_seen(message)}")
        plain = {key: value for key, value in plain_data(message).items() if value is not None}
        _check_role(plain, index)
        _check_content(plain, index)
        _check_calls(plain, index)
        if plain["role"] == "tool":
            plain["content"] = _result_text(plain["content"])
        checked.append(_with_reasoning(plain))
    return checked


def template_variables(given: Mapping[str, Any] | None) -> dict[str, Any]:
    """``chat_template_kwargs`` as arguments of ``ChatTemplate.render``. Raises InputError for anything but an object of
    names, and for names that are taken."""
    if given is None:
        return {}
    if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
        raise InputError(f"chat_template_kwargs must be an object of variables by name, not {_seen(given)}")
    for name in given:
        if name in RESERVED_VARIABLES:
            raise InputError(f"chat_template_kwargs holds {name}: {RESERVED_VARIABLES[name]}")
    variables = dict(given)
    if "enable_thinking" in variables:
        variables["thinking"] = bool(variables.pop("enable_thinking"))
    return variables


def plain_data(value: Any) -> Any:
    """A value rebuilt of plain types, so that a template gets no methods of richer ones; images, arrays and the like
    become ``<TypeName>`` (as transformers 5.23.0 does, ``_plain_template_data``). Raises InputError for what is nested
    without end."""
    try:
        return _plain(value)
    except RecursionError:
        raise InputError(TOO_DEEP) from None


def _plain(value: Any) -> Any:
    if value is None or type(value) in (str, int, float, bool):
        return value
    for kind in (str, int, float):
        if isinstance(value, kind):
            # a subclass, such as an enum, stripped to its base
            return getattr(kind, f"__{kind.__name__}__")(value)
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, tuple):
        return tuple(_plain(item) for item in value)
    if isinstance(value, np.generic):
        return _plain(value.item())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return f"<{type(value).__name__}>"


def _check_role(message: Mapping[str, Any], index: int) -> None:
    role = message.get("role")
    if role not in ROLES:
        raise InputError(f"messages[{index}] has role {_seen(role)}; a role is one of {', '.join(ROLES)}")


def _check_content(message: Mapping[str, Any], index: int) -> None:
    content, role = message.get("content"), message["role"]
    if isinstance(content, str) or (role == "tool" and isinstance(content, dict)):
        return
    if content is None:
        if role in ("assistant", "model") and any(
            message.get(key) for key in ("tool_calls", "tool_responses", *REASONING_KEYS)
        ):
            return
        raise InputError(f"messages[{index}] ({role}) has no content")
    if not isinstance(content, list | tuple):
        raise InputError(f"messages[{index}] ({role}): content must be text or a list of parts, not {_seen(content)}")
    for number, part in enumerate(content):
        where = f"messages[{index}].content[{number}]"
        if not isinstance(part, dict):
            raise InputError(f"{where} must be an object with a type, not {_seen(part)}")
        if part.get("type") not in PART_TYPES:
            raise InputError(f"{where} has type {_seen(part.get('type'))}; a part is one of {', '.join(PART_TYPES)}")
        if part["type"] != "text" and role in SYSTEM_ROLES:
            raise InputError(f"{where}: a {role} message holds text only; put the {part['type']} into a user message")
        if part["type"] == "text" and not isinstance(part.get("text"), str):
            raise InputError(f"{where} is a text part whose text is {_seen(part.get('text'))}")


def _result_text(content: Any) -> Any:
    """A tool's result: a list of text parts as one text, anything else as it is."""
    if not isinstance(content, list | tuple) or any(part["type"] != "text" for part in content):
        return content
    return "".join(part["text"] for part in content)


def _check_calls(message: Mapping[str, Any], index: int) -> None:
    calls = message.get("tool_calls", [])
    if not isinstance(calls, list | tuple):
        raise InputError(f"messages[{index}]: tool_calls must be a list, not {_seen(calls)}")
    for number, call in enumerate(calls):
        where = f"messages[{index}].tool_calls[{number}]"
        function = call.get("function") if isinstance(call, dict) else None
        name = function.get("name") if isinstance(function, dict) else None
        if not isinstance(name, str):
            raise InputError(f"{where} must be an object whose function has a name, not {_seen(call)}")
        assert function is not None
        function["arguments"] = _arguments(function.get("arguments"), f"{where} ({_seen(name)}): arguments")


def _arguments(given: Any, where: str) -> dict[str, Any] | str:
    """The arguments of a call as an object: decoded where they are JSON in a text, as OpenAI's API writes them. The
    form that the model writes, ``key:value,…``, stays as it is."""
    if given is None or (isinstance(given, str) and not given.strip()):
        return {}
    if isinstance(given, dict):
        return given
    if not isinstance(given, str):
        raise InputError(f"{where} must be an object, or JSON of one, not {_seen(given)}")
    try:
        found = json.loads(given)
    except (ValueError, RecursionError) as fault:
        if parse_call(f"call:f{{{given}}}".split('<|"|>')) is not None:
            return given
        raise InputError(f"{where} is not valid JSON ({shown(str(fault), 80)}): {_seen(given)}") from None
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise InputError(f"{where} must be JSON of an object, not {_seen(given)}")
    return plain_data(found)


def _with_reasoning(message: dict[str, Any]) -> dict[str, Any]:
    reasoning = next((message[key] for key in REASONING_KEYS if key in message), None)
    if reasoning is None:
        return message
    return {"thinking": reasoning, **message, "reasoning_content": reasoning}


def _seen(value: Any) -> str:
    return shown(value, 60)

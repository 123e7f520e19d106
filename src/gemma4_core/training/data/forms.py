"""Lines as datasets and other tools write them, made into the three kinds that training reads."""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from gemma4_core.errors import InputError
from gemma4_core.formatting import shown
from gemma4_core.text.messages import REASONING_KEYS

Line = dict[str, Any]
KINDS = {"messages": ("messages",), "prompt": ("prompt", "completion"), "text": ("text",)}
"""Keys of each kind of line, by the one that tells it."""
FORMS = ("conversations", "instruction")
"""Keys that tell the forms of other tools: ShareGPT's and Alpaca's."""
ALPACA = {"question": ("instruction",), "input": ("input", "context"), "answer": ("output", "response")}
"""Keys of an instruction, what it is about, and the answer: Alpaca's, or in Dolly's words."""
BESIDE = ("system", "tools", "functions", "chat_template_kwargs")
"""Keys that a line may have beside those of its kind."""
LINE_KEYS = (
    "messages", "prompt", "completion", "text", *FORMS, "input", "context", "output", "response", "history", *BESIDE,
)
MESSAGE_KEYS = (
    "role", "content", "name", "tool_calls", "tool_call_id", "tool_responses", "function_call", "tools",
    *REASONING_KEYS, "weight", "train",
)
REFUSED = {
    "chosen": "preference pairs (chosen, rejected) are not supported; give prompt and completion",
    "rejected": "preference pairs (chosen, rejected) are not supported; give prompt and completion",
    "weight": "a weight stands in a message, not beside messages",
    "train": "train stands in a message, not beside messages",
}
"""Keys of a line that would change what is trained on, and are not supported."""
CLOSELY = 32
"""Keys of an object that are compared with those that are known."""
ANSWERS = ("assistant", "model")
SHAREGPT_ROLES = {
    "human": "user", "user": "user", "prompter": "user", "gpt": "assistant", "assistant": "assistant",
    "model": "assistant", "ai": "assistant", "bot": "assistant", "chatgpt": "assistant", "bing": "assistant",
    "bard": "assistant", "system": "system", "developer": "developer", "tool": "tool", "observation": "tool",
    "function": "tool", "function_response": "tool", "tool_response": "tool", "function_call": "assistant",
    "tool_call": "assistant",
}
CALLS = ("function_call", "tool_call")
"""ShareGPT's names for turns that are calls of tools, as JSON."""


def plain_line(data: Mapping[str, Any]) -> Line:
    """A line as one of ``KINDS``, null values left out; media and keys that nobody knows stay as they are.

    ``system`` has become the first message where there are messages, ``functions`` and ``tools`` written as text are
    ``tools``. Raises InputError.
    """
    line = {key: value for key, value in data.items() if value is not None and not (key == "system" and value == "")}
    for key, why in REFUSED.items():
        if key in line:
            raise InputError(f"key {key}: {why}")
    told = told_kind(line)
    if told == "conversations":
        line["messages"] = from_sharegpt(line.pop("conversations"))
    elif told == "instruction":
        line = from_alpaca(line)
    elif told == "messages":
        line["messages"] = _from_messages(line["messages"])
    elif told == "prompt" and (isinstance(line["prompt"], list) or isinstance(line.get("completion"), list)):
        line["messages"] = from_prompt_messages(line.pop("prompt"), line.pop("completion", None))
    _lift_tools(line)
    _check_context(line)
    if "messages" in line:
        check_messages(line["messages"])
        line["messages"] = [_plain_message(message, index) for index, message in enumerate(line["messages"])]
        if "system" in line:
            line["messages"] = with_system(line.pop("system"), line["messages"])
    return line


def told_kind(line: Line) -> str:
    """The key that tells what kind a line is. A prompt without completion beside messages is their beginning, and the
    text beside an instruction and its answer is both of them written out. Raises InputError for none, or for two."""
    told = [key for key in (*KINDS, *FORMS) if key in line]
    if "prompt" in told and "completion" not in line and {"messages", "conversations"} & {*told}:
        told.remove("prompt")
    if {*told} == {"text", "instruction"} and any(key in line for key in ALPACA["answer"]):
        told.remove("text")
    if len(told) == 1:
        return told[0]
    what = f"both {told[0]} and {told[1]}" if told else f"keys {shown(list(line))}"
    way = f"choose with --column {told[0]}={told[0]}" if told else "name columns with --column, as in messages=chat"
    raise InputError(f"expected messages, or prompt and completion, or text; got {what}; {way}")


def _from_messages(messages: Any) -> Any:
    """Messages, also as JSON in a text, and also with ShareGPT's ``from`` and ``value``. Raises InputError."""
    if isinstance(messages, str) and messages.lstrip().startswith("["):
        messages = _decoded(messages, "messages")
    turns = isinstance(messages, list) and any(isinstance(turn, dict) and "from" in turn for turn in messages)
    return from_sharegpt(messages) if turns else messages


def _lift_tools(line: Line) -> None:
    """Move tools that stand in a message beside the messages. Raises InputError where there are others already."""
    messages = line.get("messages")
    for index, message in enumerate(messages if isinstance(messages, list) else ()):
        if isinstance(message, dict) and message.get("tools"):
            if ("tools" in line and line["tools"] not in ([], "[]", message["tools"])) or "functions" in line:
                raise InputError(f"messages[{index}]: there are other tools already; declare all of them in one place")
            line["tools"] = message["tools"]
    if isinstance(messages, list):
        line["messages"] = [
            {key: value for key, value in message.items() if key != "tools"} if isinstance(message, dict) else message
            for message in messages
        ]


def check_messages(messages: Any) -> None:
    """Raise InputError for anything but a conversation with an answer; the processor looks closer."""
    if not isinstance(messages, list) or not messages:
        raise InputError(f"messages must be a list of objects with role and content, got {shown(messages)}")
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise InputError(f"messages[{index}] must be an object with role and content, got {shown(message)}")
        content = message.get("content")
        for number, part in enumerate(content if isinstance(content, list) else ()):
            if not isinstance(part, str) and not (isinstance(part, dict) and isinstance(part.get("type"), str)):
                where = f"messages[{index}].content[{number}]"
                raise InputError(f"{where} must be text or an object with a type, got {shown(part)}")
    if not any(message["role"] in ANSWERS for message in messages):
        raise InputError("messages holds no assistant message, there is nothing to learn")


def with_system(system: Any, messages: list[Line]) -> list[Line]:
    """Messages with a line's ``system`` in front. Raises InputError where there is one already."""
    if not isinstance(system, str | list):
        raise InputError(f"system must be text, got {shown(system)}")
    if messages[0]["role"] in ("system", "developer"):
        raise InputError(f"there are both system and a {messages[0]['role']} message; leave one of them out")
    return [{"role": "system", "content": system}, *messages]


def _check_context(line: Line) -> None:
    """Decode tools, and check what goes with messages or prompts. Raises InputError."""
    if "functions" in line:
        if "tools" in line:
            raise InputError("there are both tools and functions; leave one of them out")
        functions = _decoded(line.pop("functions"), "functions")
        if not isinstance(functions, list):
            raise InputError(f"functions must be a list of objects, got {shown(functions)}")
        line["tools"] = [{"type": "function", "function": function} for function in functions]
    if "tools" in line:
        line["tools"] = _decoded(line["tools"], "tools") or None
    for key in ("system", "tools", "chat_template_kwargs"):
        if "text" in line and not {"messages", "prompt"} & line.keys() and line.get(key) is not None:
            raise InputError(f"{key} goes with messages, or with prompt and completion, not with text")


def _decoded(value: Any, key: str) -> Any:
    """A value that datasets with fixed columns write as JSON in a text."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value) if value.strip() else None
    except (ValueError, RecursionError):
        raise InputError(f"{key} is text that is not valid JSON: {shown(value)}") from None


def _plain_message(message: Line, index: int) -> Line:
    """A message with a weight of 0 or 1, and OpenAI's older ``function_call`` as a tool call. Raises InputError."""
    plain = {key: value for key, value in message.items() if value is not None or key == "content"}
    weight = _weight(plain, index)
    call = plain.pop("function_call", None)
    if call is not None:
        if "tool_calls" in plain or not isinstance(call, dict):
            raise InputError(f"messages[{index}]: function_call must be an object, without tool_calls beside it")
        plain["tool_calls"] = [{"type": "function", "function": call}]
    if plain["role"] == "function":
        plain["role"] = "tool"
    return plain if weight is None else plain | {"weight": weight}


def _weight(message: Line, index: int) -> int | None:
    """The one of ``weight`` and ``train`` that a message has, taken out of it."""
    found = {key: message.pop(key) for key in ("weight", "train") if key in message}
    for key, value in found.items():
        if not isinstance(value, bool | int | float) or value not in (0, 1):
            what = "0 or 1" if key == "weight" else "true or false"
            raise InputError(f"messages[{index}]: {key} must be {what}, got {shown(value)}")
    if not found:
        return None
    if len({int(value) for value in found.values()}) > 1:
        raise InputError(f"messages[{index}]: weight and train say different things")
    key, value = next(iter(found.items()))
    if value and message["role"] not in ANSWERS:
        raise InputError(f"messages[{index}] ({message['role']}): {key} {shown(value)}, but only an assistant's "
                         "messages are trained on")
    return int(value)


def from_sharegpt(turns: Any) -> list[Line]:
    """ShareGPT's ``conversations`` of ``from`` and ``value`` as messages. A result without a name answers the oldest
    call that has none yet. Raises InputError."""
    if isinstance(turns, str):
        turns = _decoded(turns, "conversations")
    if not isinstance(turns, list) or not turns:
        raise InputError(f"conversations must be a list of objects with from and value, got {shown(turns)}")
    messages: list[Line] = []
    asked: list[Any] = []
    for index, turn in enumerate(turns):
        if isinstance(turn, dict) and isinstance(turn.get("role"), str):
            messages.append(turn)
            continue
        said = turn.get("from") if isinstance(turn, dict) else None
        role = SHAREGPT_ROLES.get(said.lower()) if isinstance(said, str) else None
        value = turn.get("value") if isinstance(turn, dict) else None
        objects = role == "tool" or (isinstance(said, str) and said.lower() in CALLS)
        if not isinstance(said, str) or not isinstance(value, (str, dict, list) if objects else str):
            raise InputError(f"conversations[{index}] must be an object with from and value, got {shown(turn)}")
        if role is None:
            raise InputError(f"conversations[{index}]: from {shown(said)} is not one of {', '.join(SHAREGPT_ROLES)}")
        rest = {key: item for key, item in turn.items() if key not in ("from", "value")}
        if said.lower() in CALLS:
            called = _decoded(value, f"conversations[{index}] ({said})")
            calls = called if isinstance(called, list) else [called]
            asked = [call.get("name") if isinstance(call, dict) else None for call in calls]
            content: Line = {"content": "", "tool_calls": [{"type": "function", "function": call} for call in calls]}
        elif role == "tool":
            content = {"content": value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}
            name = asked.pop(0) if asked else None
            if isinstance(name, str) and not {"name", "tool_call_id"} & rest.keys():
                content["name"] = name
        else:
            content, asked = {"content": value}, []
        messages.append({**rest, "role": role, **content})
    return messages


def from_alpaca(line: Line) -> Line:
    """Alpaca's ``instruction``, ``input``, ``output`` and ``history`` as prompt and completion, or as messages; Dolly's
    ``context`` and ``response`` are input and output. Raises InputError."""
    own = [*(key for keys in ALPACA.values() for key in keys), "history", "text"]
    rest = {key: value for key, value in line.items() if key not in own or key == "instruction"}
    found = {part: next((key for key in keys if key in line), keys[0]) for part, keys in ALPACA.items()}
    for part, key in found.items():
        if not isinstance(line.get(key, "" if part == "input" else None), str):
            raise InputError(f"{key} must be text, got {shown(line.get(key))}")
    about, answer = line.get(found["input"], ""), line[found["answer"]]
    question = "\n".join(part for part in (line["instruction"], about) if part)
    history = line.get("history") or []
    if not isinstance(history, list) or not all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair) for pair in history
    ):
        raise InputError(f"history must be a list of pairs of texts, got {shown(history)}")
    if not history:
        return {**rest, "prompt": question, "completion": answer}
    pairs = [*history, [question, answer]]
    roles = ("user", "assistant")
    messages = [{"role": role, "content": text} for pair in pairs for role, text in zip(roles, pair, strict=True)]
    return {**rest, "messages": messages}


def from_prompt_messages(prompt: Any, completion: Any) -> list[Line]:
    """``prompt`` and ``completion`` that are messages as one conversation; of it the completion is trained on. Raises
    InputError."""
    sides = []
    for key, value in (("prompt", prompt), ("completion", completion)):
        role = "user" if key == "prompt" else "assistant"
        held = [{"role": role, "content": value}] if isinstance(value, str) else value
        if not isinstance(held, list) or not all(isinstance(message, dict) for message in held):
            raise InputError(f"{key} must be text or a list of messages, got {shown(value)}")
        sides.append(held)
    prompt = [{**message, "weight": 0} if message.get("role") in ANSWERS else message for message in sides[0]]
    return [*prompt, *sides[1]]


def unknown_keys(data: Mapping[str, Any], media: Collection[str], template: str, told: bool = False) -> list[str]:
    """Keys of a line and its messages that nothing reads: no key of ours, no medium, and not in the text of the chat
    template. Raises InputError for one that looks like a slip of the pen; of the line's own only where the user has not
    ``told`` which of them count."""
    # what the kind needs is there, so only what may be left out can be meant by another key
    more = ("input", "context", "history") if "instruction" in data else ()
    meant = () if told else (*BESIDE, *more, *media)
    found = _strange(data, (*LINE_KEYS, *media), "", meant)
    for index, message in enumerate(data.get("messages", ())):
        strange = _strange(message, MESSAGE_KEYS, f"messages[{index}]: ", MESSAGE_KEYS)
        found += [f"messages[].{key}" for key in strange if key not in template]
    variables = data.get("chat_template_kwargs")
    if isinstance(variables, Mapping):
        found += [f"chat_template_kwargs.{key}" for key in variables if isinstance(key, str) and key not in template]
    return list(dict.fromkeys(found))


def _strange(data: Mapping[str, Any], known: Sequence[str], where: str, meant: Sequence[str]) -> list[str]:
    """Keys that are not known. Raises InputError for one that is spelt nearly like one that is meant and absent."""
    strange, absent = [key for key in data if key not in known], [key for key in meant if key not in data]
    for key in strange[:CLOSELY]:
        near = difflib.get_close_matches(key[:40], absent, 1, 0.8)
        if near:
            raise InputError(f"{where}key {shown(key)} is not known; did you mean {near[0]}?")
    return strange

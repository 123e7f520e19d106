"""tokenizer_config.json: the special tokens by their names, added tokens and chat templates that it declares."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gemma4_core.config.files import read_json
from gemma4_core.contracts import Context, SideFile
from gemma4_core.errors import TokenizerError
from gemma4_core.formatting import shown, shown_path

CONFIG_NAME = "tokenizer_config.json"
DEFAULT_TOKENS = {
    "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>", "mask_token": "<mask>",
}
"""What transformers' GemmaTokenizer (5.23.0, models/gemma/tokenization_gemma.py) assumes where the file is silent."""
_CONTROL = re.compile(r"<\|[^<>|\s]+\|?>|<[^<>|\s]+\|>")


def is_control(token: str) -> bool:
    """Whether an added token has the shape of Gemma 4's control tokens: ``<|x>``, ``<x|>`` or ``<|x|>``.

    The released tokenizer flags some of them (``<|channel>``, ``<|tool_call>``) as not special, so that the flag alone
    does not tell what to leave out of an answer.
    """
    return _CONTROL.fullmatch(token) is not None


@dataclass(frozen=True)
class AddedToken:
    """A token that tokenizer_config.json adds to the vocabulary."""

    content: str
    special: bool


@dataclass(frozen=True)
class TokenizerSettings:
    """What tokenizer_config.json says; empty where the folder has none."""

    path: Path | SideFile
    named: Mapping[str, str] = field(default_factory=lambda: dict(DEFAULT_TOKENS))
    """Special tokens by key, such as ``bos_token``, with transformers' defaults; templates see them by these names."""
    special: tuple[str, ...] = ()
    """Every token that the file calls special, under whatever key."""
    added: Mapping[int, AddedToken] = field(default_factory=dict)
    """``added_tokens_decoder`` by id."""
    templates: Mapping[str, str] = field(default_factory=dict)
    """``chat_template`` by name; a lone one is ``default``."""

    @staticmethod
    def load(checkpoint: Context | Path) -> TokenizerSettings:
        """Read a checkpoint's tokenizer_config.json. Raises TokenizerError naming the file and key."""
        context = checkpoint if isinstance(checkpoint, Context) else Context(checkpoint)
        path = context.file(CONFIG_NAME)
        if path is None:
            return TokenizerSettings((context.path or Path()) / CONFIG_NAME)
        raw = read_json(path, error=TokenizerError)
        keys = {key: value for key, value in raw.items() if key.endswith("_token") and value is not None}
        named = {key: _content(value, path, key) for key, value in keys.items() if not isinstance(value, bool)}
        extra: list[str] = []
        for key in ("extra_special_tokens", "additional_special_tokens", "model_specific_special_tokens"):
            value = raw.get(key) or ()
            if isinstance(value, dict):
                named |= {name: _content(item, path, key) for name, item in value.items()}
            elif isinstance(value, list | tuple):
                extra += [_content(item, path, key) for item in value]
            else:
                raise TokenizerError(f"{shown_path(path)}: {key} must be a list or an object, not {shown(value)}")
        absent = {key: token for key, token in DEFAULT_TOKENS.items() if key not in raw}
        special = tuple(dict.fromkeys([*named.values(), *extra]))
        return TokenizerSettings(
            path, absent | named, special, _added(raw, path), template_texts(raw.get("chat_template"), path)
        )

    def misplaced(self, number: int, known: int | None, file: str) -> TokenizerError:
        """The error for an added token whose id the vocabulary in ``file`` gives to it otherwise, or cannot hold."""
        token = shown(self.added[number].content)
        has = f"{file} has no place for it" if known is None else f"it is {known} in {file}"
        return TokenizerError(f"{shown_path(self.path)}: added_tokens_decoder gives {token} the id {number}, but {has}")


def template_texts(value: Any, path: Path | SideFile) -> dict[str, str]:
    """``chat_template`` of a JSON file by name: absent, a string, a list of ``{name, template}``, or an object.

    Raises TokenizerError naming the file.
    """
    if value is None:
        return {}
    if isinstance(value, str):
        return {"default": value}
    if isinstance(value, dict) and all(isinstance(text, str) for text in value.values()):
        return value
    if isinstance(value, list) and all(
        isinstance(item, dict) and isinstance(item.get("name"), str) and isinstance(item.get("template"), str)
        for item in value
    ):
        return {item["name"]: item["template"] for item in value}
    raise TokenizerError(
        f"{shown_path(path)}: chat_template must be a string or a list of objects with name and template, "
        f"not {shown(value)}"
    )


def _content(value: Any, path: Path | SideFile, key: str) -> str:
    content = value.get("content") if isinstance(value, dict) else value
    if not isinstance(content, str):
        raise TokenizerError(f"{shown_path(path)}: {key} must be a token's text, not {shown(value)}")
    return content


def _added(raw: Mapping[str, Any], path: Path | SideFile) -> dict[int, AddedToken]:
    key = "added_tokens_decoder"
    value = raw.get(key) or {}
    if not isinstance(value, dict):
        raise TokenizerError(f"{shown_path(path)}: {key} must be an object of tokens by id, not {shown(value)}")
    added = {}
    for number, token in value.items():
        if not (number.isascii() and number.isdecimal() and len(number) < 10):
            raise TokenizerError(f"{shown_path(path)}: {key} has {shown(number)}, which is not a token id")
        special = isinstance(token, dict) and token.get("special") is True
        added[int(number)] = AddedToken(_content(token, path, f"{key}.{number}"), special)
    return dict(sorted(added.items()))

"""The lines of a batch: rows that are well formed, faults of the others, and the ids of all."""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemma4_core.config import GenerationConfig
from gemma4_core.errors import Gemma4Error, InputError
from gemma4_core.formatting import shown, shown_path
from gemma4_core.json_lines import numbered_lines
from gemma4_core.openai import KNOWN, check_text, parameters, parsed, sampling
from gemma4_core.plugins.origin import nearest

if TYPE_CHECKING:
    from gemma4_core.generation.requests import Request

LINE_LIMIT = 64 << 20
"""Bytes of a line: media may be written into it."""
ID_LIMIT = 512
"""Characters of an id."""
OTHERS = ("tools", "n", "constraint", "thinking_budget", "top_logprobs")
"""Arguments of a request that a line gives as they are."""
URLS = ("/v1/chat/completions", "/chat/completions")
OUTER = ("custom_id", "method", "url", "body")
"""Keys of OpenAI's lines."""
NEUTRAL = GenerationConfig((), 0, None)
"""Stands for the folder's settings while lines are checked."""
FAULTS_KEPT = 3
"""Faulty lines that are told on the command line; the errors file has all."""


@dataclass(frozen=True)
class Defaults:
    """What holds where a line says nothing else: the command's options."""

    values: Mapping[str, Any]
    """Sampling options by parameter name."""
    thinking: bool = False
    raw: bool = False
    literal: bool = False


@dataclass(frozen=True)
class Row:
    """A line that is well formed."""

    number: int
    id: str
    kind: str
    """``messages``, ``prompt`` or ``text``."""
    prompt: Any
    asked: Mapping[str, Any]
    """Keyword arguments of ``Request`` that the line gives, and ``logprobs``."""

    @property
    def logprobs(self) -> bool:
        """Whether log-probabilities are wanted."""
        return bool(self.asked.get("logprobs", "top_logprobs" in self.asked))

    def request(self, defaults: Defaults, config: GenerationConfig, template: bool) -> Request:
        """The request for the row. ``config`` is the folder's, ``template`` whether it has a chat template, which a
        ``prompt`` then goes through. Raises InputError for a value outside its bounds."""
        from gemma4_core.generation.requests import Request

        asked = {**defaults.values, **self.asked}
        chosen = sampling(config, asked)
        chosen["seed"] = seed_of(self.id) if chosen.get("seed") is None else chosen["seed"]
        others = {name: asked[name] for name in OTHERS if name in asked}
        chat = self.kind == "messages" or (self.kind == "prompt" and template and not defaults.raw)
        messages = self.prompt if self.kind == "messages" else [{"role": "user", "content": self.prompt}]
        return Request(
            None if chat else self.prompt, messages=messages if chat else None,
            max_new_tokens=asked.get("max_new_tokens"), stop=asked.get("stop", ()),
            thinking=asked.get("thinking", defaults.thinking), literal=defaults.literal, **chosen, **others,
        )


@dataclass(frozen=True)
class Fault:
    """A line that cannot be used."""

    number: int
    id: str
    code: str
    message: str
    """One sentence with the line's number."""


@dataclass
class Batch:
    """The lines of an input file. Only ids are kept, and lines are read again when they are answered."""

    path: Path
    defaults: Defaults
    ids: dict[str, int] = field(default_factory=dict)
    """Every line's id, with its number."""
    kinds: set[str] = field(default_factory=set)
    bad: int = 0
    faults: list[Fault] = field(default_factory=list)
    """The first ones."""

    @classmethod
    def scanned(cls, path: Path, defaults: Defaults) -> Batch:
        """Read and check all lines. Raises InputError where the file cannot be read, where ids occur twice, and where
        no line can be used."""
        batch = cls(path, defaults)
        twice: list[str] = []
        for line in batch.read():
            if line.id in batch.ids:
                twice.append(f"lines {batch.ids[line.id]} and {line.number} have the id {shown(line.id, 60)}")
            batch.ids.setdefault(line.id, line.number)
            if isinstance(line, Row):
                batch.kinds.add(line.kind)
            else:
                batch.bad += 1
                batch.faults += [line] if len(batch.faults) < FAULTS_KEPT else []
        where = f"--input {shown_path(path)}"
        if twice:
            more = f", and {len(twice) - 1} more lines repeat one" if len(twice) > 1 else ""
            raise InputError(f"{where}: {twice[0]}{more}; give each line an id of its own")
        if not batch.ids:
            raise InputError(f"{where}: holds no lines; give an object with messages, prompt or text on each")
        if batch.bad == len(batch.ids):
            raise InputError(f"{where}: none of {batch.bad} lines can be used: {batch.faults[0].message}")
        return batch

    def read(self) -> Iterator[Row | Fault]:
        """Every line that is not empty, checked. Raises InputError for a file that cannot be read."""
        for number, line in numbered(self.path):
            yield read(number, line, self.defaults)

    def again(self) -> Iterator[Row | Fault]:
        """The same lines once more. Raises InputError where the file has changed since they were checked."""
        for line in self.read():
            if self.ids.get(line.id) != line.number:
                raise InputError(f"--input {shown_path(self.path)}: line {line.number} has changed while the batch "
                                 "ran; run it again")
            yield line


def numbered(path: Path) -> Iterator[tuple[int, bytes | None]]:
    """Lines that are not empty, by number; None for one that is too long. Raises InputError for a file that cannot be
    read."""
    where = f"--input {shown_path(path)}"
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise InputError(f"{where}: is not a regular file; it is read twice, so a pipe will not do")
        with open(path, "rb") as file:
            yield from numbered_lines(file, LINE_LIMIT)
    except OSError as fault:
        raise InputError(f"{where}: {fault.strerror or fault}; check the path") from fault
    except ValueError as fault:
        raise InputError(f"{where}: {fault}") from fault


def read(number: int, line: bytes | None, defaults: Defaults) -> Row | Fault:
    """A line as a row, or what is wrong with it. A line without an id has its number."""
    own, code = str(number), "invalid_json"
    try:
        if line is None:
            raise InputError(f"longer than {LINE_LIMIT >> 20} MiB")
        data = parsed(line)
        if not isinstance(data, dict):
            raise InputError(f"expected an object such as {{\"messages\": […]}}, got {shown(data, 60)}")
        check_text(data, line)
        code = "invalid_request"
        own = identity(data, own)
        row = Row(number, own, *parameters(body(data)))
        row.request(defaults, NEUTRAL, True)
        return row
    except Gemma4Error as fault:
        return Fault(number, own, code, f"line {number}: {fault}"[:400])


def identity(data: Mapping[str, Any], number: str) -> str:
    """A line's ``custom_id``, or its ``id``. Raises InputError for anything but text or a whole number."""
    given = [key for key in ("custom_id", "id") if data.get(key) is not None]
    if not given:
        return number
    if len(given) > 1:
        raise InputError("custom_id and id are given; give one of them")
    value = data[given[0]]
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value or len(value) > ID_LIMIT:
        raise InputError(f"{given[0]} {shown(value, 60)}: must be text of 1 to {ID_LIMIT} characters")
    return value


def body(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """The parameters of a line: those of ``body`` in OpenAI's form, else its own. Raises InputError."""
    if "body" not in data:
        return {key: value for key, value in data.items() if key not in ("custom_id", "id", "method", "url")}
    for key in data:
        if key not in (*OUTER, "id"):
            hint = "it belongs into body" if key in KNOWN else "a line has custom_id, method, url and body"
            raise InputError(f"unknown key {shown(key, 60)} beside body: {hint}")
    if data.get("method") not in (None, "POST"):
        raise InputError(f"method {shown(data['method'], 60)}: must be POST")
    if data.get("url") not in (None, *URLS):
        close = nearest(str(data["url"]), URLS).rstrip("?")
        raise InputError(f"url {shown(data['url'], 60)}: must be {URLS[0]}{close}")
    if not isinstance(data["body"], dict):
        raise InputError(f"body {shown(data['body'], 60)}: must be an object")
    return data["body"]


def seed_of(id: str) -> int:
    """The seed of a row that has none: equal in every run."""
    return int.from_bytes(hashlib.sha256(id.encode()).digest()[:4], "big")

"""Lines as examples: token ids, which of them are trained on, and the media that belong to them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gemma4_core.checkpoint.progress import progress
from gemma4_core.errors import Gemma4Error, InputError
from gemma4_core.formatting import shown_path
from gemma4_core.processing.messages import kind
from gemma4_core.text.prompt import has_text
from gemma4_core.training.batch import IGNORED
from gemma4_core.training.data.columns import DATASET_MEDIA, media_names
from gemma4_core.training.data.conversations import Conversations
from gemma4_core.training.data.forms import unknown_keys, with_system
from gemma4_core.training.data.records import Record, local, localised, read_records, refuse
from gemma4_core.training.data.stored_media import StoredMedium

if TYPE_CHECKING:
    from gemma4_core.contracts import ModalityTower
    from gemma4_core.processing.inputs import PreparedInputs
    from gemma4_core.processing.processor import GemmaMultimodalProcessor

LONGEST_TOKEN = 64
"""Characters of a token, generously: what lies beyond so many of them is never encoded only to be cut off."""
LONGEST = 2048
"""Default length limit, where the model's context is not shorter."""


@dataclass(frozen=True)
class Encoding:
    """How lines become ids."""

    max_length: int | None = None
    """Ids of an example at most; None is 2048 or the model's context."""
    overlong: str = "truncate"
    """What becomes of longer ones: ``truncate`` keeps the beginning, ``drop`` leaves them out. Those with media are
    always left out: a medium cannot be cut."""
    mask_prompt: bool = True
    """Whether only the model's own turns and completions are trained on."""
    raw: bool = False
    """Whether prompts and completions go without the chat template."""
    thinking: bool = False
    """Whether the template lets the model think."""


@dataclass(frozen=True, eq=False)
class Example:
    """One example."""

    ids: np.ndarray
    """int32 ``[T]``."""
    labels: np.ndarray
    """int32 ``[T]``: the ids, -100 where nothing is trained on; never the first one."""
    sources: Mapping[str, Sequence[Any]]
    """Its media by modality, in the order of their placeholders."""
    where: str
    """File and row."""


@dataclass(frozen=True, eq=False)
class Examples:
    """What a file or a folder holds, ready to be made into batches."""

    items: Sequence[Example]
    limit: int
    """The longest that an example may be, and the length of packed rows."""
    truncated: int = 0
    dropped: int = 0
    ignored: Mapping[str, int] = field(default_factory=dict)
    """Keys that nothing reads, and the lines that have them."""

    @cached_property
    def tokens(self) -> int:
        """Ids in all examples."""
        return sum(len(item.ids) for item in self.items)

    @cached_property
    def targets(self) -> int:
        """Ids that are trained on."""
        return sum(int((item.labels != IGNORED).sum()) for item in self.items)

    @cached_property
    def digest(self) -> str:
        """A hash of ids, labels and names of media: equal where a run may go on."""
        state = hashlib.sha256()
        for item in self.items:
            state.update(item.ids.tobytes() + b"|" + item.labels.tobytes())
            state.update(repr([(k, [*map(name_of, filter(named, s))]) for k, s in item.sources.items()]).encode())
        return state.hexdigest()[:32]

    def split(self, fraction: float, seed: int) -> tuple[Examples, Examples]:
        """All but a random share of the examples, and that share. Raises InputError where either would be empty."""
        held = round(len(self.items) * fraction) or 1
        if held >= len(self.items):
            raise InputError(f"validation {fraction:g}: {len(self.items)} examples are too few to split")
        chosen = set(np.random.default_rng([seed, 1]).permutation(len(self.items))[:held].tolist())
        rest = [item for index, item in enumerate(self.items) if index not in chosen]
        held_out = [self.items[index] for index in sorted(chosen)]
        return Examples(rest, self.limit, self.truncated, self.dropped, self.ignored), Examples(held_out, self.limit)


def named(medium: Any) -> bool:
    """Whether a medium can be told from others without reading it."""
    return isinstance(medium, str | StoredMedium)


def name_of(medium: str | StoredMedium) -> str:
    """What tells a medium from others: its path, or the digest of one that stands in the data."""
    return medium if isinstance(medium, str) else medium.digest


def read_examples(
    path: Path | str, processor: GemmaMultimodalProcessor, encoding: Encoding | None = None,
    records: Sequence[Record] | None = None, columns: Mapping[str, str] | None = None, split: str | None = None,
) -> Examples:
    """The examples of a file or of a dataset folder; needs no weights.

    Args:
        path: JSON Lines, a JSON list, Parquet, Arrow, or a folder of such files, with rows of ``messages``, of
            ``prompt`` and ``completion``, or of ``text``. Media paths are relative to the file.
        processor: of the checkpoint that shall learn them.
        encoding: length limit, masking and so on.
        records: the rows, where they have been read before.
        columns: names of columns by the keys that they stand for, such as ``{"messages": "chat"}``.
        split: of a folder; None is ``train``, or the only one.

    Raises:
        InputError: naming file and row of the first row that cannot be used, a column that is not there, or that
            nothing is left.
    """
    encoder = Encoder(processor, encoding or Encoding())
    records = read_records(path, columns, split) if records is None else records
    items: list[Example] = []
    faults: list[str] = []
    with progress(len(records), "reading") as bar:
        for record in records:
            try:
                item = encoder.example(record)
            except Gemma4Error as fault:
                faults.append(f"{record.where}: {fault}")
            else:
                items += [] if item is None else [item]
            bar.update(1)
    refuse(faults)
    if not items:
        raise InputError(f"{shown_path(path)}: all {len(records)} examples are longer than {encoder.limit} tokens or "
                         f"have nothing to learn within them; raise --max-length")
    return Examples(items, encoder.limit, encoder.truncated, encoder.dropped, dict(encoder.conversations.ignored))


def modalities_of(records: Sequence[Record], specs: Sequence[ModalityTower]) -> list[str]:
    """Names of the modalities whose media stand in lines."""
    return [spec.name for spec in specs if any(uses(record, spec) for record in records)]


def uses(record: Record, spec: ModalityTower) -> bool:
    """Whether a line has media of a modality."""
    types = {kind(spec), f"{kind(spec)}_url", f"input_{kind(spec)}"}
    contents = [message.get("content") for message in record.data.get("messages", ())]
    parts = [part for content in contents if isinstance(content, list) for part in content if isinstance(part, dict)]
    return any(part.get("type") in types for part in parts) or bool(given(record, spec))


def given(record: Record, spec: ModalityTower) -> list[Any]:
    """Media beside a line's text: a list, or one, under ``images`` or ``image``."""
    value: Any = next((record.data[key] for key in media_names(spec) if key in record.data), [])
    return list(value) if isinstance(value, list) else [value]


class Encoder:
    """Makes examples of lines, and counts those that are cut or left out."""

    def __init__(self, processor: GemmaMultimodalProcessor, encoding: Encoding) -> None:
        """Raises InputError for a folder without tokenizer and for a limit beyond the model's context."""
        from gemma4_core.plugins import registry

        config = processor.context.config
        assert config is not None
        if not has_text(processor.tokenizer.inner):
            raise InputError(f"{processor.context.path} is opened without a tokenizer, so text cannot be trained on")
        longest = config.text_config.max_position_embeddings
        if encoding.max_length is not None and encoding.max_length > longest:
            raise InputError(f"--max-length {encoding.max_length}: the model's context is {longest}")
        self.processor, self.encoding, self.config = processor, encoding, config
        self.limit = encoding.max_length or min(LONGEST, longest)
        self.modalities = list({**registry.modalities, **{spec.name: spec for spec in processor.specs}}.values())
        self.media_keys = {name for spec in self.modalities for name in media_names(spec)}
        self.conversations = Conversations(processor, encoding.mask_prompt, encoding.thinking)
        self.soft = [spec.soft_token_id(config) for spec in processor.specs] + [config.pad_token_id]
        self.truncated = self.dropped = 0

    def example(self, record: Record) -> Example | None:
        """A line's example; None where it is too long or nothing of it is trained on. Raises a Gemma4Error."""
        media = self._media(record)
        self._count_ignored(record)
        if sum(map(len, media.values())) > self.limit:  # not even a token for each
            self.dropped += 1
            return None
        ids, trained, prepared = self._encoded(record, media)
        labels = np.where(trained & ~np.isin(ids, self.soft), ids, IGNORED).astype(np.int32)
        labels[0] = IGNORED
        if len(ids) > self.limit:
            if prepared.sources or self.encoding.overlong == "drop":
                self.dropped += 1
                return None
            ids, labels = ids[: self.limit], labels[: self.limit]
            self.truncated += 1
        if not (labels != IGNORED).any():
            self.dropped += 1
            return None
        return Example(ids, labels, prepared.sources, record.where)

    def _media(self, record: Record) -> dict[str, list[Any]]:
        """Media beside a line's text by keyword, also those that the model has no tower for: the processor says so."""
        media = {}
        for spec in self.modalities:
            if found := [local(value, record.path.parent) for value in given(record, spec)]:
                media[spec.media_keyword] = found
        absent = [key for key in DATASET_MEDIA if key in record.data and key not in self.media_keys]
        return media | {key: [record.data[key]] for key in absent}

    def _count_ignored(self, record: Record) -> None:
        """Count a line's keys that nothing reads. Raises InputError for one that is written wrongly."""
        known = [*self.media_keys, *DATASET_MEDIA]
        self.conversations.ignored.update(unknown_keys(
            record.data, known, self.conversations.template_text, record.mapped))

    def _encoded(self, record: Record, media: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, PreparedInputs]:
        """Ids int32 ``[T]``, whether each is trained on, and what the processor made."""
        data, templated = record.data, self.processor.template is not None and not self.encoding.raw
        if record.kind == "messages" or (record.kind == "prompt" and templated):
            variables = data.get("chat_template_kwargs")
            return self.conversations.encoded(conversation(record), data.get("tools"), variables, media)
        for key in ("system", "tools", "chat_template_kwargs"):
            if data.get(key) is not None:
                raise InputError(f"{key} needs the chat template, and this run goes without one")
        text = data["text" if record.kind == "text" else "prompt"]
        if record.kind == "text" and not media and self.encoding.overlong == "truncate":
            text = text[: self.limit * LONGEST_TOKEN]
        prepared = self.processor.prepare_inputs(text, **media)
        rest = [] if record.kind == "text" else self.processor.tokenizer.encode(data["completion"])
        if set(rest) & set(self.soft):
            raise InputError("the completion holds a placeholder of a medium; write it into the prompt")
        ids = [*prepared.input_ids, *rest]
        ends = self.config.eos_token_ids
        if ends and ids[-1] not in ends:
            ids.append(ends[0])
        trained = np.ones(len(ids), np.bool_)
        if record.kind == "prompt" and self.encoding.mask_prompt:
            trained[: len(prepared.input_ids)] = False
        return np.array(ids, np.int32), trained, prepared


def conversation(record: Record) -> list[dict[str, Any]]:
    """A line as messages, with media paths that start at its file's folder. Raises InputError."""
    if record.kind == "messages":
        return localised(record.data["messages"], record.path.parent)
    question, answer = record.data["prompt"], record.data["completion"]
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return with_system(record.data["system"], messages) if "system" in record.data else messages

"""config.json as a whole: the outer config with its towers, or a text-only checkpoint's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gemma4_core.config.files import CONFIG_LIMIT, read_json
from gemma4_core.config.models import FAMILIES, official_sizes
from gemma4_core.config.section import Section
from gemma4_core.config.text import LARGEST_VOCABULARY, TextConfig, parse_text
from gemma4_core.errors import ConfigError
from gemma4_core.formatting import shown, shown_path

CONFIG_FILE = "config.json"
NOT_MEDIA = ("text_config", "quantization_config")
DTYPES = ("bfloat16", "float16", "float32")


@dataclass(frozen=True)
class GemmaConfig:
    """A checkpoint's configuration. ``text_config`` is there for text-only checkpoints too."""

    model_type: str
    text_config: TextConfig
    media: Mapping[str, Any]
    """What stands under the other keys that end in ``_config``: the parts of towers, unread. Their plugins read them,
    through ``part``. Empty for text-only checkpoints."""
    image_token_id: int | None
    video_token_id: int | None
    audio_token_id: int | None
    boi_token_id: int | None
    eoi_token_id: int | None
    boa_token_id: int | None
    eoa_token_id: int | None
    eos_token_ids: tuple[int, ...]
    pad_token_id: int
    bos_token_id: int | None
    declared_dtype: str | None
    """Name of the type that the file says it computes in: bfloat16, float16 or float32; None where it says nothing."""
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
    """config.json as read: plugins find keys of their own here. Not checked."""
    where: str = field(default=CONFIG_FILE, repr=False, compare=False)
    """What errors call the file."""

    def part(self, key: str) -> Section | None:
        """A tower's part of config.json, for checked reading; None where it is absent or null. Raises ConfigError where
        it is not an object."""
        return Section(self.media, self.where).child(key)

    @property
    def dtype(self) -> str:
        """The declared type, bfloat16 where there is none."""
        return self.declared_dtype or DTYPES[0]

    @property
    def conditional(self) -> bool:
        """Whether the checkpoint is one that may have towers, with its text under ``model.language_model.``."""
        return self.model_type in FAMILIES

    @property
    def text_prefix(self) -> str:
        """What stands before the text tensors' names."""
        return "model.language_model." if self.conditional else "model."

    @property
    def vision_bidirectional(self) -> bool:
        """Whether tokens of one image see each other on sliding layers."""
        return self.text_config.use_bidirectional_attention == "vision"

    @property
    def num_hidden_layers(self) -> int:
        return self.text_config.num_hidden_layers


def load_config(folder: Path | str) -> GemmaConfig:
    """The config of a checkpoint folder. Raises ConfigError in one line for whatever is wrong with it."""
    return parse_config(read_raw_config(folder), shown_path(Path(folder) / CONFIG_FILE))


def read_raw_config(folder: Path | str) -> dict[str, Any]:
    """config.json of a folder as it stands. Raises ConfigError for a folder that is none or has none."""
    path, name = Path(folder), shown_path(folder)
    try:
        exists, is_folder = path.exists(), path.is_dir()
        has_config = is_folder and (path / CONFIG_FILE).exists()
    except (OSError, ValueError) as fault:
        raise ConfigError(f"{name} cannot be opened as a checkpoint folder: {fault}"[:480]) from fault
    if not exists:
        raise ConfigError(f"{name} does not exist; give the path of a checkpoint folder")
    if not is_folder:
        raise ConfigError(f"{name} is a file; give the folder that holds {CONFIG_FILE} and the *.safetensors files")
    if not has_config:
        raise ConfigError(f"{name} has no {CONFIG_FILE}, so it is not a checkpoint folder; give the one that has it")
    return read_json(path / CONFIG_FILE, CONFIG_LIMIT)


def parse_config(data: Mapping[str, Any], where: str = CONFIG_FILE) -> GemmaConfig:
    """A config from the object in config.json.

    Args:
        data: the object as read.
        where: what errors call the file.

    Raises:
        ConfigError: a key has a value that is wrong or not supported; the message names both.
    """
    outer = Section(data, where)
    check_model_type(outer)
    outer.only("tie_word_embeddings", (True,), True)
    family = FAMILIES.get(data["model_type"])
    inner = outer if family is None else outer.child("text_config")
    if inner is None:
        raise outer.fault("text_config", f"a {data['model_type']} checkpoint needs it")
    if family is not None:
        inner.only("model_type", (family.text_type,), family.text_type)
    text = parse_text(inner)
    # transformers saves its default as eoa_token_index beside the id that a file has under the other name
    eoa = "eoa_token_id" if data.get("eoa_token_id") is not None else "eoa_token_index"
    return GemmaConfig(
        model_type=data["model_type"],
        text_config=text,
        media={} if family is None else media_parts(data),
        image_token_id=special(outer, "image_token_id", 258_880),
        video_token_id=special(outer, "video_token_id", 258_884),
        audio_token_id=special(outer, "audio_token_id", 258_881),
        boi_token_id=special(outer, "boi_token_id", 255_999),
        eoi_token_id=special(outer, "eoi_token_id", 258_882),
        boa_token_id=special(outer, "boa_token_id", 256_000),
        eoa_token_id=special(outer, eoa, 258_883),
        eos_token_ids=outer.token_ids("eos_token_id", text.eos_token_ids, LARGEST_VOCABULARY) or (),
        pad_token_id=text.pad_token_id,
        bos_token_id=text.bos_token_id,
        declared_dtype=dtype_name(outer, inner),
        raw=data,
        where=where,
    )


def media_parts(data: Mapping[str, Any]) -> dict[str, Any]:
    """What a config.json says about towers, by key."""
    return {key: value for key, value in data.items() if is_media_key(key) and value is not None}


def is_media_key(key: str) -> bool:
    """Whether a key of config.json is that of a tower's part."""
    return key.endswith("_config") and key not in NOT_MEDIA


def check_model_type(outer: Section) -> None:
    """Refuse other models by name."""
    known = [*FAMILIES, *(family.text_type for family in FAMILIES.values())]
    if outer.data.get("model_type") not in known:
        whole = ", ".join(f"{shown(name)} ({', '.join(official_sizes(name))})" for name in FAMILIES)
        text = ", ".join(shown(family.text_type) for family in FAMILIES.values())
        raise outer.fault("model_type", f"supported are {whole} and {text} (text only)")


def special(section: Section, key: str, default: int) -> int | None:
    """A media token's id. It may lie outside a small vocabulary: such ids are never looked up in a table."""
    return section.optional_integer(key, default, 0, LARGEST_VOCABULARY)


def dtype_name(outer: Section, inner: Section) -> str | None:
    """The declared type, from the old spelling of the key too; the whole file's before that of its text part."""
    for section in (outer, inner):
        for key in ("dtype", "torch_dtype"):
            if section.get(key) is not None:
                return str(section.only(key, DTYPES, DTYPES[0]))
    return None

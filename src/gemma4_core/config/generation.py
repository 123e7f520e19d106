"""generation_config.json: how the checkpoint's makers sample and where they stop."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gemma4_core.config.files import CONFIG_LIMIT, read_json
from gemma4_core.config.outer import GemmaConfig
from gemma4_core.config.section import Section
from gemma4_core.config.text import LARGEST_VOCABULARY
from gemma4_core.contracts import Context
from gemma4_core.formatting import is_number, shown_path

GENERATION_FILE = "generation_config.json"


@dataclass(frozen=True)
class GenerationConfig:
    """Sampling defaults. Filters that are off are None; without ``do_sample`` generation is greedy."""

    eos_token_ids: tuple[int, ...]
    pad_token_id: int
    bos_token_id: int | None
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    suppress_tokens: tuple[int, ...] = ()


def load_generation_config(checkpoint: Context | Path | str, config: GemmaConfig) -> GenerationConfig:
    """A checkpoint's generation_config.json; what it leaves out, or its absence, is filled from the config.

    Raises ConfigError naming key and value.
    """
    context = checkpoint if isinstance(checkpoint, Context) else Context(Path(checkpoint))
    path = context.file(GENERATION_FILE)
    if path is None:
        return GenerationConfig(config.eos_token_ids, config.pad_token_id, config.bos_token_id)
    section = Section(read_json(path, CONFIG_LIMIT), shown_path(path))
    vocabulary = config.text_config.vocab_size
    pad = section.optional_integer("pad_token_id", config.pad_token_id, 0, vocabulary - 1)
    return GenerationConfig(
        eos_token_ids=section.token_ids("eos_token_id", config.eos_token_ids, LARGEST_VOCABULARY) or (),
        pad_token_id=config.pad_token_id if pad is None else pad,
        bos_token_id=section.optional_integer("bos_token_id", config.bos_token_id, 0, vocabulary - 1),
        do_sample=section.flag("do_sample"),
        temperature=1.0 if section.get("temperature") is None else temperature(section),
        top_k=section.optional_integer("top_k", None, 0, 1 << 30) or None,
        top_p=optional_number(section, "top_p", 1.0),
        min_p=optional_number(section, "min_p", 1.0),
        repetition_penalty=optional_number(section, "repetition_penalty", 1e6),
        suppress_tokens=section.token_ids("suppress_tokens", (), LARGEST_VOCABULARY) or (),
    )


def temperature(section: Section) -> float:
    """Zero is greedy, as on the command line."""
    return 0.0 if is_zero(section, "temperature") else section.number("temperature", 1.0, 0.0, 1e6)


def optional_number(section: Section, key: str, high: float) -> float | None:
    """A number above 0 and up to ``high``; None where absent, null or (as some files write "off") 0."""
    return None if section.get(key) is None or is_zero(section, key) else section.number(key, 1.0, 0.0, high)


def is_zero(section: Section, key: str) -> bool:
    """Whether a key is the number 0; false is none."""
    value = section.get(key)
    return is_number(value) and value == 0

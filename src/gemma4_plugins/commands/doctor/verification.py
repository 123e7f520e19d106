"""Verifying a checkpoint against what is published: config, tensors, values, tokenizer, template, and a run.

Published values: shapes and counts of google/gemma-4-E2B and -E4B from their released headers; E2B-it's scalars and
norm weights from dumps of the release; special ids and the tokenizer's vectors from the released tokenizer.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gemma4_core.errors import Gemma4Error

if TYPE_CHECKING:
    from gemma4_core.config import GemmaConfig
    from gemma4_core.config.models import Published
    from gemma4_core.contracts import Context, TensorInfo, Tokenizer, WeightSource
    from gemma4_core.generation.loaded_model import LoadedModel

OK, NOTE, FAILED = "ok", "note", "failed"

OFFICIAL_VOCABULARY = 262_144
SPECIAL_IDS = {
    "<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3, "<|tool>": 46, "<tool|>": 47, "<|tool_call>": 48,
    "<tool_call|>": 49, "<|tool_response>": 50, "<tool_response|>": 51, '<|"|>': 52, "<|think|>": 98,
    "<|channel>": 100, "<channel|>": 101, "<|turn>": 105, "<turn|>": 106, "<|image>": 255_999, "<|audio>": 256_000,
    "<|image|>": 258_880, "<|audio|>": 258_881, "<image|>": 258_882, "<audio|>": 258_883, "<|video|>": 258_884,
}  # fmt: skip
ENCODINGS = {
    "Hello, world!": [9259, 236764, 1902, 236888],
    "   Hello": [139, 9259],
    "\t\n": [255968, 107],
    "w048 7tuijk dsdfhu": [236765, 236771, 236812, 236828, 236743, 236832, 11372, 12065, 31806, 3405, 9360],
    " this is \U0001f999.cpp": [672, 563, 236743, 478, 397, 404, 391, 236761, 12362],
    "\u043d\u0435\u0449\u043e \u043d\u0430 \u0411\u044a\u043b\u0433\u0430\u0440\u0441\u043a\u0438":
        [1337, 12515, 1333, 4632, 165543, 3830],
    "3333": [236800, 236800, 236800, 236800],
}  # fmt: skip
ROUND_TRIPS = ("Hello, world!", "  two  spaces\n", "na\u00efve \U0001f999")
VALUE_TOLERANCE = 1e-3
"""Relative: the values were printed with four digits."""

PROMPT = "The capital of France is"
PROMPT_IDS = (2, 7, 11, 5, 3)
"""Where there is no tokenizer for text; small enough for any vocabulary."""
NEW_TOKENS = 12
MESSAGES = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"})
SURE = 0.75
"""Highest entropy of the next token that a trained model has, as a share of the uniform distribution's."""
SHOWN_NAMES = 3


@dataclass(frozen=True)
class Check:
    """The outcome of one check: ``ok``, ``note`` (worth knowing, not wrong) or ``failed``."""

    name: str
    status: str
    text: str

    def as_dict(self) -> dict[str, str]:
        """Plain values for JSON."""
        return asdict(self)


def verify(folder: str | Path, device: str = "auto", **options: Any) -> Iterator[Check]:
    """Yield the checks of a checkpoint folder, hub name or alias; ``options`` go to ``load_pretrained``.

    A check that cannot run counts as failed, and the others follow. Raises a Gemma4Error where there is no
    folder or its config cannot be read.
    """
    from gemma4_core.checkpoint.context import read_context
    from gemma4_core.checkpoint.hub import resolve_folder

    context = read_context(resolve_folder(folder), options.get("format"))
    assert context.config is not None
    size = official_size(context.config)
    yield from _guarded("config", lambda: check_config(context.config, size))
    yield from _guarded("tensors", lambda: check_files(context, size, options.get("format", "auto")))
    yield from _guarded("tokenizer", lambda: check_tokenizer(context, options.get("tokenizer", "auto")))
    yield from _guarded("template", lambda: check_template(context))
    yield from _guarded("run", lambda: check_run(context.path, size is not None, device, options))


def _guarded(name: str, checks: Callable[[], Iterator[Check]]) -> Iterator[Check]:
    try:
        yield from checks()
    except (Gemma4Error, MemoryError) as error:
        yield Check(name, FAILED, str(error) or "out of memory")


# ------------------------------------------------------------------------------------------------ config


def official_size(config: GemmaConfig) -> str | None:
    """The official size of this shape, None for any other."""
    from gemma4_core.config import MODELS, preset_of

    name = preset_of(config)
    return name if name is not None and MODELS[name].hub_name is not None else None


def check_config(config: GemmaConfig | None, size: str | None) -> Iterator[Check]:
    """The config against the built-in one of its size, key by key."""
    from gemma4_core.config import preset_config
    from gemma4_core.plugins import registry

    assert config is not None
    if size is None:
        text = config.text_config
        yield Check("config", NOTE, f"none of the official sizes: {text.num_hidden_layers} layers, "
                                    f"hidden size {text.hidden_size}, vocabulary {text.vocab_size}")  # fmt: skip
        return
    published = preset_config(size)
    wrong: list[str] = []
    minor: list[str] = []
    pairs: dict[str, tuple[Any, Any]] = {"text_config": (config.text_config, published.text_config)}
    for tower in registry.modalities.values():
        if tower.part is not None and tower.config is not None:
            pairs[tower.part] = tower.config(config), tower.config(published)
    for part, (ours, theirs) in pairs.items():
        if ours is None or theirs is None:
            if ours is not theirs:
                minor.append(f"{part} is {'absent' if ours is None else 'present'}")
            continue
        for item in fields(theirs):
            found, expected = getattr(ours, item.name), getattr(theirs, item.name)
            if found != expected:
                said = f"{part}.{item.name} is {_short(found)}, published {_short(expected)}"
                (minor if item.name in NOT_ARCHITECTURE else wrong).append(said)
    if wrong:
        yield Check("config", FAILED, f"differs from the published {size}: {_some(wrong)}")
    else:
        yield Check("config", OK, f"equals the published {size}")
    if minor:
        yield Check("config", NOTE, f"differs from the published {size}: {_some(minor)}")


NOT_ARCHITECTURE = {"max_position_embeddings", "pad_token_id", "eos_token_ids", "bos_token_id"}


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:59] + "…"


def _some(items: list[str]) -> str:
    more = f"; and {len(items) - SHOWN_NAMES} more" if len(items) > SHOWN_NAMES else ""
    return "; ".join(items[:SHOWN_NAMES]) + more


# ------------------------------------------------------------------------------------------------ files


def check_files(context: Context, size: str | None, format: str) -> Iterator[Check]:
    """Names, shapes and types of every tensor, and the published values of E2B-it."""
    from gemma4_core.checkpoint.opening import open_checkpoint
    from gemma4_core.checkpoint.unserved import unserved_warning
    from gemma4_core.plugins.options import plugin_name
    from gemma4_core.processing.modalities import select_modalities

    assert context.config is not None
    with open_checkpoint(context, plugin_name(format)) as checkpoint:
        infos = checkpoint.infos
        unserved = checkpoint.check(select_modalities(checkpoint.towers, context, None))
        if unserved:
            yield Check("tensors", NOTE, unserved_warning(unserved, context))
        types = ", ".join(f"{count} {dtype}" for dtype, count in Counter(i.dtype for i in infos.values()).most_common())
        parameters = sum(math.prod(info.shape) for info in infos.values())
        held = f"{len(infos)} tensors in format {checkpoint.format.name} ({types})"
        yield Check("tensors", OK, f"{held}, {parameters:,} parameters")
        yield from _counts(infos, parameters, size)
        if size is not None:
            yield from check_values(context.config, checkpoint.weights, size)


def _counts(infos: Mapping[str, TensorInfo], parameters: int, size: str | None) -> Iterator[Check]:
    from gemma4_core.config import MODELS

    published = MODELS[size].published if size is not None else None
    if published is None:
        return
    if len(infos) == published.tensors and published.parameters in (None, parameters):
        yield Check("tensors", OK, f"as many as in the release of {size}")
    else:
        known = f" and {published.parameters:,} parameters" if published.parameters else ""
        told = f"the release of {size} has {published.tensors} tensors{known}; this is another export"
        yield Check("tensors", NOTE, told)


def check_values(config: GemmaConfig, source: WeightSource, size: str) -> Iterator[Check]:
    """Published values of a size's tuned release. All of them: that checkpoint. None: another one of its shape."""
    from gemma4_core.config import MODELS
    from gemma4_core.config.models import TUNED

    model = MODELS[size]
    published, name = model.published, f"{model.hub_name}{TUNED}"
    if published is None or not published.tuned_values:
        return
    expected = {config.text_prefix + tensor: value for tensor, value in published.tuned_values.items()}
    text_wrong = [tensor for tensor, value in expected.items() if not _close(source, tensor, value)]
    wrong = text_wrong + _wrong_bounds(published, source)
    if not wrong:
        yield Check("values", OK, f"layer scalars, norms and clip bounds are those published of {name}")
    elif len(text_wrong) == len(expected):
        yield Check("values", NOTE, f"not those published of {name}: a base model, a fine-tune or random")
    else:
        yield Check("values", FAILED, f"some are those published of {name}, others not: {_some(wrong)}; "
                                      "the files may be damaged, compare their checksums on the hub")  # fmt: skip


def _wrong_bounds(published: Published, source: WeightSource) -> list[str]:
    """Bounds that differ in every module that may have the published ones; none where one module has them all."""
    found = []
    for place in published.tuned_places:
        bounds = {place + name: value for name, value in published.tuned_bounds.items()}
        stored = {name: value for name, value in bounds.items() if name in source.infos}
        wrong = [name for name, value in stored.items() if not _close(source, name, value)]
        if stored and not wrong:
            return []
        found += wrong
    return found


def _close(source: WeightSource, name: str, value: float) -> bool:
    from tinygrad import dtypes

    found = source.tensor(name, "PYTHON", dtypes.float32).numpy()
    return bool(np.all(np.abs(found - value) <= VALUE_TOLERANCE * abs(value)))


# ------------------------------------------------------------------------------------------------ text


def check_tokenizer(context: Context, name: str) -> Iterator[Check]:
    """Special ids and encodings of the released tokenizer; other vocabularies must decode what they encoded."""
    from gemma4_core.plugins import registry
    from gemma4_core.plugins.options import plugin_name
    from gemma4_core.text import has_text

    assert context.config is not None
    backend = registry.select("tokenizer", context, plugin_name(name))
    tokenizer = backend.load(context)
    if not has_text(tokenizer):
        yield Check("tokenizer", NOTE, f"{backend.name}: token ids only, the folder has no tokenizer for text")
        return
    if tokenizer.vocab_size > context.config.text_config.vocab_size:
        yield Check("tokenizer", FAILED, f"it has {tokenizer.vocab_size} tokens, the model "
                                         f"{context.config.text_config.vocab_size}")  # fmt: skip
    if context.config.text_config.vocab_size == OFFICIAL_VOCABULARY:
        wrong = _not_as_published(tokenizer)
        done = f"{len(SPECIAL_IDS)} special ids and {len(ENCODINGS)} encodings as published"
    else:
        backs = {text: tokenizer.decode(tokenizer.encode(text)) for text in ROUND_TRIPS}
        wrong = [f"{text!r} decodes to {back!r} after encoding" for text, back in backs.items() if back != text]
        done = f"{tokenizer.vocab_size} tokens; decoding gives back the text"
    yield Check("tokenizer", FAILED, _some(wrong)) if wrong else Check("tokenizer", OK, f"{backend.name}: {done}")


def _not_as_published(tokenizer: Tokenizer) -> list[str]:
    special = tokenizer.special_tokens
    found_ids = {text: special.get(text) for text in SPECIAL_IDS}
    wrong = [f"{text} is {found_ids[text]}, published {n}" for text, n in SPECIAL_IDS.items() if found_ids[text] != n]
    for text, ids in ENCODINGS.items():
        if (found := tokenizer.encode(text)) != ids:
            wrong.append(f"{text!r} encodes to {found[:8]}, published {ids}")
    return wrong


def check_template(context: Context) -> Iterator[Check]:
    """The chat template renders a short conversation and opens the model's turn."""
    from gemma4_core.text import ChatTemplate

    template = ChatTemplate.load(context)
    if template is None:
        yield Check("template", NOTE, "there is none, as in base models")
        return
    text = template.render(MESSAGES)
    if "Be brief." not in text or "Hi" not in text:
        yield Check("template", FAILED, f"{template.path.name} drops messages: {text[:200]!r}")
        return
    yield Check("template", OK, f"{template.path.name} renders {len(text)} characters")
    expected = "<bos><|turn>system\nBe brief.<turn|>\n<|turn>user\nHi<turn|>\n<|turn>model\n"
    if text.removesuffix("<|channel>thought\n<channel|>") != expected:
        yield Check("template", NOTE, "it differs from the released ones")


# ------------------------------------------------------------------------------------------------ run


def check_run(folder: Path | None, official: bool, device: str, options: Mapping[str, Any]) -> Iterator[Check]:
    """Load the model, look at the distribution of the next token, and generate greedily."""
    from gemma4_core.loading import load_pretrained
    from gemma4_core.text import has_text, prompt_ids

    assert folder is not None
    model = load_pretrained(folder, device=device, max_context=256, **options)
    yield Check("load", OK, f"on {model.device_name} in {model.load_seconds:.1f} s")
    vocabulary = model.config.text_config.vocab_size
    tokenizer = model.tokenizer
    if tokenizer is not None and has_text(tokenizer):
        ids = prompt_ids(tokenizer, PROMPT, model.config.bos_token_id)
    else:
        ids = [i % vocabulary for i in PROMPT_IDS]
    yield from check_logits(model, ids, official)
    tokens = list(model.generate(ids, max_new_tokens=NEW_TOKENS, temperature=0.0))
    again = list(model.generate(ids, max_new_tokens=NEW_TOKENS, temperature=0.0))
    if tokenizer is not None and has_text(tokenizer):
        text = f": {PROMPT!r} goes on {tokenizer.decode(tokens)!r}"
    else:
        text = f": {tokens}"
    if tokens != again:
        yield Check("generate", FAILED, f"the same greedy prompt gave {tokens} and then {again}")
    elif official and len(tokens) == NEW_TOKENS and len(set(tokens)) == 1:
        yield Check("generate", FAILED, f"the same token again and again{text}")
    else:
        yield Check("generate", OK, f"{len(tokens)} tokens{text}")


def check_logits(model: LoadedModel, ids: list[int], official: bool) -> Iterator[Check]:
    """Logits are finite, not constant, and for an official size as certain as a trained model's."""
    logits = model.forward_ids(ids)[0].numpy()[0].astype(np.float64)  # [T, vocab]
    bad = int((~np.isfinite(logits)).sum())
    if bad:
        yield Check("logits", FAILED, f"{bad} of {logits.size} are not finite")
        return
    spread = float(logits.std(axis=-1).min())
    shifted = np.exp(logits[-1] - logits[-1].max())
    probabilities = shifted / shifted.sum()
    entropy = float(-(probabilities * np.log(np.maximum(probabilities, 1e-300))).sum())
    most = math.log(logits.shape[-1])
    told = f"entropy of the next token {entropy:.2f} of at most {most:.2f}, spread {spread:.2f}"
    if spread < 1e-4:
        yield Check("logits", FAILED, f"all logits are the same: {told}")
    elif official and entropy > SURE * most:
        yield Check("logits", FAILED, f"as uncertain as random weights: {told}")
    else:
        yield Check("logits", OK, told)

"""Folders with what a processor needs, without weights."""

from __future__ import annotations

import json
from pathlib import Path

from gemma4_core.config import preset_dict
from gemma4_core.text.tiny import TINY_MEDIA_IDS, TINY_STOP_IDS, TINY_TEXT_IDS, TINY_VOCAB_SIZE, copy_tiny_tokenizer


def write_folder(folder: Path, template: str | None = None) -> Path:
    """What a processor needs: config, tokenizer and a template."""
    config = preset_dict("tiny-e2b")
    config["text_config"] |= {**TINY_TEXT_IDS, "vocab_size": TINY_VOCAB_SIZE, "vocab_size_per_layer_input": 512}
    config |= {**TINY_MEDIA_IDS, "eos_token_id": list(TINY_STOP_IDS)}
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": {"max_soft_tokens": 70}}))
    copy_tiny_tokenizer(folder)
    if template is not None:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return folder

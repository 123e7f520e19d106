"""A loaded model as a notebook shows it."""

from __future__ import annotations

import html
from collections.abc import Mapping

from gemma4_core.model.model import GemmaModel


def model_table(model: GemmaModel, names: Mapping[str, str]) -> str:
    """Name, sizes and device as an HTML table; ``names`` are those of format and device, by row."""
    text, tensors = model.config.text_config, model.named_tensors().values()
    rows = {
        "model": model.context.path, **names,
        "computes in": "float32" if model.dtype.itemsize == 4 else "bfloat16",
        "layers": text.num_hidden_layers, "hidden size": text.hidden_size, "context": model.max_context,
        "towers": ", ".join(spec.name for spec in model.tower_specs) or "none",
        "parameters": f"{sum(int(tensor.numel()) for tensor in tensors):,}",
        "weights": f"{sum(int(tensor.nbytes()) for tensor in tensors) / 1e6:,.1f} MB",
    }
    return html_table(rows)


def html_table(rows: Mapping[str, object]) -> str:
    """Names and values as an HTML table of two columns."""
    cells = "".join(f"<tr><th>{name}</th><td>{html.escape(str(value))}</td></tr>" for name, value in rows.items())
    return f"<table>{cells}</table>"

"""A model as a notebook shows it."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gemma4_core.model.model import GemmaModel


def html_table(model: GemmaModel) -> str:
    """Name, sizes and device as an HTML table."""
    text, tensors = model.config.text_config, model.named_tensors().values()
    dtype = "float32" if model.dtype.itemsize == 4 else "bfloat16"
    rows = {
        "model": model.context.path, "format": model.format_name, "device": model.device_name,
        "computes in": dtype, "layers": text.num_hidden_layers, "hidden size": text.hidden_size,
        "context": model.max_context, "towers": ", ".join(spec.name for spec in model.tower_specs) or "none",
        "parameters": f"{sum(int(tensor.numel()) for tensor in tensors):,}",
        "weights": f"{sum(int(tensor.nbytes()) for tensor in tensors) / 1e6:,.1f} MB",
    }
    cells = "".join(f"<tr><th>{name}</th><td>{html.escape(str(value))}</td></tr>" for name, value in rows.items())
    return f"<table>{cells}</table>"

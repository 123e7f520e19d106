"""examples/quickstart.ipynb runs from top to bottom."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from training_tools import quick

pytestmark = pytest.mark.slow

NOTEBOOK = Path(__file__).parents[2] / "examples" / "quickstart.ipynb"


def test_the_notebook_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the notebook plots; the extra plot brings matplotlib")
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4 and not any(cell.get("outputs") for cell in notebook["cells"])
    names: dict[str, Any] = {"__name__": "__main__"}
    with quick():
        for number, cell in enumerate(notebook["cells"]):
            if cell["cell_type"] == "code":
                exec(compile("".join(cell["source"]), f"quickstart.ipynb, cell {number}", "exec"), names)
    said = capsys.readouterr().out
    assert "images can be read: True" in said and said.rstrip().endswith("True")
    losses = names["losses"]
    assert np.isfinite(losses).all() and losses[-1] < losses[0] / 2
    assert np.isclose(np.exp(names["logprobs"]).sum(), 1, atol=1e-4)
    assert names["answer"].startswith(" reads the news")
    assert (names["work"] / "loss.png").stat().st_size > 1000

"""Prompts through the processor's own chunks against the portable form, with heads wide enough for whole panels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from installed import once
from tinygrad import Tensor
from training_tools import quick
from wide_model import CONFIG, IDS

from gemma4_core import load_pretrained
from gemma4_core.checkpoint import write_random_checkpoint
from gemma4_core.contracts.rows import MediaRows, Rows
from gemma4_core.engine.portable import PortableSteps
from gemma4_core.model import GemmaModel
from gemma4_core.model.ids import split
from gemma4_core.quantize import quantize
from gemma4_plugins.devices.cpu.kernels import text
from gemma4_plugins.devices.cpu.kernels.amx import permitted


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_checkpoint(tmp_path_factory.mktemp("wide") / "model", CONFIG, 3)


def logits_of(folder: Path, dtype: str, pieces: tuple[int, ...]) -> np.ndarray:
    """Logits of all positions, the prompt given in pieces."""
    model = load_pretrained(folder, device="cpu", dtype=dtype)
    cache, found, at = model.make_cache(), [], 0
    for piece in pieces:
        found.append(model.forward_ids([IDS[at : at + piece]], cache=cache)[0].numpy()[0])
        at += piece
    return np.concatenate(found)


@pytest.fixture(scope="module")
def portable(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """What the portable form makes of the whole prompt at once, bf16 and fp32: logits, hidden states with blocks."""

    def make(target: Path) -> None:
        target.mkdir()
        with quick(), pytest.MonkeyPatch.context() as patch:
            patch.setenv("GEMMA4_KERNELS", "portable")
            found = {f"logits {dtype}": logits_of(folder, dtype, (len(IDS),)) for dtype in ("bfloat16", "float32")}
            patch.setattr(GemmaModel, "bidirectional", True)
            found |= {f"hidden {dtype}": np.concatenate(hidden_with_blocks(folder, dtype, len(IDS)))
                      for dtype in ("bfloat16", "float32")}
        np.savez(target / "found.npz", **found)

    with np.load(once(tmp_path_factory, "portable-wide", make) / "found.npz") as file:
        return dict(file)


def in_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compile the form for AMX, with its instructions said in C."""
    at = text.SOURCES.index("amx.c")
    emulated = (*text.SOURCES[:at], str(Path(__file__).parents[1] / "amx_emulation.c"), *text.SOURCES[at:])
    monkeypatch.setattr(text, "SOURCES", emulated)


@pytest.fixture(params=["vector registers", "tile registers"])
def registers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """This processor's own form of a chunk's products, and that of AMX with its instructions said in C."""
    if request.param == "tile registers":
        in_tiles(monkeypatch)


@pytest.mark.slow
@pytest.mark.usefixtures("plain_loops", "registers")
@pytest.mark.parametrize("pieces", [(331,), (3, 301, 27)])
def test_chunks_are_as_near_to_the_truth_as_the_portable_form(
    folder: Path, pieces: tuple[int, ...], portable: dict[str, np.ndarray]
) -> None:
    ours, exact = logits_of(folder, "bfloat16", pieces), logits_of(folder, "float32", pieces)
    model = load_pretrained(folder, device="cpu")
    first = next(iter(model.stream_generate(prompt_tokens=IDS, max_new_tokens=1, stop_ids=())))
    plain, truth = portable["logits bfloat16"], portable["logits float32"]
    distance = lambda x: float(np.linalg.norm(x - truth) / np.linalg.norm(truth - truth.mean()))  # noqa: E731
    assert distance(exact) < 1e-4
    assert distance(ours) < 1.25 * distance(plain)
    # a prompt alone runs its last own layer, and all after it, for one position
    assert first.token == int(ours[-1].argmax())
    shares = ours[-1] - ours[-1].max()
    assert first.logprob == pytest.approx(float(-np.log(np.exp(shares).sum())), abs=0.02)


def hidden_with_blocks(folder: Path, dtype: str, chunk: int) -> list[np.ndarray]:
    """Hidden states of all rows by chunk. Two blocks see themselves both ways, one of them longer than window and
    chunk."""
    model = load_pretrained(folder, device="cpu", dtype=dtype)
    blocks = np.full((1, len(IDS)), -1, np.int32)
    blocks[:, 20:35], blocks[:, 36:320] = 0, 1
    slots, found, text = model.make_cache().reserve(model, 1, len(IDS)), [], np.full(len(IDS), -1, np.int32)
    nothing = Tensor.zeros(1, model.config.text_config.hidden_size, device=model.device)
    for start, stop in split(len(IDS), chunk, blocks):
        here, count = slice(start, stop), stop - start
        numbers = np.arange(count, dtype=np.int32)
        rows = Rows(
            np.array(IDS[here], np.int32), numbers * 0, start + numbers, numbers,
            MediaRows(nothing, text[here], blocks[0, here]),
        )
        hidden = model.engine.run(slots, rows, None, hidden=True).hidden
        assert hidden is not None
        found.append(hidden.float().numpy()[:count])  # rows of padding may follow
    return found


@pytest.mark.slow
@pytest.mark.usefixtures("plain_loops", "registers")
def test_blocks_that_see_both_ways(
    folder: Path, portable: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GemmaModel, "bidirectional", True)
    taken: list[int] = []
    monkeypatch.setattr(PortableSteps, "run", lambda *given: taken.append(1))
    pieces = [hidden_with_blocks(folder, dtype, 256) for dtype in ("bfloat16", "float32")]
    assert not taken
    assert [[len(piece) for piece in given] for given in pieces] == [[36, 284, 11]] * 2
    ours, exact = map(np.concatenate, pieces)
    plain, truth = portable["hidden bfloat16"], portable["hidden float32"]
    distance = lambda x: float(np.linalg.norm(x - truth) / np.linalg.norm(truth))  # noqa: E731
    assert distance(exact) < 1e-4
    assert distance(ours) < 1.25 * distance(plain)


@pytest.mark.usefixtures("plain_loops")
@pytest.mark.parametrize("form", ["bf16", "int8"])
def test_experts_in_tile_registers(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mixture = {"enable_moe_block": True, "num_experts": 8, "top_k_experts": 2, "moe_intermediate_size": 96,
               "hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0, "intermediate_size": 128}  # fmt: skip
    folder = write_random_checkpoint(tmp_path / "model", CONFIG | mixture, 5)
    folder = quantize(folder, tmp_path / "int8", "int8") if form == "int8" else folder
    vectors = logits_of(folder, "bfloat16", (331,))
    in_tiles(monkeypatch)
    tiles = logits_of(folder, "bfloat16", (331,))
    assert permitted() or not np.array_equal(vectors, tiles)
    # a row near the border between two experts may go to another one
    spread = np.linalg.norm(vectors - vectors.mean(-1, keepdims=True), axis=-1)
    apart = np.linalg.norm(vectors - tiles, axis=-1) / spread
    assert np.median(apart) < 0.02

"""The example plugins at work in a model: loading, prompts, generation, training step; in process and by command."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from example_plugins import EXAMPLE, Installed, installed_fixture  # noqa: F401
from safetensors.numpy import load_file, save_file

from gemma4_core import (
    Gemma4Error,
    GemmaModel,
    GemmaMultimodalProcessor,
    load_pretrained,
    registry,
    save_training_checkpoint,
)
from gemma4_core.checkpoint import write_random_checkpoint
from gemma4_core.config import preset_dict

sys.path.append(str(EXAMPLE / "src"))

from gemma4_example import byte_tokenizer, dots, npz, one_core, scale, signum

pytestmark = pytest.mark.usefixtures("plain_loops")

PARTS = {"npz": npz, "dots": dots, "bytes": byte_tokenizer, "one-core": one_core, "signum": signum, "scale": scale}
DOTS_ID = 3
VOCABULARY = 260
SPECIAL = ["<pad>", "<eos>", "<bos>", dots.PLACEHOLDER]
PROMPT, NUMBERS = f"a{dots.PLACEHOLDER}b", [3.0, -2.0]
IDS = [2, len(SPECIAL) + ord("a"), DOTS_ID, DOTS_ID, len(SPECIAL) + ord("b")]
"""What the prompt with these numbers becomes. Every test runs this length, so that kernels are compiled once."""
SCALE = "*.gate_proj.weight=0.5"
HEAD = "model.language_model.embed_tokens.weight"


@pytest.fixture(name="registered", scope="module", autouse=True)
def registered_fixture() -> Iterator[None]:
    """The example's plugins in this process, as if they were installed."""
    registry.reload()
    for name, part in PARTS.items():
        registry.register(part, name)
    yield
    for name in PARTS:
        registry.unregister(name)


def write_dots_checkpoint(folder: Path) -> Path:
    """A random fp32 checkpoint of two layers that declares dots."""
    config = {**preset_dict("tiny-31b", towers=False), "dots_token_id": DOTS_ID, "eos_token_id": 1}
    text = config["text_config"]
    text |= {"num_hidden_layers": 2, "layer_types": text["layer_types"][:2], "vocab_size": VOCABULARY}
    text |= {"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}
    extra = {"bytes_tokenizer.json": json.dumps({"special": SPECIAL}).encode()}
    write_random_checkpoint(folder, config, seed=5, dtype="float32", towers=False, extra_files=extra)
    weights = load_file(folder / "model.safetensors")
    weights[dots.DIRECTION] = np.random.default_rng(9).standard_normal(text["hidden_size"]).astype(np.float32)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(name="folder", scope="module")
def folder_fixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dots_checkpoint(tmp_path_factory.mktemp("dots") / "checkpoint")


@pytest.fixture(name="model", scope="module")
def model_fixture(folder: Path) -> GemmaModel:
    return load_pretrained(folder, device="cpu")


def logits(model: GemmaModel, numbers: Any = (NUMBERS,), **keywords: Any) -> np.ndarray:
    return model.forward_ids(IDS, dot_values=numbers, **keywords)[0].numpy()


def tokens(model: GemmaModel) -> list[int]:
    return list(model.generate(IDS, max_new_tokens=4, dot_values=[NUMBERS]))


def copy_without_weights(folder: Path, target: Path) -> None:
    for file in folder.iterdir():
        if file.name != "model.safetensors":
            (target / file.name).write_bytes(file.read_bytes())


# ------------------------------------------------------------------------------------------------ tower and tokenizer


def test_the_tower_and_the_tokenizer_are_found(model: GemmaModel) -> None:
    assert list(model.towers) == ["dots"]
    assert type(model.tokenizer).__name__ == "ByteTokenizer"
    assert dots.DIRECTION in model.named_tensors()


def test_numbers_go_through_the_processor(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "numbers.txt").write_text("1.5\n-1")
    processor = GemmaMultimodalProcessor.from_pretrained(folder, dots_scale=2.0)
    prepared = processor.prepare_inputs(PROMPT, dots=[tmp_path / "numbers.txt"])
    assert prepared.input_ids == IDS
    assert prepared.features["dot_values"].tolist() == [[3, -2]]
    with pytest.raises(Gemma4Error, match="1"):
        processor.prepare_inputs(PROMPT, dots=[[1.0], [2.0]])
    with pytest.raises(Gemma4Error, match=r"absent\.txt"):
        processor.prepare_inputs(PROMPT, dots=["absent.txt"])


def test_the_forward_keyword_puts_soft_tokens_in_place(model: GemmaModel) -> None:
    one = logits(model)
    assert one.shape == (1, 5, VOCABULARY) and np.isfinite(one).all()
    assert np.array_equal(one, logits(model, np.array([NUMBERS])))
    other = logits(model, [[3.0, 2.0]])
    assert np.allclose(one[:, :3], other[:, :3], atol=1e-5)
    assert not np.allclose(one[:, 3], other[:, 3], atol=1e-3) and not np.allclose(one[:, 4], other[:, 4], atol=1e-3)
    assert np.allclose(logits(model, cache=model.make_cache()), one, atol=1e-4)


@pytest.mark.parametrize(
    ("media", "named"),
    [
        ({}, "0"),
        ({"dot_values": [[1.0]]}, "1"),
        ({"dot_values": [1.0, 2.0]}, "dot_values"),
        ({"pixel_values": [[1.0]]}, "pixel_values"),
    ],
)
def test_media_that_do_not_fit_are_refused(model: GemmaModel, media: dict[str, Any], named: str) -> None:
    with pytest.raises(Gemma4Error, match=named) as caught:
        model.forward_ids([2, DOTS_ID, DOTS_ID], **media)
    assert len(str(caught.value)) < 500


def test_an_answer_comes_from_the_numbers(model: GemmaModel) -> None:
    def answer(numbers: list[float]) -> list[tuple[int | None, float | None]]:
        parts = list(model.stream_generate(PROMPT, 4, dots=[numbers]))
        assert parts[-1].finish_reason in ("stop", "length") and parts[-1].stats is not None
        return [(part.token, part.logprob) for part in parts if part.token is not None]

    first = answer(NUMBERS)
    assert [token for token, _ in first] == tokens(model)
    assert first == answer(NUMBERS)
    assert first != answer([3.0, 2.0])


def test_text_only_skips_the_tower(folder: Path) -> None:
    model = load_pretrained(folder, device="cpu", modalities=("text",))
    assert list(model.towers) == []
    with pytest.raises(Gemma4Error, match="dots"):
        model.forward_ids([2, DOTS_ID])
    with pytest.raises(Gemma4Error, match="'dotz'"):
        load_pretrained(folder, device="cpu", modalities=("dotz",))


def test_a_missing_tower_tensor_is_named(folder: Path, tmp_path: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights[dots.DIRECTION]
    copy_without_weights(folder, tmp_path)
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(Gemma4Error, match=r"model\.dots\.direction"):
        load_pretrained(tmp_path, device="cpu")


# ------------------------------------------------------------------------------------------------ transform


@pytest.fixture(name="halved", scope="module")
def halved_fixture(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> GemmaModel:
    """The model whose weights are already what the transform makes of them."""
    target = tmp_path_factory.mktemp("halved")
    weights = load_file(folder / "model.safetensors")
    changed = {name: array * 0.5 if name.endswith(".gate_proj.weight") else array for name, array in weights.items()}
    copy_without_weights(folder, target)
    save_file(changed, target / "model.safetensors", {"format": "pt"})
    return load_pretrained(target, device="cpu")


def test_a_transform_does_what_the_changed_weights_would(folder: Path, model: GemmaModel, halved: GemmaModel) -> None:
    scaled = load_pretrained(folder, device="cpu", options={"scale_matrix": (SCALE,)})
    assert not np.allclose(logits(scaled), logits(model), atol=1e-3)
    assert np.allclose(logits(scaled), logits(halved), atol=1e-4)


@pytest.mark.parametrize("text", ["nonsense=2", "*.gate_proj.weight", "*.gate_proj.weight=x"])
def test_a_transform_that_cannot_be_applied_says_why(folder: Path, text: str) -> None:
    with pytest.raises(Gemma4Error) as caught:
        load_pretrained(folder, device="cpu", options={"scale_matrix": (text,)})
    assert f"'{text}'" in str(caught.value)


# ------------------------------------------------------------------------------------------------ the others


def test_the_format_is_found_by_its_file(folder: Path, model: GemmaModel, tmp_path: Path) -> None:
    made = tmp_path / "made"
    save_training_checkpoint(model, made, quantize="npz")
    assert (made / npz.FILE).exists() and not list(made.glob("*.safetensors"))
    other = load_pretrained(made, device="cpu")
    assert other.format_name == "npz"
    assert np.array_equal(logits(other), logits(model))
    with pytest.raises(Gemma4Error):
        load_pretrained(made, device="cpu", format="bf16")


def test_the_device_computes_the_same(folder: Path, model: GemmaModel) -> None:
    other = load_pretrained(folder, device="ONE-CORE")
    assert (other.device_name, other.operations.name) == ("one-core", "one-core")
    assert np.allclose(logits(other), logits(model), atol=1e-4)


def test_the_optimizer_is_built_by_name(folder: Path) -> None:
    from tinygrad.helpers import Context as Settings

    model = load_pretrained(folder, device="cpu")
    weight = model.places[HEAD].matrix.parts()[""]
    before = weight.numpy().copy()
    optimizer = registry.select("optimizer", model.context, "signum").build({HEAD: weight}, lr=0.01, weight_decay=0.0)
    with Settings(TRAINING=1):
        [weight.grad] = weight.square().sum().gradient(weight)
        optimizer.step()
    assert np.allclose(weight.numpy() - before, -0.01 * np.sign(before), atol=1e-6)


# ------------------------------------------------------------------------------------------------ by command


def generate(installed: Installed, folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return installed.gemma4(
        "generate", "--model-dir", str(folder), "--device", "cpu", "--max-new-tokens", "4", "--temperature", "0",
        "--raw", "--json", *arguments, NOOPT="1", **variables,
    )  # fmt: skip


def test_the_command_takes_the_options_of_the_plugins(
    installed: Installed, folder: Path, halved: GemmaModel, tmp_path: Path
) -> None:
    numbers = tmp_path / "numbers.txt"
    numbers.write_text("1.5 -1")
    done = generate(
        installed, folder, "--prompt", PROMPT, "--dots", str(numbers), "--dots-scale", "2", "--scale-matrix", SCALE,
        "--tokenizer", "BYTES", "--modality", "dots",
    )  # fmt: skip
    assert done.returncode == 0 and done.stderr == "", done.stderr
    answer = json.loads(done.stdout)
    assert isinstance(answer["text"], str) and answer["prompt_tokens"] == len(IDS)
    assert answer["tokens"] == tokens(halved)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--prompt", "<|dots|>", "--dots", "absent.txt"), "absent.txt"),
        (("--prompt", "<|dots|> <|dots|>", "--dots", "NUMBERS"), "2"),
        (("--prompt", "x", "--scale-matrix", "nonsense=2"), "'nonsense=2'"),
        (("--prompt", "x", "--format", "npz"), "model.npz"),
        (("--prompt", "x", "--modality", "dost"), "'dost'"),
    ],
)
def test_failures_of_plugins_are_one_line(
    installed: Installed, folder: Path, tmp_path: Path, arguments: tuple[str, ...], named: str
) -> None:
    numbers = tmp_path / "numbers.txt"
    numbers.write_text("1")
    done = generate(installed, folder, *(str(numbers) if a == "NUMBERS" else a for a in arguments))
    assert (done.returncode, done.stdout) == (1, "")
    [line] = done.stderr.splitlines()
    assert named in line and len(line) < 500


def test_a_blocked_plugin_is_gone_with_a_clear_message(installed: Installed, folder: Path) -> None:
    done = generate(installed, folder, "--prompt", "x", "--tokenizer", "bytes", GEMMA4_DISABLE_PLUGINS="bytes,dots")
    assert done.returncode == 1 and "GEMMA4_DISABLE_PLUGINS" in done.stderr and "'bytes'" in done.stderr
    done = generate(installed, folder, "--prompt-tokens", "2,70", GEMMA4_DISABLE_PLUGINS="bf16")
    assert done.returncode == 1 and "blocked: bf16" in done.stderr

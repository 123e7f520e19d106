"""A checkpoint that is one file, with config, tokenizer and template inside, as a GGUF is."""

from __future__ import annotations

import io
import json
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from cli_tools import failure, gemma4
from example_plugins import EXAMPLE

from gemma4_core import CheckpointFormat, CheckpointMetadata, Context, TokenizerBackend, hookimpl, load_pretrained
from gemma4_core.checkpoint.context import read_context
from gemma4_core.checkpoint.hub import packaged_demo
from gemma4_core.checkpoint.opening import open_checkpoint
from gemma4_core.plugins import registry
from gemma4_core.processing.processor import GemmaMultimodalProcessor

sys.path.append(str(EXAMPLE / "src"))

from gemma4_example.npz import NpzSource

SIDE = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json",
        "processor_config.json")


class OneFile:
    """Weights as members of a zip like npz has them, and the small files of a folder beside them."""

    seen: list[Context]

    def __init__(self) -> None:
        self.seen = []

    def matches(self, context: Context) -> bool:
        self.seen.append(context)
        return context.folder is None and context.path is not None and context.path.suffix == ".one"

    @staticmethod
    def metadata(context: Context) -> CheckpointMetadata:
        with zipfile.ZipFile(context.path or "") as archive:
            config = json.loads(archive.read("config.json"))
            files = {name: archive.read(name) for name in SIDE if name in archive.namelist()}
        return CheckpointMetadata(config, files, tokenizer_source=SimpleNamespace(vocabulary=["a", "b"]))

    @hookimpl
    def gemma4_checkpoint_formats(self) -> list[CheckpointFormat]:
        return [CheckpointFormat("one-file", "one zip", lambda context: NpzSource(context.path), None, self.matches,
                                 metadata=self.metadata)]

    @hookimpl
    def gemma4_tokenizers(self) -> list[TokenizerBackend]:
        def matches(context: Context) -> bool:
            return hasattr(context.tokenizer_source, "vocabulary")

        return [TokenizerBackend("of-one-file", "its vocabulary", lambda context: None, matches, -9)]  # type: ignore


@pytest.fixture(scope="module")
def plugin() -> Iterator[OneFile]:
    one = OneFile()
    registry.register(one, "one-file-here")
    yield one
    registry.unregister("one-file-here")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory, plugin: OneFile) -> Path:
    """The demo model as one file."""
    from tinygrad import dtypes

    path = tmp_path_factory.mktemp("single") / "demo.one"
    with open_checkpoint(packaged_demo()) as checkpoint, zipfile.ZipFile(path, "w") as archive:
        for name in checkpoint.infos:
            member = io.BytesIO()
            np.save(member, checkpoint.weights.tensor(name, "PYTHON", dtypes.float32).numpy())
            archive.writestr(f"{name}.npy", member.getvalue())
        for name in ("config.json", *SIDE):
            archive.writestr(name, (packaged_demo() / name).read_bytes())
    return path


def test_matches_sees_the_file(file: Path, plugin: OneFile) -> None:
    context = read_context(file)
    assert context.path == file and context.folder is None and context.config is not None
    assert any(seen.path == file and seen.folder is None for seen in plugin.seen)
    assert context.tensors == {} and context.file("absent.json") is None
    assert [backend.name for backend in registry.matching("tokenizer", context)][-1] == "of-one-file"


def test_it_loads_and_answers_as_the_folder_does(file: Path) -> None:
    whole, single = (load_pretrained(path, device="cpu") for path in (packaged_demo(), file))
    assert single.format_name == "one-file" and single.context.path == file
    assert single.generation_config == whole.generation_config
    messages = [{"role": "user", "content": "Hello"}]
    texts = ["".join(part.text for part in model.stream_generate(messages, max_new_tokens=6, temperature=0.0))
             for model in (whole, single)]
    assert texts[0] == texts[1] and texts[0]
    processor = GemmaMultimodalProcessor.from_pretrained(file)
    assert processor.prepare_inputs(messages).input_ids == GemmaMultimodalProcessor.from_pretrained(
        packaged_demo()).prepare_inputs(messages).input_ids  # fmt: skip


def test_the_command_line_takes_it(file: Path, tmp_path: Path) -> None:
    about = json.loads(gemma4("info", "-m", file, "--json").out)
    of_folder = json.loads(gemma4("info", "-m", packaged_demo(), "--json").out)
    assert (about["folder"], about["format"], about["files"]) == (str(file), "one-file", 1)
    assert about["file_bytes"] == file.stat().st_size and about["problem"] is None
    assert about["text"] == of_folder["text"] and about["tokenizer"] == of_folder["tokenizer"] == "huggingface"
    assert about["chat_template"] == of_folder["chat_template"] == "chat_template.jinja"
    assert "one-file" in gemma4("info", "-m", file).out
    args = ("--prompt", "Hello", "-n", "4", "--temperature", "0", "--device", "cpu", "--json")
    answers = [json.loads(gemma4("generate", "-m", path, *args).out)["tokens"] for path in (file, packaged_demo())]
    assert answers[0] == answers[1]
    for target, format in (("ordinary", "bf16"), ("packed", "int8")):
        ran = gemma4("quantize", "-m", file, "--out", tmp_path / target, "--format", format)
        assert ran.code == 0, ran.err
        found = {path.name for path in (tmp_path / target).iterdir()}
        assert found == {"config.json", "model.safetensors", *SIDE}
    again = json.loads(gemma4("generate", "-m", tmp_path / "ordinary", *args).out)["tokens"]
    assert again == answers[1]


def test_files_that_nobody_opens(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    line = failure("info", "-m", tmp_path / "model.gguf")
    assert "is a file" in line and "model.gguf" in line
    assert "bf16" in failure("generate", "-m", tmp_path / "model.gguf", "--prompt", "x", "--format", "bf16")

"""Prompts and media to ids and features, through the registry's modalities."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from media import picture, tone
from PIL import Image
from tiny_model import tiny_config

from gemma4_core import (
    ConfigError,
    Context,
    Gemma4Error,
    GemmaMultimodalProcessor,
    InputError,
    ModalityTower,
    Option,
    PluginError,
    PreparedMedia,
    TokenizerError,
    hookimpl,
    registry,
)
from gemma4_core.processing.inputs import PreparedInputs
from gemma4_core.processing.media_cache import BoundedCache
from gemma4_core.text.tiny import TINY_MEDIA_IDS, copy_tiny_tokenizer

BOI, IMAGE, EOI = (TINY_MEDIA_IDS[f"{name}_token_id"] for name in ("boi", "image", "eoi"))
BOA, AUDIO, EOA = (TINY_MEDIA_IDS[f"{name}_token_id"] for name in ("boa", "audio", "eoa"))


def write_folder(folder: Path, template: bool = True, **changes: Any) -> Path:
    """A folder with config and tokenizer, no weights: the processor needs none."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**tiny_config(), **changes}))
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": {"max_soft_tokens": 70}}))
    copy_tiny_tokenizer(folder, template)
    return folder


@pytest.fixture
def processor(tmp_path: Path) -> GemmaMultimodalProcessor:
    return GemmaMultimodalProcessor.from_pretrained(write_folder(tmp_path / "model"))


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """Two images of different shapes and one second of sound."""
    Image.fromarray(picture(40, 120, 1)).save(tmp_path / "wide.png")
    Image.fromarray(picture(90, 90, 2)).save(tmp_path / "square.png")
    soundfile.write(tmp_path / "tone.wav", tone(16000), 16000)
    return {name: str(tmp_path / name) for name in ("wide.png", "square.png", "tone.wav")}


def image_run(count: int) -> list[int]:
    return [BOI, *[IMAGE] * count, EOI]


def audio_run(count: int) -> list[int]:
    return [BOA, *[AUDIO] * count, EOA]


def without_media(processor: GemmaMultimodalProcessor, ids: list[int]) -> str:
    return processor.tokenizer.decode([i for i in ids if i not in (IMAGE, AUDIO)])


def tokens_of(prepared: PreparedInputs, modality: str) -> list[int]:
    return [medium.soft_tokens for medium in prepared.media if medium.modality == modality]


def contains(ids: list[int], run: list[int]) -> bool:
    return any(ids[i : i + len(run)] == run for i in range(len(ids)))


def test_a_raw_prompt_of_text(processor: GemmaMultimodalProcessor) -> None:
    prepared = processor.prepare_inputs("Hello there")
    assert prepared.input_ids[0] == 2 and processor.tokenizer.decode(prepared.input_ids[1:]) == "Hello there"
    assert processor.prepare_inputs("<bos>Hello there").input_ids == prepared.input_ids
    for name in ("pixel_values", "image_position_ids", "input_features", "input_features_mask"):
        assert getattr(prepared, name) is None
    assert prepared.features == {} and prepared.media == ()
    with pytest.raises(AttributeError, match="no attribute 'depth'"):
        prepared.depth  # noqa: B018
    with pytest.raises(AttributeError):
        prepared.input_ids = []  # type: ignore[misc]


def test_an_image_expands_where_it_stands(processor: GemmaMultimodalProcessor, files: dict[str, str]) -> None:
    prepared = processor.prepare_inputs("Look at <|image|>, please.", images=[files["square.png"]])
    count = prepared.media[0].soft_tokens
    assert count == 64 and contains(prepared.input_ids, image_run(64))
    assert prepared.input_ids.count(IMAGE) == 64
    assert without_media(processor, prepared.input_ids[1:]) == "Look at <|image><image|>, please."
    assert prepared.pixel_values is not None and prepared.pixel_values.shape == (1, 630, 768)
    assert prepared.image_position_ids is not None and prepared.image_position_ids.shape == (1, 630, 2)
    assert prepared.features["pixel_values"] is prepared.pixel_values
    assert prepared.input_features is None


def test_image_and_audio_in_order(processor: GemmaMultimodalProcessor, files: dict[str, str]) -> None:
    text = "<|image|> then <|audio|> then <|image|>"
    prepared = processor.prepare_inputs(text, images=[files["wide.png"], files["square.png"]], audio=files["tone.wav"])
    (wide, square), (clip,) = tokens_of(prepared, "vision"), tokens_of(prepared, "audio")
    assert (square, clip) == (64, 25) and wide != square
    first, second = (prepared.input_ids.index(run) for run in (BOI, BOA))
    assert prepared.input_ids[first : first + wide + 2] == image_run(wide)
    assert prepared.input_ids[second : second + 27] == audio_run(25)
    assert prepared.input_ids[-66:] == image_run(64)
    assert prepared.input_features is not None and prepared.input_features.shape[2] == 128
    assert [m.seconds for m in prepared.media if m.modality == "audio"] == [1.0]


def test_media_without_placeholders_go_where_the_modality_says(
    processor: GemmaMultimodalProcessor, files: dict[str, str]
) -> None:
    for text in ("What?", "<bos>What?"):
        ids = processor.prepare_inputs(text, images=files["square.png"], audio=[files["tone.wav"]]).input_ids
        assert ids[0] == 2 and ids.count(2) == 1
        assert ids[1:67] == image_run(64) and ids[-27:] == audio_run(25)


def test_messages_go_through_the_template(processor: GemmaMultimodalProcessor, files: dict[str, str]) -> None:
    messages = [{"role": "user", "content": "What is this?"}]
    ids = processor.prepare_inputs(messages, images=[files["square.png"]], audio=[files["tone.wav"]]).input_ids
    said = without_media(processor, ids)
    assert said == "<bos><|turn>user\n<|image><image|>What is this?<|audio><audio|><turn|>\n<|turn>model\n"
    assert messages == [{"role": "user", "content": "What is this?"}]
    bare = processor.prepare_inputs(messages, add_generation_prompt=False).input_ids
    assert without_media(processor, bare) == "<bos><|turn>user\nWhat is this?<turn|>\n"


def test_messages_carry_media_in_place(processor: GemmaMultimodalProcessor, files: dict[str, str]) -> None:
    square, wide = Path(files["square.png"]), Path(files["wide.png"])
    encoded = base64.b64encode(wide.read_bytes()).decode()
    sound = base64.b64encode(Path(files["tone.wav"]).read_bytes()).decode()
    counts = [processor.prepare_inputs("<|image|>", images=[p]).media[0].soft_tokens for p in (square, wide)]
    messages = [
        {"role": "user", "content": [
            {"type": "text", "text": "One"},
            {"type": "image", "path": str(square)},
            {"type": "text", "text": "two"},
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded}"}},
        ]},
        {"role": "assistant", "content": "Seen."},
        {"role": "user", "content": [
            {"type": "image", "base64": encoded},
            {"type": "image"},
            {"type": "input_audio", "input_audio": {"data": sound, "format": "wav"}},
            {"type": "text", "text": "And <|image|>?"},
        ]},
    ]
    prepared = processor.prepare_inputs(messages, images=[square, wide])
    assert tokens_of(prepared, "vision") == [counts[0], counts[1], counts[1], counts[0], counts[1]]
    assert tokens_of(prepared, "audio") == [25]
    assert without_media(processor, prepared.input_ids) == (
        "<bos><|turn>user\nOne<|image><image|>two<|image><image|><turn|>\n<|turn>model\nSeen.<turn|>\n"
        "<|turn>user\n<|image><image|><|image><image|><|audio><audio|>And <|image><image|>?<turn|>\n<|turn>model\n"
    )
    runs = [len(run) for run in "".join("i" if t == IMAGE else " " for t in prepared.input_ids).split()]
    assert runs == [counts[0], counts[1], counts[1], counts[0], counts[1]]


def test_carried_media_keep_their_order_among_placed_ones(
    processor: GemmaMultimodalProcessor, files: dict[str, str]
) -> None:
    first = [{"type": "image", "image": files["wide.png"]}, {"type": "text", "text": "A"}]
    last = [{"type": "text", "text": "C"}, {"type": "image", "image": picture(40, 120, 1)}]
    messages = [{"role": "user", "content": first}, {"role": "assistant", "content": "B"},
                {"role": "user", "content": last}]
    prepared = processor.prepare_inputs(messages, images=[files["square.png"]])
    assert [m.soft_tokens for m in prepared.media] == [prepared.media[0].soft_tokens, 64, prepared.media[0].soft_tokens]
    assert prepared.media[0].soft_tokens != 64
    assert "user\n<|image><image|>C<|image><image|>" in without_media(processor, prepared.input_ids)


def test_ids_with_one_placeholder_per_medium(processor: GemmaMultimodalProcessor, files: dict[str, str]) -> None:
    prepared = processor.prepare_inputs([2, 40, IMAGE, 41], images=[files["square.png"]])
    assert prepared.input_ids == [2, 40, *image_run(64), 41]
    again = processor.prepare_inputs(np.array(prepared.input_ids), images=[files["square.png"]])
    assert again.input_ids == prepared.input_ids
    with pytest.raises(InputError, match=r"2 <\|image\|> placeholders but 1 image"):
        processor.prepare_inputs([2, IMAGE, 40, IMAGE], images=[files["square.png"]])


def test_options_of_the_folder_the_processor_and_the_call(tmp_path: Path) -> None:
    folder, image = write_folder(tmp_path / "model"), picture(90, 90)
    tokens = lambda p, **more: p.prepare_inputs("x", images=[image], **more).media[0].soft_tokens  # noqa: E731
    plain = GemmaMultimodalProcessor.from_pretrained(folder)
    assert (tokens(plain), tokens(plain, image_tokens=280), tokens(plain)) == (64, 256, 64)
    assert tokens(GemmaMultimodalProcessor.from_pretrained(folder, image_tokens=140)) == 121
    long = np.zeros(40 * 16000)
    with pytest.raises(InputError, match=r"lasts 40\.0 s"):
        plain.prepare_inputs("x", audio=[long])
    assert plain.prepare_inputs("x", audio=[long], audio_truncate=True).media[0].soft_tokens == 750
    with pytest.raises(InputError, match="--image-tokens 100: must be one of 70"):
        tokens(plain, image_tokens=100)
    with pytest.raises(InputError, match="unknown option 'picture_tokens'"):
        GemmaMultimodalProcessor.from_pretrained(folder, picture_tokens=3)


def test_standard_input_and_file_objects(
    processor: GemmaMultimodalProcessor, files: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = Path(files["square.png"]).read_bytes()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
    prepared = processor.prepare_inputs("x", images=["-", io.BytesIO(data), data])
    assert [m.soft_tokens for m in prepared.media] == [64, 64, 64]
    assert processor.prepare_inputs("x", images="-").media[0].soft_tokens == 64  # it is prepared twice for one answer
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO()))
    with pytest.raises(InputError, match=r"- \(standard input\): is empty"):
        processor.prepare_inputs("x", images="-")


def test_urls_need_a_flag(tmp_path: Path, files: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = []

    def fetch(url: str) -> bytes:
        fetched.append(url)
        return Path(files["square.png"]).read_bytes()

    monkeypatch.setattr("gemma4_core.processing.sources.fetch", fetch)
    folder, url = write_folder(tmp_path / "model"), "https://example.org/square.png"
    with pytest.raises(InputError, match=r"https://example\.org/square\.png: URLs are fetched only with --allow-urls"):
        GemmaMultimodalProcessor.from_pretrained(folder).prepare_inputs("x", images=[url])
    assert not fetched
    allowed = GemmaMultimodalProcessor.from_pretrained(folder, allow_urls=True)
    assert allowed.prepare_inputs("x", images=[url]).media[0].soft_tokens == 64 and fetched == [url]


def test_media_are_read_once_for_several_turns(
    processor: GemmaMultimodalProcessor, files: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = processor.prepare_inputs("a <|image|>", images=[files["square.png"]])
    monkeypatch.setattr("PIL.Image.open", lambda *a, **k: pytest.fail("read again"))
    second = processor.prepare_inputs("a <|image|> b", images=[files["square.png"]])
    assert np.array_equal(first.pixel_values, second.pixel_values)  # type: ignore[arg-type]
    Path(files["square.png"]).write_bytes(b"changed")
    with pytest.raises(pytest.fail.Exception, match="read again"):
        processor.prepare_inputs("a <|image|>", images=[files["square.png"]])


def test_kept_media_are_bounded() -> None:
    kept: BoundedCache[bytes] = BoundedCache(3, 100, len)
    made = [kept.get(key, lambda key=key: bytes(40)) for key in "abab"]
    assert made[0] is made[2] and len(kept) == 2
    kept.get("c", lambda: bytes(40))
    assert len(kept) == 2 and kept.get("a", lambda: b"new") == b"new"  # a was used least recently
    kept.get("large", lambda: bytes(1000))
    assert len(kept) == 1


def test_limited_modalities(tmp_path: Path, files: dict[str, str]) -> None:
    folder = write_folder(tmp_path / "model")
    text_only = GemmaMultimodalProcessor.from_pretrained(folder, modalities=("text",))
    for call in ({"images": [files["square.png"]]}, {"audio": ["x.wav"]}):
        with pytest.raises(InputError, match=r"the modality (vision|audio) is not loaded; add it to --modality"):
            text_only.prepare_inputs("x", **call)
    with pytest.raises(InputError, match=r"the prompt holds <\|image\|>: the modality vision is not loaded"):
        text_only.prepare_inputs("see <|image|>")
    sees = GemmaMultimodalProcessor.from_pretrained(folder, modalities="text,vision")
    assert sees.prepare_inputs("x", images=[files["square.png"]]).media
    with pytest.raises(InputError, match=r"square\.png: the modality audio is not loaded"):
        sees.prepare_inputs("x", audio=[files["square.png"]])
    with pytest.raises(PluginError, match="smell"):
        GemmaMultimodalProcessor.from_pretrained(folder, modalities=["smell"])


def test_a_model_without_the_tower(tmp_path: Path, files: dict[str, str]) -> None:
    deaf = GemmaMultimodalProcessor.from_pretrained(write_folder(tmp_path / "model", audio_config=None))
    with pytest.raises(InputError, match=r"tone\.wav: this model has no audio tower"):
        deaf.prepare_inputs("x", audio=[files["tone.wav"]])
    with pytest.raises(InputError, match=r"the prompt holds <\|audio\|>: this model has no audio tower"):
        deaf.prepare_inputs([{"role": "user", "content": "hear <|audio|>"}])
    with pytest.raises(InputError, match=r"tone\.wav: no installed modality plugin takes it"):
        deaf.prepare_inputs("x", depths=[files["tone.wav"]])


@pytest.mark.parametrize(
    ("prompt", "images", "said"),
    [
        ("<|image|> <|image|>", 1, r"2 <\|image\|> placeholders but 1 image was given"),
        ("<|image|>", 2, r"1 <\|image\|> placeholder but 2 images were given"),
        ("<|image|>", 0, r"1 <\|image\|> placeholder but 0 image"),
        ([{"role": "user", "content": "<|image|> <|image|>"}], 1, r"2 <\|image\|> placeholders but 1 image"),
        ([{"role": "user", "content": [{"type": "image"}]}], 2, r"1 <\|image\|> placeholder but 2 image"),
        ([{"role": "assistant", "content": "x"}], 1, "there is no user message to put them in"),
    ],
)
def test_placeholders_and_media_must_agree(
    processor: GemmaMultimodalProcessor, prompt: Any, images: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("PIL.Image.open", lambda *a, **k: pytest.fail("read in vain"))
    with pytest.raises(InputError, match=said):
        processor.prepare_inputs(prompt, images=["absent.png"] * images)


@pytest.mark.parametrize(
    "messages",
    [
        [], [3.5], [{"role": "user"}], [{"role": 5, "content": "x"}], [{"role": "user", "content": 7}],
        [{"role": "user", "content": [{"text": "x"}]}], [{"role": "user", "content": [{"type": "smell"}]}],
        [{"role": "user", "content": [{"type": "text"}]}], [{"role": "user", "content": [None]}],
        [{"role": "user", "content": [{"type": "image", "base64": "@@"}]}], {"role": "user"}, None, 5,
    ],
)
def test_messages_that_cannot_be_understood(processor: GemmaMultimodalProcessor, messages: Any) -> None:
    with pytest.raises(Gemma4Error) as error:
        processor.prepare_inputs(messages)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


def test_folders_without_template_or_tokenizer(tmp_path: Path, files: dict[str, str]) -> None:
    base = GemmaMultimodalProcessor.from_pretrained(write_folder(tmp_path / "base", template=False))
    with pytest.raises(TokenizerError, match="has no chat template"):
        base.prepare_inputs([{"role": "user", "content": "x"}])
    assert base.prepare_inputs("x", images=[files["square.png"]]).pixel_values is not None
    bare = write_folder(tmp_path / "bare")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (bare / name).unlink()
    ids = GemmaMultimodalProcessor.from_pretrained(bare).prepare_inputs([2, 40, IMAGE], images=[files["square.png"]])
    assert ids.input_ids == [2, 40, *image_run(64)]
    with pytest.raises(Gemma4Error):
        GemmaMultimodalProcessor.from_pretrained(bare).prepare_inputs("text")
    (bare / "processor_config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"processor_config\.json"):
        GemmaMultimodalProcessor.from_pretrained(bare).prepare_inputs([2, IMAGE], images=[files["square.png"]])


def test_config_ids_count_where_the_tokenizer_differs(tmp_path: Path, files: dict[str, str]) -> None:
    folder = write_folder(tmp_path / "model", image_token_id=400, boi_token_id=401)
    ids = GemmaMultimodalProcessor.from_pretrained(folder).prepare_inputs("a<|image|>b", images=[files["square.png"]])
    assert contains(ids.input_ids, [401, *[400] * 64, EOI]) and IMAGE not in ids.input_ids


class Depths:
    """A stranger's modality: a number of soft tokens per file, features of its own."""

    def load(self, source: Any) -> int:
        if isinstance(source, int):
            return source
        if "broken" in str(source):
            raise KeyError("header")
        return len(source.open().read())

    def prepare(self, items: list[int]) -> PreparedMedia:
        return PreparedMedia({"depth_maps": np.array(items)}, [f"<|depth|>{'.' * i}" for i in items], [1] * len(items))


class Plugin:
    @hookimpl
    def gemma4_modality_towers(self) -> list[ModalityTower]:
        return [
            ModalityTower(
                name="depth", summary="", processor=lambda context, options: Depths(), build=lambda model, source: None,
                tensors=lambda config: {}, placeholder="<|depth|>", soft_token_id=lambda config: 300,
                media_option=Option("--depth", "", multiple=True), media_keyword="depths", keywords=("depth_maps",),
                placed="after",
            )
        ]


def test_a_strangers_modality(tmp_path: Path) -> None:
    registry.register(Plugin(), "depth-test")
    try:
        ours = GemmaMultimodalProcessor.from_pretrained(write_folder(tmp_path / "model"))
        (tmp_path / "map.bin").write_bytes(b"abc")
        prepared = ours.prepare_inputs("x <|depth|> y", depths=[tmp_path / "map.bin"])
        assert prepared.depth_maps is not None and prepared.depth_maps.tolist() == [3]
        assert prepared.input_ids.count(300) == 1 and prepared.features.keys() == {"depth_maps"}
        talk = [{"role": "user", "content": [{"type": "depth", "path": 2}, {"type": "text", "text": "Hi"}]}]
        told = ours.prepare_inputs(talk)  # the template knows no depth
        assert told.input_ids.count(300) == 1 and told.depth_maps is not None and told.depth_maps.tolist() == [2]
        assert ours.prepare_inputs("x").depth_maps is None
        with pytest.raises(InputError, match=r"broken\.bin: modality depth failed to read it: KeyError"):
            ours.prepare_inputs("x", depths=["broken.bin"])
    finally:
        registry.unregister("depth-test")


def test_a_checkpoint_of_text_alone(tmp_path: Path) -> None:
    config = tiny_config()
    folder = write_folder(tmp_path / "model")
    (folder / "config.json").write_text(json.dumps({**config["text_config"], "model_type": "gemma4_text"}))
    ours = GemmaMultimodalProcessor.from_pretrained(folder)
    assert ours.specs == [] and ours.prepare_inputs("Hello").input_ids[0] == 2
    assert Context().folder is None

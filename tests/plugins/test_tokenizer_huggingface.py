"""The huggingface tokenizer: released ids, round trips, streaming, and damaged files."""

from __future__ import annotations

import base64
import json
import os
import random
import threading
from pathlib import Path

import numpy as np
import pytest

from gemma4_core.contracts import ByteTokenizer, Context
from gemma4_core.errors import Gemma4Error, TokenizerError
from gemma4_core.silence import silent_stderr
from gemma4_core.text.tiny import TINY_MEDIA_IDS, TINY_STOP_IDS, TINY_TEXT_IDS, TINY_VOCAB_SIZE, copy_tiny_tokenizer
from gemma4_plugins.tokenizers import huggingface
from gemma4_plugins.tokenizers.growth import check_growth
from gemma4_plugins.tokenizers.guard import guarded

DATA = Path(__file__).parents[1] / "data" / "tokenizer"
VECTORS = json.loads((DATA / "vectors.json").read_text(encoding="utf-8"))


def opened(folder: Path):
    return huggingface.load(Context(folder=folder))


@pytest.fixture(scope="module")
def tokenizer():
    return opened(DATA)


@pytest.fixture
def tiny_folder(tmp_path: Path) -> Path:
    copy_tiny_tokenizer(tmp_path)
    return tmp_path


def refused(folder: Path) -> str:
    with pytest.raises(TokenizerError) as caught:
        opened(folder)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 500
    return message


def test_there_are_46_vectors_and_ours():
    assert len(VECTORS) > 46


@pytest.mark.parametrize("vector", VECTORS, ids=range(len(VECTORS)))
def test_ids_are_those_of_the_released_tokenizer(tokenizer, vector):
    assert tokenizer.encode(vector["text"]) == vector["ids"]
    assert tokenizer.decode(vector["ids"]) == vector["text"].replace("\u2581", " ")


def test_description_serves_folders_with_the_file(tiny_folder: Path, tmp_path: Path):
    [backend] = huggingface.gemma4_tokenizers()
    assert (backend.name, backend.priority) == ("huggingface", 20)
    assert backend.matches(Context(folder=tiny_folder))
    assert not backend.matches(Context(folder=tmp_path / "absent")) and not backend.matches(Context())


def test_the_shipped_tokenizer_fits_any_vocabulary_from_512(tiny_folder: Path):
    tiny = opened(tiny_folder)
    assert tiny.vocab_size == TINY_VOCAB_SIZE == 512
    assert max(tiny.encode("<|turn>user\nÅ \U0001f999 naïve 漢字 def f(x): return x ** 2\t\0<turn|>")) < 512
    tokens = tiny.special_tokens
    assert [tokens["<eos>"], tokens["<turn|>"], tokens["<|tool_response>"]] == list(TINY_STOP_IDS)
    assert dict(TINY_TEXT_IDS) == {f"{name}_token_id": tokens[f"<{name}>"] for name in ("pad", "eos", "bos")}
    names = {"boi": "<|image>", "image": "<|image|>", "eoi": "<image|>", "boa": "<|audio>", "audio": "<|audio|>",
             "eoa": "<audio|>", "video": "<|video|>"}
    assert dict(TINY_MEDIA_IDS) == {f"{key}_token_id": tokens[text] for key, text in names.items()}


def test_control_tokens_flagged_as_ordinary_are_special_to_us(tokenizer):
    assert len(tokenizer.special_tokens) == 24
    ids = tokenizer.encode("<|turn>model\n<|channel>hi<channel|>there<turn|><eos>")
    assert tokenizer.decode(ids, skip_special=True) == "model\nhithere"
    assert tokenizer.decode(ids) == "<|turn>model\n<|channel>hi<channel|>there<turn|><eos>"


def test_nothing_is_added_and_bos_in_text_is_one_token(tokenizer):
    bos = tokenizer.special_tokens["<bos>"]
    assert bos not in tokenizer.encode("Hello") and tokenizer.encode("") == []
    assert tokenizer.encode("<bos>Hello").count(bos) == 1


def test_bytes_of_a_character_are_held_until_it_is_complete(tokenizer):
    ids = tokenizer.encode("\U0001f40b")
    assert ids == [24 + byte for byte in "\U0001f40b".encode()]
    stream = tokenizer.stream()
    assert [stream.add(token) for token in ids] == ["", "", "", "\U0001f40b"] and stream.flush() == ""
    stream = tokenizer.stream()
    assert [stream.add(token) for token in ids[:2]] == ["", ""] and stream.flush() == "\ufffd"
    assert tokenizer.decode(ids[:2]) == "\ufffd"


def test_a_broken_character_before_text_becomes_the_replacement_character(tokenizer):
    ids = tokenizer.encode("\U0001f40b")[:3] + tokenizer.encode("Hello")
    stream = tokenizer.stream()
    assert [stream.add(token) for token in ids] == ["", "", "", "\ufffdHello"]


@pytest.mark.parametrize("skip_special", [False, True])
def test_streaming_equals_decoding_for_random_ids(tokenizer, skip_special):
    draw = random.Random(5)
    lead = [tokenizer.encode("\U0001f40b")[0], 24 + 0xC3, 24 + 0xA9, 24 + 0xFF]
    for _ in range(200):
        ids = [draw.choice([draw.randrange(tokenizer.vocab_size), *lead, 24 + 0x9F]) for _ in range(draw.randrange(40))]
        stream = tokenizer.stream(skip_special)
        assert "".join(map(stream.add, ids)) + stream.flush() == tokenizer.decode(ids, skip_special)


def test_random_text_survives_encoding_and_streaming(tokenizer):
    draw = random.Random(6)
    letters = "abc XYZ\n\t09.,<|>éß漢字かなнет🦙\u200d\0\x7f<|turn><bos>"
    for _ in range(200):
        text = "".join(draw.choice(letters) for _ in range(draw.randrange(60)))
        stream = tokenizer.stream()
        assert "".join(map(stream.add, tokenizer.encode(text))) + stream.flush() == text


@pytest.mark.parametrize("token", [-1, 731, 2**31, 2**64, 1 << 5000], ids=range(5))
def test_an_id_outside_the_vocabulary_is_refused_by_decode(tokenizer, token):
    with pytest.raises(TokenizerError, match="not in the tokenizer's vocabulary of 731"):
        tokenizer.decode([5, token])


@pytest.mark.parametrize("token", [True, 1.5, "7", None, float("nan")])
def test_what_is_no_id_is_refused(tokenizer, token):
    with pytest.raises(TokenizerError, match="whole number"):
        tokenizer.decode([token])


def test_numpy_ids_are_ids_and_an_unknown_one_does_not_end_a_stream(tokenizer):
    assert tokenizer.decode(np.array(tokenizer.encode("Hello"))) == "Hello"
    assert tokenizer.stream().add(731) == "\ufffd"


def test_a_digest_is_that_of_all_that_decides_about_ids(tiny_folder: Path):
    first = opened(tiny_folder)
    assert isinstance(first, ByteTokenizer) and first.piece(300) == first.decode([300]).encode()
    assert first.digest() == opened(tiny_folder).digest()
    file = tiny_folder / "tokenizer.json"
    file.write_text(file.read_text() + " ")
    changed = opened(tiny_folder).digest()
    (tiny_folder / "tokenizer_config.json").write_text(json.dumps({"extra_special_tokens": ["a"]}))
    assert len({first.digest(), changed, opened(tiny_folder).digest()}) == 3


def test_a_lone_surrogate_is_named(tokenizer):
    with pytest.raises(TokenizerError, match=r"U\+D83E, a lone surrogate, at character 2"):
        tokenizer.encode("ab\ud83ecd")
    with pytest.raises(TokenizerError, match="not bytes"):
        tokenizer.encode(b"ab")


def test_long_text_round_trips(tokenizer):
    text = "Hello world \n" * 20000
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_truncation_and_padding_of_the_file_are_switched_off(tiny_folder: Path):
    path = tiny_folder / "tokenizer.json"
    raw = json.loads(path.read_text(encoding="utf-8"))
    raw["truncation"] = {"max_length": 3, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    raw["padding"] = {"strategy": {"Fixed": 9}, "direction": "Left", "pad_to_multiple_of": None, "pad_id": 0,
                      "pad_type_id": 0, "pad_token": "<pad>"}
    path.write_text(json.dumps(raw), encoding="utf-8")
    changed = opened(tiny_folder)
    assert changed.decode(changed.encode("a b c d e")) == "a b c d e" and changed.encode("") == []


@pytest.mark.parametrize("text", ["", "{", "null", "[]", "{}", '{"model": {}}', '{"version": "1.0"}', "\0\0"])
def test_a_damaged_file_is_named(tiny_folder: Path, text: str):
    (tiny_folder / "tokenizer.json").write_text(text)
    assert "tokenizer.json" in refused(tiny_folder)


def test_random_damage_never_passes_as_anything_but_an_error_or_a_tokenizer(tiny_folder: Path):
    path = tiny_folder / "tokenizer.json"
    whole, draw = path.read_bytes(), random.Random(7)
    for _ in range(60):
        data = bytearray(whole[: draw.randrange(len(whole))] if draw.random() < 0.3 else whole)
        for _ in range(draw.randrange(1, 6)):
            data[draw.randrange(len(data))] = draw.randrange(256)
        path.write_bytes(data)
        try:
            loaded = opened(tiny_folder)
            loaded.decode(loaded.encode("Hello <|turn>"))
        except Gemma4Error as error:
            assert "\n" not in str(error) and len(str(error)) < 500


def changed(folder: Path, last: bool = False, **parts: object) -> None:
    """Parts of tokenizer.json replaced; with ``last``, they follow the model as parts of the same names."""
    path = folder / "tokenizer.json"
    raw = json.loads(path.read_text(encoding="utf-8"))
    text = json.dumps(raw if last else raw | parts)
    path.write_text(f"{text[:-1]}, {json.dumps(parts)[1:]}" if last else text, encoding="utf-8")


def hundredfold(kind: str, times: int = 5) -> dict:
    step = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 100}
    return {"type": "Sequence", kind: [step] * times}


GROWING = {
    "normalizer": hundredfold("normalizers"),
    "nested": {"type": "Sequence", "normalizers": [hundredfold("normalizers", 2)] * 2},
    "expression": {"type": "Replace", "pattern": {"Regex": ""}, "content": "a" * 100},
    "prepend": {"type": "Prepend", "prepend": "a" * 100},
    "forms": {"type": "Sequence", "normalizers": [{"type": "NFKD"}, {"type": "Lowercase"}, {"type": "ByteLevel"}] * 3},
    "charsmap": {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(bytes(4) + b"a" * 300).decode()},
    "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
        {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": False}] * 30},
    "decoder": hundredfold("decoders"),
}


@pytest.mark.parametrize("name", GROWING)
def test_tokenizer_rules_that_grow_a_text_are_refused_before_they_run(tiny_folder: Path, name: str):
    """An added token is normalized as the library opens the file."""
    part = name if name in ("pre_tokenizer", "decoder") else "normalizer"
    changed(tiny_folder, **{part: GROWING[name]}, added_tokens=[
        {"id": 512, "content": "a" * 99, "single_word": False, "lstrip": False, "rstrip": False, "normalized": True,
         "special": False}])
    message = refused(tiny_folder)
    assert f"tokenizer.json: {part} can make a text 64 times longer" in message


def test_tokenizer_rules_that_follow_the_model_are_not_used_unchecked(tiny_folder: Path):
    ids = opened(tiny_folder).encode("a b")
    changed(tiny_folder, last=True, normalizer=hundredfold("normalizers"), truncation={
        "max_length": 1, "strategy": "LongestFirst", "stride": 0, "direction": "Right"})
    assert opened(tiny_folder).encode("a b") == ids
    path = tiny_folder / "tokenizer.json"
    raw = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({"model": raw.pop("model")} | raw), encoding="utf-8")
    assert "normalizer can make" in refused(tiny_folder)
    path.write_text(path.read_text().replace('"normalizer"', '"\\u006eormalizer"'))
    assert "normalizer can make" in refused(tiny_folder)


def test_tokenizer_json_with_its_model_first_has_the_same_ids(tiny_folder: Path):
    ids = opened(tiny_folder).encode("Hello <|turn> \u00e9")
    path = tiny_folder / "tokenizer.json"
    raw = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({"model": raw.pop("model")} | raw, indent=1), encoding="utf-8")
    assert opened(tiny_folder).encode("Hello <|turn> \u00e9") == ids


def test_common_rules_are_not_refused():
    spaces = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "▁"}
    space = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    charsmap = base64.b64encode(bytes(4) + b"x\0" + b"y" * 33).decode()  # as long as Unicode's longest
    for rules in (
        [{"type": "Prepend", "prepend": "▁"}, space], [{"type": "BertNormalizer"}], [{"type": "NFKC"}], [],
        [{"type": "Precompiled", "precompiled_charsmap": charsmap}, spaces],
    ):
        assert 1 <= check_growth({"type": "Sequence", "normalizers": rules}, "here") < 64


PANICS = {
    "charsmap": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
    "length": {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
    "strip": {"decoder": {"type": "Strip", "content": "a", "start": 50, "stop": 50}},
    "retries": {"normalizer": {"type": "Replace", "pattern": {"Regex": "^(a|a?)+$"}, "content": "x"}},
}


@pytest.mark.parametrize("name", PANICS)
def test_tokenizer_panics_are_errors_of_one_line(tiny_folder: Path, name: str, capfd: pytest.CaptureFixture[str]):
    changed(tiny_folder, **PANICS[name])
    try:
        loaded = opened(tiny_folder)
        ids = loaded.encode("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa!")
        stream = loaded.stream()
        for token in ids:
            stream.add(token)
        loaded.decode(ids)
    except TokenizerError as error:
        assert "\n" not in str(error) and len(str(error)) < 500 and "tokenizer.json" in str(error)
    else:
        pytest.fail("nothing panicked")
    assert capfd.readouterr().err == ""


def test_an_interrupt_passes_the_guard():
    with pytest.raises(KeyboardInterrupt), guarded("here"):
        raise KeyboardInterrupt


def test_silence_ends_when_threads_overlap(capfd: pytest.CaptureFixture[str]):
    inside, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with silent_stderr():
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    inside.wait(10)
    with silent_stderr():
        leave.set()
        thread.join()
        os.write(2, b"held back")
    os.write(2, b"seen")
    assert capfd.readouterr().err == "seen"


def test_tokenizer_surrogates_in_tokenizer_config_are_named(tiny_folder: Path):
    for keys in ({"bos_token": "\ud800"}, {"extra_special_tokens": ["\udfff"]}, {"mask_token": {"content": "a\ud800"}},
                 {"added_tokens_decoder": {"600": {"content": "\ud800"}}}):
        (tiny_folder / "tokenizer_config.json").write_text(json.dumps(keys))
        message = refused(tiny_folder)
        assert "surrogate" in message and next(iter(keys)) in message
        message.encode()


def test_empty_special_tokens_are_no_tokens(tiny_folder: Path):
    ids = opened(tiny_folder).encode("Hello")
    configured(tiny_folder, pad_token="", extra_special_tokens=[""])
    assert opened(tiny_folder).encode("Hello") == ids
    configured(tiny_folder, added_tokens_decoder={"512": {"content": ""}})
    assert "no place" in refused(tiny_folder)


def test_post_processors_add_nothing(tiny_folder: Path):
    plain = opened(tiny_folder).encode("Hello")
    changed(tiny_folder, post_processor={
        "type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<bos>", "type_id": 0}},
                                                 {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<bos>": {"id": "<bos>", "ids": [2], "tokens": ["<bos>"]}}})
    assert opened(tiny_folder).encode("Hello") == plain


def test_tokenizer_files_beyond_the_limits_are_refused(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch):
    token = {"id": 512, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    changed(tiny_folder, added_tokens=[token | {"content": "x" * (9 << 20)}])
    assert "added_tokens take more than 8 MiB" in refused(tiny_folder)
    copy_tiny_tokenizer(tiny_folder)
    path = tiny_folder / "tokenizer.json"
    raw = json.loads(path.read_text(encoding="utf-8"))
    raw["model"]["vocab"]["far"] = 4_000_000_000
    path.write_text(json.dumps(raw), encoding="utf-8")
    assert "the id 4000000000" in refused(tiny_folder)
    copy_tiny_tokenizer(tiny_folder)
    changed(tiny_folder, model=json.loads(path.read_text())["model"] | {
        "continuing_subword_prefix": "x" * 65, "merges": []})
    assert "continuing_subword_prefix has more than 64" in refused(tiny_folder)
    monkeypatch.setattr(huggingface, "ITEM_LIMIT", 100)
    assert "more than 100 items" in refused(tiny_folder)


def test_many_added_tokens_are_added_at_once(tiny_folder: Path):
    configured(tiny_folder, added_tokens_decoder={
        str(512 + i): {"content": f"<|new{i}|>", "special": True} for i in range(20_000)})
    grown = opened(tiny_folder)
    assert grown.vocab_size == 20_512 and grown.encode("<|new19999|>a<|new0|>")[::2] == [20_511, 512]


def test_a_missing_file_and_no_folder_are_named(tmp_path: Path):
    assert str(tmp_path) in refused(tmp_path) and "--prompt-tokens" in refused(tmp_path)
    with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
        huggingface.load(Context())


def test_not_utf8_is_said(tiny_folder: Path):
    (tiny_folder / "tokenizer.json").write_bytes(b'{"a": "\xff"}')
    assert "not UTF-8" in refused(tiny_folder)


def configured(folder: Path, **keys: object) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def test_tokens_that_tokenizer_config_adds_are_known(tiny_folder: Path):
    configured(tiny_folder, added_tokens_decoder={
        "512": {"content": "<|new|>", "special": True}, "513": {"content": "wörd", "special": False},
        "1": {"content": "<eos>", "special": True}})
    grown = opened(tiny_folder)
    assert grown.vocab_size == 514
    ids = grown.encode("a<|new|>wörd")
    assert ids[1:] == [512, 513] and grown.special_tokens["<|new|>"] == 512
    assert grown.decode(ids) == "a<|new|>wörd" and grown.decode(ids, skip_special=True) == "awörd"


def test_a_special_token_named_only_in_tokenizer_config_is_recognised(tiny_folder: Path):
    path = tiny_folder / "tokenizer.json"
    raw = json.loads(path.read_text(encoding="utf-8"))
    raw["added_tokens"] = [token for token in raw["added_tokens"] if token["content"] != "<|turn>"]
    path.write_text(json.dumps(raw), encoding="utf-8")
    assert opened(tiny_folder).encode("<|turn>") == [15]


@pytest.mark.parametrize(
    ("added", "says"),
    [
        ({"9": {"content": "<eos>"}}, "it is 1"),
        ({"600": {"content": "<|x|>"}}, "no place"),
        ({"-1": {"content": "<|x|>"}}, "not a token id"),
        ({"1": {"content": 5}}, "added_tokens_decoder.1"),
        ([1], "must be an object"),
    ],
)
def test_added_tokens_that_disagree_are_refused(tiny_folder: Path, added: object, says: str):
    configured(tiny_folder, added_tokens_decoder=added)
    message = refused(tiny_folder)
    assert says in message and "tokenizer_config.json" in message


@pytest.mark.parametrize("keys", [{"bos_token": 3}, {"extra_special_tokens": "x"}, {"chat_template": [1]}])
def test_a_wrong_tokenizer_config_is_refused(tiny_folder: Path, keys: dict):
    configured(tiny_folder, **keys)
    message = refused(tiny_folder)
    assert next(iter(keys)) in message and "tokenizer_config.json" in message


def test_broken_tokenizer_config_is_named(tiny_folder: Path):
    (tiny_folder / "tokenizer_config.json").write_text("{")
    assert "tokenizer_config.json" in refused(tiny_folder)


def saved(backend, folder: Path):
    backend.save(str(folder / "tokenizer.json"))
    return opened(folder)


def test_a_byte_level_tokenizer_streams_too(tmp_path: Path):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<bos>"])
    loaded = saved(backend, tmp_path)
    assert isinstance(loaded, huggingface.JsonTokenizer)
    text = "<bos>Ünï 漢 \U0001f999\n"
    ids = loaded.encode(text)
    assert loaded.decode(ids) == text == backend.decode(ids, skip_special_tokens=False)
    stream = loaded.stream()
    assert "".join(map(stream.add, ids)) == text


def test_a_leading_space_of_the_encoder_is_stripped_once(tiny_folder: Path):
    from tokenizers import Tokenizer, decoders, normalizers

    backend = Tokenizer.from_file(str(tiny_folder / "tokenizer.json"))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    loaded = saved(backend, tiny_folder)
    for text in ("Hello", " Hello", "  é"):
        ids = loaded.encode(text)
        stream = loaded.stream()
        assert loaded.decode(ids) == text == "".join(map(stream.add, ids)) + stream.flush()


def test_another_decoder_is_asked_for_the_whole_sequence(tmp_path: Path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {"<unk>": 0, "<bos>": 1, "red": 2, "blue": 9}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    loaded = saved(backend, tmp_path)
    assert loaded.vocab_size == 10 and loaded.encode("<bos> red blue") == [1, 2, 9]
    assert loaded.decode([1, 2, 9]) == "<bos> red blue" and loaded.decode([1, 2, 9], skip_special=True) == "red blue"
    stream = loaded.stream(skip_special=True)
    assert [stream.add(token) for token in (1, 2, 9, 2)] == ["", "red", " blue", " red"] and stream.flush() == ""
    assert [stream.add(token) for token in (5, 10, -1)] == ["", "", ""]  # a hole in the vocabulary ends no answer
    for token in (5, 10, -1):
        with pytest.raises(TokenizerError, match="vocabulary of 10"):
            loaded.decode([token])

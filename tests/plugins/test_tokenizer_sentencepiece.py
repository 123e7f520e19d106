"""The sentencepiece and raw tokenizers, and BOS exactly once."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gemma4_core.contracts import Context
from gemma4_core.errors import TokenizerError
from gemma4_core.text.prompt import has_text, prompt_ids
from gemma4_plugins.tokenizers import raw
from gemma4_plugins.tokenizers import sentencepiece as plugin

MODEL = Path(__file__).parents[1] / "data" / "tokenizer" / "tokenizer.model"
TEXTS = (
    "", " ", "  two  spaces ", "Hello world", "tab\tline\nline\n\n\nend", "naïve 漢字 \U0001f999 e\u0301", "\0 \x7f",
    "<bos><|turn>user\nHi<turn|>\n<|image>x<|image|><image|>", '<|tool_call>call:f{a:<|"|>b<|"|>}<tool_call|>',
    "< bos> <|turn", "3333333 and 14:25",
)


def opened(folder: Path):
    return plugin.load(Context(folder=folder))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copy(MODEL, tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("spm")
    shutil.copy(MODEL, folder)
    return opened(folder)


def refused(folder: Path) -> str:
    with pytest.raises(TokenizerError) as caught:
        opened(folder)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 500
    return message


def test_description_comes_after_tokenizer_json(folder: Path):
    [backend] = plugin.gemma4_tokenizers()
    assert (backend.name, backend.priority) == ("sentencepiece", 10)
    assert backend.matches(Context(folder=folder)) and not backend.matches(Context())


@pytest.mark.parametrize("text", TEXTS)
def test_text_survives(tokenizer, text):
    ids = tokenizer.encode(text)
    stream = tokenizer.stream()
    assert tokenizer.decode(ids) == text == "".join(map(stream.add, ids)) + stream.flush()


def test_plain_text_has_the_library_s_ids(tokenizer):
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_proto=MODEL.read_bytes())
    for text in TEXTS:
        if "<" not in text:
            assert tokenizer.encode(text) == processor.encode(text)
            assert tokenizer.decode(processor.encode(text)) == processor.decode(processor.encode(text))


def test_control_symbols_in_text_are_recognised(tokenizer):
    """The library itself takes ``<bos>`` for five characters."""
    specials = tokenizer.special_tokens
    assert tokenizer.encode("<bos>Hi<eos>")[0] == specials["<bos>"] == 2
    assert tokenizer.encode("<|tool>") == [specials["<|tool>"]] and tokenizer.encode("<|turn>") == [specials["<|turn>"]]
    assert len(specials) == 24
    assert tokenizer.decode(tokenizer.encode("<bos><|turn>Hi<turn|>"), skip_special=True) == "Hi"


def test_user_defined_symbols_that_are_text_stay(tokenizer):
    assert len(tokenizer.encode("\n\n")) == 1 and "\n\n" not in tokenizer.special_tokens
    assert tokenizer.decode(tokenizer.encode("\n\n"), skip_special=True) == "\n\n"


def test_byte_fallback_is_held_until_complete(tokenizer):
    ids = [tokenizer.encode("\0")[0] + byte for byte in "€".encode()]
    stream = tokenizer.stream()
    assert [stream.add(token) for token in ids] == ["", "", "€"]
    assert tokenizer.decode(ids[:2]) == "\ufffd" and tokenizer.decode([ids[1]]) == "\ufffd"


def test_streaming_equals_decoding_for_random_ids(tokenizer):
    draw = random.Random(8)
    for skip_special in (False, True):
        for _ in range(100):
            ids = [draw.randrange(tokenizer.vocab_size) for _ in range(draw.randrange(40))]
            stream = tokenizer.stream(skip_special)
            assert "".join(map(stream.add, ids)) + stream.flush() == tokenizer.decode(ids, skip_special)


@pytest.mark.parametrize("token", [-1, 600, 1 << 40])
def test_an_id_outside_the_vocabulary_is_refused(tokenizer, token):
    with pytest.raises(TokenizerError, match="vocabulary of 600"):
        tokenizer.decode([token])
    assert tokenizer.stream().add(token) == "\ufffd"


def test_a_lone_surrogate_is_named(tokenizer):
    with pytest.raises(TokenizerError, match=r"U\+DC80"):
        tokenizer.encode("a\udc80")


def test_long_text_round_trips(tokenizer):
    text = "Hello world \n" * 20000
    assert tokenizer.decode(tokenizer.encode(text)) == text


def configured(folder: Path, **keys: object) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps(keys))


def test_tokens_that_tokenizer_config_adds_are_known(folder: Path):
    configured(folder, added_tokens_decoder={
        "600": {"content": "<|new|>", "special": True}, "601": {"content": "wörd"}, "2": {"content": "<bos>"}})
    grown = opened(folder)
    assert grown.vocab_size == 602 and grown.encode("<|new|>wörd<bos>") == [600, 601, 2]
    assert grown.decode([600, 601], skip_special=True) == "wörd"


@pytest.mark.parametrize(
    ("added", "says"),
    [({"9": {"content": "<eos>"}}, "it is 1"), ({"99999999": {"content": "x!"}}, "no place"),
     ({"30": {"content": "x!"}}, "no place")],
)
def test_added_tokens_that_disagree_are_refused(folder: Path, added: object, says: str):
    configured(folder, added_tokens_decoder=added)
    message = refused(folder)
    assert says in message and "tokenizer_config.json" in message


@pytest.mark.parametrize("data", [b"", b"x", b"{}", bytes(100)])
def test_a_damaged_file_is_named(folder: Path, data: bytes):
    (folder / "tokenizer.model").write_bytes(data)
    assert "tokenizer.model" in refused(folder)


def test_a_cut_file_is_named_and_the_library_is_silent(folder: Path, capfd: pytest.CaptureFixture[str]):
    (folder / "tokenizer.model").write_bytes(MODEL.read_bytes()[:5000])
    assert "tokenizer.model" in refused(folder)
    assert capfd.readouterr().err == ""


def test_random_damage_is_an_error_or_a_tokenizer(folder: Path):
    """In a process of its own: native code reads these bytes."""
    code = """
import random, sys
from pathlib import Path
from gemma4_core.contracts import Context
from gemma4_core.errors import Gemma4Error
from gemma4_plugins.tokenizers.sentencepiece import load
folder = Path(sys.argv[1])
path, draw = folder / "tokenizer.model", random.Random(9)
whole = path.read_bytes()
refused = 0
for _ in range(150):
    data = bytearray(whole)
    for _ in range(draw.choice([1, 3, 30])):
        data[draw.randrange(len(data))] = draw.randrange(256)
    path.write_bytes(data)
    try:
        loaded = load(Context(folder=folder))
        loaded.decode(loaded.encode("Hello <|turn> \\u20ac"))
    except Gemma4Error as error:
        refused += 1
        assert "\\n" not in str(error) and len(str(error)) < 500
assert 0 < refused < 150
"""
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def field(number: int, content: bytes) -> bytes:
    size, length = len(content), b""
    while size > 127:
        length, size = length + bytes([size & 127 | 128]), size >> 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + content


def test_tokenizer_model_rules_that_grow_a_text_are_refused(folder: Path):
    charsmap = bytes(4) + b"a" * 1000 + b"\0"
    data = MODEL.read_bytes()
    for grown in (data + field(3, field(2, charsmap)), field(3, field(1, b"own") + field(2, charsmap)) + data):
        (folder / "tokenizer.model").write_bytes(grown)
        assert "make a text 333 times longer" in refused(folder)


def test_a_token_of_the_empty_string_is_none(folder: Path):
    plain = opened(folder).encode("Hello world")
    configured(folder, pad_token="", added_tokens_decoder={"600": {"content": "", "special": True}})
    assert opened(folder).encode("Hello world") == plain


def test_a_missing_file_and_no_folder_are_named(tmp_path: Path):
    assert str(tmp_path) in refused(tmp_path)
    with pytest.raises(TokenizerError, match=r"tokenizer\.model"):
        plugin.load(Context())


def test_a_model_with_a_dummy_prefix_loses_it_again(tmp_path: Path):
    import io

    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["hello world how are you"] * 20), model_writer=model, model_type="unigram",
        vocab_size=285, byte_fallback=True, hard_vocab_limit=False, num_threads=1, minloglevel=2)
    (tmp_path / "tokenizer.model").write_bytes(model.getvalue())
    loaded = opened(tmp_path)
    ids = loaded.encode("hello world")
    assert loaded.decode(ids) == "hello world"
    assert loaded.decode(ids[-1:]) == loaded.decode(ids[-1:]).lstrip()


def test_the_library_is_imported_only_when_a_folder_needs_it():
    code = (
        "import sys\nfrom gemma4_plugins.tokenizers import sentencepiece, huggingface, raw\n"
        "for m in (sentencepiece, huggingface, raw): m.gemma4_tokenizers()\n"
        "assert not {'sentencepiece', 'tokenizers', 'jinja2', 'tinygrad'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_raw_serves_every_folder_and_has_no_text(tmp_path: Path):
    [backend] = raw.gemma4_tokenizers()
    assert (backend.name, backend.priority) == ("raw", 0)
    assert backend.matches(Context()) and backend.matches(Context(folder=tmp_path))
    loaded = backend.load(Context())
    assert not has_text(loaded) and not has_text(None) and loaded.special_tokens == {}
    with pytest.raises(TokenizerError, match=r"'Hello'.*--prompt-tokens"):
        loaded.encode("Hello")
    for use in (lambda: loaded.decode([1]), loaded.stream):
        with pytest.raises(TokenizerError, match="no tokenizer"):
            use()


def test_bos_is_there_exactly_once(tokenizer):
    assert has_text(tokenizer)
    hello = tokenizer.encode("Hello")
    assert prompt_ids(tokenizer, "Hello", 2) == prompt_ids(tokenizer, "<bos>Hello", 2) == [2, *hello]
    assert prompt_ids(tokenizer, "Hello", None) == hello and prompt_ids(tokenizer, "", 2) == [2]
    assert prompt_ids(tokenizer, "Hello<bos>", 2) == [2, *hello, 2]

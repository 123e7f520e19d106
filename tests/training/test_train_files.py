"""Data in other files than JSON Lines: Parquet, Arrow, JSON lists, gzip, and folders of datasets."""

from __future__ import annotations

import gzip
import io
import json
import sys
import wave
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_tools import failure, gemma4, usage
from PIL import Image
from processor_folder import write_folder
from train_tools import Place

from gemma4_core import Gemma4Error, GemmaMultimodalProcessor
from gemma4_core.text.tiny import TINY_MEDIA_IDS
from gemma4_core.training import read_examples
from gemma4_core.training.data import Batches, Example, modalities_of, read_records
from gemma4_core.training.data import stored_media as media_module

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

ROWS: Sequence[dict[str, Any]] = [
    {"prompt": "One?", "completion": "one"}, {"prompt": "Two?", "completion": "two"},
    {"prompt": "Three?", "completion": "three"},
]
TALK = [{"role": "user", "content": "One?"}, {"role": "assistant", "content": "one"}]


@pytest.fixture(scope="module")
def processor(tmp_path_factory: pytest.TempPathFactory) -> GemmaMultimodalProcessor:
    return GemmaMultimodalProcessor.from_pretrained(write_folder(tmp_path_factory.mktemp("p") / "tiny"))


def parquet(path: Path, rows: Any = ROWS, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(list(rows)), path, **options)
    return path


def arrow(path: Path, rows: Any = ROWS, stream: bool = False) -> Path:
    """An Arrow file with a footer, or without one, as ``datasets`` writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(list(rows))
    with (pa.ipc.new_stream if stream else pa.ipc.new_file)(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return path


def lines(path: Path, rows: Any = ROWS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def same(one: Sequence[Example], two: Sequence[Example]) -> None:
    assert len(one) == len(two)
    for a, b in zip(one, two, strict=True):
        assert a.ids.tolist() == b.ids.tolist() and a.labels.tolist() == b.labels.tolist()


def told(read: Callable[[], Any]) -> str:
    """The one sentence with which a file is refused."""
    with pytest.raises(Gemma4Error) as caught:
        read()
    message = str(caught.value)
    assert "\n" not in message and len(message) < 500
    return message


# ---------------------------------------------------------------------------------------------------- formats


def test_all_formats_give_the_same_examples(processor: Any, tmp_path: Path) -> None:
    plain = read_examples(lines(tmp_path / "d.jsonl"), processor).items
    (tmp_path / "list.json").write_text(json.dumps(ROWS, indent=2))
    (tmp_path / "bom.json").write_bytes(b"\xef\xbb\xbf \n" + json.dumps(ROWS).encode())
    (tmp_path / "d.jsonl.gz").write_bytes(gzip.compress((tmp_path / "d.jsonl").read_bytes()))
    (tmp_path / "list.json.gz").write_bytes(gzip.compress((tmp_path / "list.json").read_bytes()))
    files = [
        parquet(tmp_path / "d.parquet"), parquet(tmp_path / "small.parquet", row_group_size=1, compression="zstd"),
        arrow(tmp_path / "file.arrow"), arrow(tmp_path / "stream.arrow", stream=True),
        parquet(tmp_path / "no-suffix"), arrow(tmp_path / "no-suffix-arrow"),
        *(tmp_path / name for name in ("list.json", "bom.json", "d.jsonl.gz", "list.json.gz")),
    ]
    for path in files:
        found = read_examples(path, processor).items
        same(found, plain)
        assert [item.where.rpartition(":")[2] for item in found] == ["1", "2", "3"] and path.name in found[0].where


def test_nested_rows_lose_what_is_null(processor: Any, tmp_path: Path) -> None:
    call = {"type": "function", "function": {"name": "look", "arguments": {"city": "Oslo", "day": None}}}
    other = {"type": "function", "function": {"name": "look", "arguments": {"city": None, "day": "May"}}}
    rows = [
        {"messages": [TALK[0], {"role": "assistant", "content": None, "tool_calls": [one]},
                      {"role": "tool", "content": "5", "name": "look"}, TALK[1]], "tools": None}
        for one in (call, other)
    ]
    found = read_examples(parquet(tmp_path / "d.parquet", rows), processor).items
    texts = ["".join(processor.tokenizer.decode([int(t)]) for t in item.ids) for item in found]
    assert 'call:look{city:<|"|>Oslo<|"|>}' in texts[0] and 'call:look{day:<|"|>May<|"|>}' in texts[1]
    for row in rows:
        row["messages"][1]["tool_calls"] = [json.loads(json.dumps(row["messages"][1]["tool_calls"]))[0]]
        arguments = row["messages"][1]["tool_calls"][0]["function"]["arguments"]
        for key in [key for key, value in arguments.items() if value is None]:
            del arguments[key]
    same(found, read_examples(lines(tmp_path / "d.jsonl", rows), processor).items)


def test_odd_types_that_are_text_are_read(processor: Any, tmp_path: Path) -> None:
    plain = read_examples(lines(tmp_path / "d.jsonl", ROWS[:2]), processor).items
    words = [row["prompt"] for row in ROWS[:2]], [row["completion"] for row in ROWS[:2]]
    for kind in (pa.large_string(), pa.string_view(), pa.binary(), pa.dictionary(pa.int32(), pa.string())):
        table = pa.table({"prompt": pa.array(words[0]).cast(kind), "completion": pa.array(words[1]).cast(kind)})
        same(read_examples(arrow(tmp_path / "d.arrow", table), processor).items, plain)
    more = [("sent_on", pa.timestamp("us")), ("flagged", pa.bool_())]
    turn = pa.struct([("role", pa.string()), ("content", pa.string()), *more])
    told = [{**TALK[0], "sent_on": 5, "flagged": True}, {**TALK[1], "sent_on": None, "flagged": None}]
    talk = pa.array([told], pa.list_(turn))
    table = pa.table({"messages": talk, "at": pa.array([5], pa.timestamp("ns"))})
    found = read_examples(parquet(tmp_path / "d.parquet", table), processor)
    same(found.items, read_examples(lines(tmp_path / "d.jsonl", [{"messages": TALK}]), processor).items)
    assert found.ignored == {"at": 1, "messages[].sent_on": 1, "messages[].flagged": 1}


def test_rows_are_read_a_few_at_a_time(processor: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"text": f"{number}"} for number in range(5000)]
    path = parquet(tmp_path / "d.parquet", rows, row_group_size=300)
    sizes: list[int] = []
    module = sys.modules["gemma4_core.training.data.arrow_rows"]
    before = module.values  # type: ignore[attr-defined]

    def values(column: Any, kind: Any) -> Any:
        sizes.append(len(column))
        return before(column, kind)

    monkeypatch.setattr(module, "values", values)
    found = read_records(path)
    assert len(found) == 5000 and found[4321].data == {"text": "4321"} and found[4321].line == 4322
    assert max(sizes) <= 1024 and len(sizes) >= 5


@pytest.mark.parametrize("name", ["d.parquet", "d.arrow", "stream.arrow"])
def test_a_faulty_row_is_named(name: str, tmp_path: Path) -> None:
    rows = [*ROWS, {"prompt": "x", "completion": None}, {"prompt": "x", "completion": " "}]
    path = parquet(tmp_path / name, rows) if "parquet" in name else arrow(tmp_path / name, rows, "stream" in name)
    message = told(lambda: read_records(path))
    assert f"{name}:4: completion must be text" in message and "1 more faulty" in message


# ---------------------------------------------------------------------------------------------------- media


def picture(colour: int) -> bytes:
    data = io.BytesIO()
    Image.fromarray(np.full((64, 96, 3), colour, np.uint8)).save(data, "PNG")
    return data.getvalue()


def beep(path: Path) -> bytes:
    with wave.open(str(path), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(16_000)
        sound.writeframes((np.sin(np.arange(4000) * 0.2) * 9000).astype("<i2").tobytes())
    return path.read_bytes()


def test_media_of_datasets_are_read(processor: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media_module, "IN_MEMORY", 100)  # the rest goes to a file
    (tmp_path / "a.png").write_bytes(picture(100))
    sound = beep(tmp_path / "beep.wav")
    image = {"bytes": picture(128), "path": "gone.png"}
    parts = [{"type": "image", "text": None}, {"type": "text", "text": "Colour?"}]
    rows: list[dict[str, Any]] = [
        {"prompt": "Colour?", "completion": "red", "images": [image], "messages": None, "audio": None},
        {"prompt": "Colours?", "completion": "red", "images": [image, {"bytes": None, "path": "a.png"}]},
        {"prompt": "None?", "completion": "red", "images": []},
        {"prompt": "Null?", "completion": "red", "images": None},
        {"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": [
            {"type": "text", "text": "red"}]}], "images": [image]},
        {"prompt": "What?", "completion": "a beep", "audio": {"bytes": sound, "path": None}},
    ]
    path = parquet(tmp_path / "d.parquet", rows)
    examples = read_examples(path, processor)
    found, soft = examples.items, TINY_MEDIA_IDS["image_token_id"]
    counts = [item.ids.tolist().count(soft) for item in found]
    assert counts[0] > 1 and counts == [counts[0], 2 * counts[0], 0, 0, counts[0], 0]
    assert found[5].ids.tolist().count(TINY_MEDIA_IDS["audio_token_id"]) > 1
    first = found[0].sources["vision"][0]
    assert first.read() == image["bytes"] and first.read(4) == b"\x89PNG" and str(first.name).endswith("(gone.png)")
    batch = Batches(examples, processor).make(((1,),))
    assert np.asarray(batch.pixel_values).shape[0] == 2
    # the same examples have the same digest, others another one
    assert read_examples(path, processor).digest == examples.digest
    rows[0]["images"] = [{"bytes": picture(129), "path": "gone.png"}]
    assert read_examples(parquet(path, rows), processor).digest != examples.digest
    from gemma4_core import registry

    assert sorted(modalities_of(read_records(path), list(registry.modalities.values()))) == ["audio", "vision"]


def test_media_that_cannot_be_read_name_the_row(processor: Any, tmp_path: Path) -> None:
    rows = [{"prompt": "a", "completion": "b", "image": {"bytes": b"no picture", "path": "x.png"}}]
    message = told(lambda: read_examples(parquet(tmp_path / "d.parquet", rows), processor))
    assert "d.parquet:1" in message and "x.png" in message
    rows = [{"prompt": "a", "completion": "b", "image": {"bytes": None, "path": "gone.png"}}]
    line = lines(tmp_path / "d.jsonl", rows)
    for path in (parquet(tmp_path / "d.parquet", rows), line):
        message = told(lambda path=path: read_examples(path, processor))  # type: ignore[misc]
        assert f"{path.name}:1" in message and "gone.png: no such file" in message


# ---------------------------------------------------------------------------------------------------- folders


def prompts(path: Path, **options: Any) -> list[str]:
    return [record.data["prompt"] for record in read_records(path, **options)]


def row(text: str) -> list[dict[str, Any]]:
    return [{"prompt": text, "completion": "x"}]


def save_to_disk(folder: Path, split: str, *shards: Any) -> None:
    """The files that ``datasets`` writes."""
    names = [f"data-{number:05}-of-{len(shards):05}.arrow" for number in range(len(shards))]
    for name, rows in zip(names, shards, strict=True):
        arrow(folder / name, rows, stream=True)
    (folder / "dataset_info.json").write_text(json.dumps({"features": {}, "splits": {}}))
    state = {"_data_files": [{"filename": name} for name in names], "_split": split, "_format_type": None}
    (folder / "state.json").write_text(json.dumps(state))


@pytest.mark.parametrize("files", [
    {"data/train-00000-of-00002.parquet": "a", "data/train-00001-of-00002.parquet": "b",
     "data/test-00000-of-00001.parquet": "t"},
    {"train-00000-of-00002-0123456789abcdef.parquet": "a", "train-00001-of-00002-0123456789abcdef.parquet": "b",
     "test-00000-of-00001-0123456789abcdef.parquet": "t"},
    {"default/train/0000.parquet": "a", "default/train/0001.parquet": "b", "default/test/0000.parquet": "t"},
    {"train.1.jsonl": "a", "train.2.jsonl": "b", "test.jsonl": "t", "dataset_info.json": "no data"},
    {"my-train-00000-of-00002.arrow": "a", "my-train-00001-of-00002.arrow": "b", "my-test.arrow": "t",
     "cache-0123456789abcdef.arrow": "c"},
    {"train/a.jsonl": "a", "train/b.jsonl": "b", "eval/t.jsonl": "t", ".cache/train.jsonl": "hidden"},
    {"train_sft-00000-of-00002.parquet": "a", "train_sft-00001-of-00002.parquet": "b",
     "test-00000-of-00001.parquet": "t"},
])  # fmt: skip
def test_splits_of_a_folder(tmp_path: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        writer: Any = parquet if "parquet" in name else arrow if "arrow" in name else lines
        writer(tmp_path / name, row(text))
    train = "train_sft" if "train_sft-00000-of-00002.parquet" in files else "train"
    assert prompts(tmp_path, split=train) == ["a", "b"] and prompts(tmp_path, split="test") == ["t"]
    if train == "train":
        assert prompts(tmp_path) == ["a", "b"]
    else:
        assert "has the splits test, train_sft; choose one with --split" in told(lambda: read_records(tmp_path))
    message = told(lambda: read_records(tmp_path, split="tset"))
    assert "--split tset" in message and "did you mean 'test'?" in message


def test_folders_that_save_to_disk_wrote(tmp_path: Path) -> None:
    save_to_disk(tmp_path / "one", "train", row("a"), row("b"))
    assert prompts(tmp_path / "one") == ["a", "b"]
    for name in ("train", "valid"):
        save_to_disk(tmp_path / "many" / name, name, row(name))
    (tmp_path / "many/dataset_dict.json").write_text(json.dumps({"splits": ["train", "valid"]}))
    assert prompts(tmp_path / "many") == ["train"] and prompts(tmp_path / "many", split="validation") == ["valid"]
    state = tmp_path / "one/state.json"
    for content, says in (
        ('{"_data_files": [{"filename": "../many/train/data-00000-of-00001.arrow"}]}', "not the name of a file in"),
        ('{"_data_files": [{"filename": "gone.arrow"}]}', "gone.arrow: No such file"),
        ('{"_data_files": []}', "lists no data"), ('{"_data_files": [5]}', "not the name"), ("{", "state.json"),
    ):
        state.write_text(content)
        assert says in told(lambda: read_records(tmp_path / "one"))
    (tmp_path / "many/dataset_dict.json").write_text(json.dumps({"splits": [".."]}))
    assert "is not the name of a file in this folder" in told(lambda: read_records(tmp_path / "many"))


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "empty: holds no data" in told(lambda: read_records(tmp_path / "empty"))
    for name in ("en", "fr"):
        parquet(tmp_path / f"two/{name}/train-00000-of-00001.parquet", row(name))
    assert "holds several datasets, in en, fr" in told(lambda: read_records(tmp_path / "two"))
    assert prompts(tmp_path / "two/fr") == ["fr"]
    for name in ("train", "other"):
        parquet(tmp_path / f"three/{name}-00000-of-00001.parquet", row(name))
    message = told(lambda: read_records(tmp_path / "three", preferred="validation"))
    assert "has the splits train, other; none is for validation; give one of its files" in message
    parquet(tmp_path / "three/test-00000-of-00001.parquet", row("t"))
    assert prompts(tmp_path / "three", preferred="validation") == ["t"] and prompts(tmp_path / "three") == ["train"]
    assert "only folders have splits" in told(lambda: read_records(lines(tmp_path / "d.jsonl"), split="train"))
    lines(tmp_path / "odd/a.jsonl", row("a"))
    lines(tmp_path / "odd/b.jsonl", row("b"))
    (tmp_path / "odd/readme.json").write_text("{}")
    assert prompts(tmp_path / "odd") == ["a", "b"] == prompts(tmp_path / "odd", split="train")


# ---------------------------------------------------------------------------------------------------- columns


def test_columns_are_mapped(processor: Any, tmp_path: Path) -> None:
    plain = read_examples(lines(tmp_path / "p.jsonl"), processor).items
    rows = [{"question": r["prompt"], "data": {"answer": r["completion"]}, "promptt": "x", "text": 5} for r in ROWS]
    columns = {"prompt": "question", "completion": "data.answer"}
    for path in (lines(tmp_path / "d.jsonl", rows), parquet(tmp_path / "d.parquet", rows)):
        found = read_examples(path, processor, columns=columns)
        same(found.items, plain)
        assert found.ignored == {"promptt": 3}
    # a column of that name gives way, and so do other kinds of examples
    rows = [{"prompt": "no", "completion": r["prompt"], "answer": r["completion"], "messages": []} for r in ROWS]
    columns = {"prompt": "completion", "completion": "answer"}
    same(read_examples(lines(tmp_path / "d.jsonl", rows), processor, columns=columns).items, plain)
    rows = [{"messages": TALK, "conversations": [], "text": "no"}]
    [kept] = read_examples(parquet(tmp_path / "d.parquet", rows), processor, columns={"messages": "messages"}).items
    same([kept], plain[:1])
    shape = [{"from": "human", "value": "One?"}, {"from": "gpt", "value": "one"}]
    for held in (shape, json.dumps(shape), json.dumps(TALK)):
        path = parquet(tmp_path / "d.parquet", [{"conversation": held}])
        same(read_examples(path, processor, columns={"messages": "conversation"}).items, plain[:1])


def test_columns_that_are_not_there(tmp_path: Path) -> None:
    rows = [{"chat": TALK, "id": 1}]
    for path in (lines(tmp_path / "d.jsonl", rows), parquet(tmp_path / "d.parquet", rows)):
        message = told(lambda path=path: read_records(path, {"messages": "chats"}))  # type: ignore[misc]
        assert f"{path.name}: there is no column \"chats\" (--column messages=chats), did you mean 'chat'?" in message
        assert "it has chat, id" in message
    for columns, says in (
        ({"mesages": "chat"}, "did you mean 'messages'"), ({"chat": "messages"}, "did you mean messages=chat?"),
        ({"messages": 5}, "give the name of a column"), ({"messages": ""}, "give the name of a column"),
    ):
        assert says in told(lambda columns=columns: read_records(tmp_path / "d.jsonl", columns))  # type: ignore[misc]
    message = told(lambda: read_records(parquet(tmp_path / "d.parquet", rows)))
    assert "no column that examples are made of; it has chat, id" in message and "--column messages=chat" in message
    assert "keys [\"chat\", \"id\"]; name columns with --column" in told(lambda: read_records(tmp_path / "d.jsonl"))


# ---------------------------------------------------------------------------------------------------- damage


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    whole = parquet(tmp_path / "whole.parquet").read_bytes()
    streamed = arrow(tmp_path / "whole.arrow", stream=True).read_bytes()
    bad = arrow(tmp_path / "bad.arrow", pa.table({"text": pa.array([b"\xff\xfe"]).cast(pa.binary())})).read_bytes()
    for name, data, says in (
        ("empty.parquet", b"", "cannot be read as Parquet"),
        ("cut.parquet", whole[:-20], "cannot be read as Parquet"),
        ("turned.parquet", whole[:4] + whole[4:-8][::-1] + whole[-8:], "cannot be read as Parquet"),
        ("cut.arrow", streamed[:200], "cannot be read as Arrow"),
        ("empty.arrow", b"", "cannot be read as Arrow"),
        ("bad.arrow", bad, "cannot be read as Arrow"),
        ("d.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 99)[:-9], "cannot be unpacked"),
        ("d.jsonl.zst", b"\x28\xb5\x2f\xfd" + b"x" * 9, "zstd -d d.jsonl.zst"),
        ("list.json", b'[{"text": "a"}, ', "list.json:1: the list does not end"),
        ("list.json", b'[{"text": "a"},\n {"text": "b}]', "object 2: not valid JSON: a string or an"),
        ("list.json", b'[{"text": "a"}\n{"text": "b"}]', "list.json:2: not valid JSON: a comma is missing"),
        ("list.json", b'[{"text": "a"}] x', "text behind the list"),
        ("list.json", b'[1, 2]', "list.json:1: expected an object"),
        ("list.json", b'[]', "holds no example"),
        ("list.json", b'[{"text": nope}, {"text": "b"}]', "list.json:1: not valid JSON"),
        ("list.json", b'[' + b'"' * 200_001, "expected an object"),
        ("list.json", b'[{"' + b'"a' * 200_001, "does not end"),
        ("d.csv", b"prompt,completion\na,b\n", "d.csv: CSV files are not read"),
    ):
        (tmp_path / name).write_bytes(data)
        message = told(lambda name=name: read_records(tmp_path / name))  # type: ignore[misc]
        assert name in message and says in message
    assert "fetch it: hf download --repo-type dataset someone/data" in told(lambda: read_records("someone/data"))
    path = parquet(tmp_path / "none.parquet", pa.table({"text": pa.array([], pa.string())}))
    assert "none.parquet: holds no example" in told(lambda: read_records(path))


@pytest.mark.parametrize(("column", "says"), [
    (pa.array([[[1]]], pa.list_(pa.list_(pa.duration("s")))), "is list<"),
    (pa.UnionArray.from_sparse(pa.array([0], pa.int8()), [pa.array(["a"])]), "union"),
    (pa.array([[(1, "a")]], pa.map_(pa.int64(), pa.string())), "map<int64"),
])
def test_types_of_which_nothing_can_be_made(tmp_path: Path, column: Any, says: str) -> None:
    message = told(lambda: read_records(arrow(tmp_path / "d.arrow", pa.table({"messages": column}))))
    assert "d.arrow: column \"messages\" is" in message and says in message
    doubled = pa.Table.from_arrays([pa.array(["a"])] * 2, ["text", "text"])
    assert "several columns \"text\"" in told(lambda: read_records(arrow(tmp_path / "d.arrow", doubled)))


def test_without_pyarrow_there_is_a_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = parquet(tmp_path / "d.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "d.parquet: Parquet files need pyarrow; install it with: pip install pyarrow" in \
        told(lambda: read_records(path))
    assert len(read_records(lines(tmp_path / "d.jsonl"))) == 3


# ---------------------------------------------------------------------------------------------------- the command


@pytest.mark.usefixtures("counts_alone")
def test_the_command_takes_folders_splits_and_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place(tmp_path)
    folder = tmp_path / "data"
    rows = [{"chat": TALK, "prompt": "x"}] * 3
    parquet(folder / "data/train-00000-of-00001.parquet", rows)
    parquet(folder / "data/validation-00000-of-00001.parquet", rows[:2])

    def dry(*more: Any) -> dict[str, Any]:
        ran = gemma4("train", "-m", place.model, "--dry-run", "--json", *more)
        assert (ran.code, ran.err) == (0, ""), ran
        found: dict[str, Any] = json.loads(ran.out)
        return found

    column = ("--column", "messages=chat")
    assert dry("--data", folder, *column)["examples"] == 3
    assert dry("--data", folder, *column, "--validation", "validation")["validation_examples"] == 2
    monkeypatch.chdir(tmp_path)
    (tmp_path / "val").mkdir()  # a split is meant where there is one
    assert dry("--data", folder, *column, "--validation", "val")["validation_examples"] == 2
    assert dry("--data", folder, *column, "--split", "validation")["examples"] == 2
    assert dry("--data", folder, "--validation", folder, *column)["validation_examples"] == 2
    config = tmp_path / "c.toml"
    for text in ('column = ["messages=chat"]', 'column = {messages = "chat"}'):
        config.write_text(f'data = "{folder}"\nsplit = "validation"\n{text}\n')
        assert dry("--config", config)["examples"] == 2
    args = ["train", "-m", place.model, "--dry-run", "--data", folder]
    assert "(train, validation), did you mean 'validation'?" in failure(*args, *column, "--validation", "validatoin")
    assert "is the split that is trained on" in failure(*args, *column, "--validation", "train")
    assert "no column \"chatt\"" in failure(*args, "--column", "messages=chatt")
    assert "data: there is no column" in failure(*args, "--column", "messages=chatt")
    assert "--column 'messages'" in usage(*args, "--column", "messages")
    assert "--column 'messages' is given twice" in usage(*args, *column, *column)
    assert "--split tset" in failure(*args, "--split", "tset")


@pytest.mark.usefixtures("plain_loops")
def test_a_run_on_a_folder_goes_on_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, rows = Place(tmp_path), [{"chat": TALK}, {"chat": [{**TALK[0], "content": "Two?"}, TALK[1]]}] * 2
    for name in ("train", "validation"):
        parquet(tmp_path / f"data/data/{name}-00000-of-00001.parquet", rows)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "test").mkdir()
    (tmp_path / "elsewhere").mkdir()
    args = place.args(tmp_path / "run", "--column", "messages=chat", "--validation", "val", "--steps", 1)
    args[args.index(place.data)] = "data"
    ran = gemma4(*args)
    assert ran.code == 0, ran
    settings = json.loads((tmp_path / "run/settings.json").read_text())
    assert settings["validation"] == "val" and settings["data"] == str(tmp_path / "data")
    monkeypatch.chdir(tmp_path / "elsewhere")
    ran = gemma4("train", "-o", tmp_path / "run", "--resume", "--steps", 2, "--json")
    assert ran.code == 0 and json.loads(ran.out)["validation_loss"] > 0, ran
    message = failure("train", "-o", tmp_path / "run", "--resume", "--steps", 3, "--column", "messages=talk")
    assert "there is no column \"talk\"" in message

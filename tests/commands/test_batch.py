"""``gemma4 batch`` with the demo model: answers, runs that go on, files that are refused, streams and exit codes."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from batch_tools import batch, question, read_rows, text_of, timeless, write_lines
from cli_tools import failure, gemma4, usage

from gemma4_plugins.commands.batch.input_rows import Batch, Defaults, Fault, Row
from gemma4_plugins.commands.batch.row_file import RowFile

pytestmark = pytest.mark.usefixtures("plain_loops", "one_model")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with an input of six rows in all forms."""
    write_lines(tmp_path / "in.jsonl", [
        question("a"), question("b", temperature=0.9), question("c", n=2, temperature=1.2, seed=5),
        {"id": "d", "prompt": "add 2 and 3", "max_tokens": 4, "logprobs": True, "top_logprobs": 2},
        {"text": "Once upon", "max_tokens": 5, "ignore_eos": True},
        {"id": "f", "messages": [{"role": "user", "content": "hello"}], "stop": ["e"], "max_tokens": 6},
    ])
    return tmp_path


def test_every_row_is_answered_as_generate_answers(folder: Path) -> None:
    ran = batch(folder, "--max-new-tokens", 8)
    assert (ran.code, ran.out, ran.err) == (0, "", "")
    rows = read_rows(folder / "out.jsonl")
    assert rows.keys() == {"a", "b", "c", "d", "5", "f"} and not (folder / "out.errors.jsonl").exists()
    assert all(row["error"] is None and row["response"]["status_code"] == 200 for row in rows.values())
    assert len({row["id"] for row in rows.values()}) == 6
    flags = ("-m", "demo", "--device", "cpu", "--dtype", "float32", "--temperature", 0)
    assert text_of(rows["d"]) == gemma4("generate", *flags, "-n", 4, "add 2 and 3").out.removesuffix("\n")
    told = json.loads(gemma4("generate", *flags, "-n", 5, "--raw", "--ignore-eos", "--json", "Once upon").out)
    assert text_of(rows["5"]) == told["text"]
    assert rows["5"]["response"]["body"]["usage"]["completion_tokens"] == 5
    assert [choice["index"] for choice in rows["c"]["response"]["body"]["choices"]] == [0, 1]
    logprobs = rows["d"]["response"]["body"]["choices"][0]["logprobs"]["content"]
    assert "".join(token["token"] for token in logprobs) == text_of(rows["d"])
    assert all(len(token["top_logprobs"]) == 2 for token in logprobs)


def without_logprobs(rows: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Rows without log-probabilities, whose last digit depends on how many rows a step had."""
    for row in rows.values():
        for choice in row["response"]["body"]["choices"]:
            del choice["logprobs"]
    return timeless(rows)


def test_answers_do_not_depend_on_order_or_company(folder: Path) -> None:
    assert batch(folder, "--parallel", 1).code == 0
    alone = without_logprobs(read_rows(folder / "out.jsonl"))
    lines = (folder / "in.jsonl").read_text().splitlines()
    lines[4] = lines[4].replace("{", '{"id": "5", ')
    write_lines(folder / "in.jsonl", reversed(lines))
    for more in (("--parallel", 5), ("--draft", "lookup"), ("--parallel", "auto")):
        assert batch(folder, "--overwrite", *more).code == 0
        assert without_logprobs(read_rows(folder / "out.jsonl")) == alone


def test_a_finished_output_stays_and_nothing_is_loaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = json.loads(batch(folder, "--json").out)
    assert (first["rows"], first["answered"], first["failed"], first["before"]) == (6, 6, 0, 0)
    assert first["errors"] is None and first["generated_tokens"] > 0 < first["prompt_tokens"]
    before = (folder / "out.jsonl").read_bytes()
    monkeypatch.setattr("gemma4_core.loading.load_pretrained", None)
    ran = batch(folder, "--json")
    again = json.loads(ran.out)
    assert (ran.code, ran.err, again["answered"], again["before"], again["generated_tokens"]) == (0, "", 6, 6, 0)
    assert (folder / "out.jsonl").read_bytes() == before


@pytest.mark.parametrize("cut", ["row", "middle", "newline", "first byte", "everything", "zeros"])
def test_a_torn_output_is_completed(folder: Path, cut: str) -> None:
    out = folder / "out.jsonl"
    assert batch(folder).code == 0
    whole = out.read_bytes()
    lines = whole.splitlines(keepends=True)
    kept = b"".join(lines[:3])
    torn = {
        "row": b"", "middle": lines[3][:40], "newline": lines[3][:-1], "first byte": b"{",
        "zeros": lines[3][:9] + bytes(9),
    }
    out.write_bytes(b"" if cut == "everything" else kept + torn[cut])
    ran = batch(folder, "--json")
    assert (ran.code, ran.err) == (0, "")
    assert json.loads(ran.out)["before"] == {"newline": 4, "everything": 0}.get(cut, 3)
    assert cut == "everything" or out.read_bytes().startswith(kept + (lines[3] if cut == "newline" else b""))
    found, expected = read_rows(out), {row["custom_id"]: row for row in map(json.loads, lines)}
    assert {id: text_of(row) for id, row in found.items()} == {id: text_of(row) for id, row in expected.items()}


def test_a_bad_row_fails_alone(folder: Path) -> None:
    with open(folder / "in.jsonl", "a") as file:
        file.write('{broken\n{"id": "h", "prompt": "a", "temprature": 1}\n')
        file.write(json.dumps({"id": "long", "text": "word " * 900}) + "\n")
        file.write(json.dumps(question("picture", messages=[{"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": "/absent.png"}}]}])) + "\n")
    ran = batch(folder, "--json")
    report = json.loads(ran.out)
    assert (ran.code, report["rows"], report["answered"], report["failed"]) == (1, 10, 6, 4)
    assert ran.err.count("\n") == 1 and ran.err.startswith("Error: 4 of 10 rows failed, see ")
    assert str(folder / "out.errors.jsonl") in ran.err and "line 7: not valid JSON" in ran.err
    errors = read_rows(folder / "out.errors.jsonl")
    assert errors.keys() == {"7", "h", "long", "picture"} and len(read_rows(folder / "out.jsonl")) == 6
    assert all(row["response"] is None for row in errors.values())
    assert errors["7"]["error"]["code"] == "invalid_json" and errors["h"]["error"]["code"] == "invalid_request"
    assert "line 9: the prompt has" in errors["long"]["error"]["message"]
    assert "/absent.png" in errors["picture"]["error"]["message"]
    before = [(folder / name).read_bytes() for name in ("out.jsonl", "out.errors.jsonl")]
    again = batch(folder)
    assert (again.code, again.out) == (1, "") and again.err.startswith("Error: 4 of 10 rows failed")
    assert [(folder / name).read_bytes() for name in ("out.jsonl", "out.errors.jsonl")] == before


def test_a_failed_row_is_tried_again_once_its_error_is_removed(folder: Path) -> None:
    good = (folder / "in.jsonl").read_text()
    (folder / "in.jsonl").write_text(good.replace('"max_tokens": 5', '"max_tokens": -5'))
    assert batch(folder, "--errors", folder / "bad").code == 1
    assert read_rows(folder / "bad").keys() == {"5"} and not (folder / "out.errors.jsonl").exists()
    (folder / "in.jsonl").write_text(good)
    assert batch(folder, "--errors", folder / "bad").code == 1
    (folder / "bad").unlink()
    assert batch(folder, "--errors", folder / "bad").code == 0
    assert len(read_rows(folder / "out.jsonl")) == 6 and not (folder / "bad").exists()


ROW = '{"id": "batch_req_1", "custom_id": "a", "response": null, "error": null}\n'


@pytest.mark.parametrize(("content", "words"), [
    (ROW.replace('"a"', '"zz"'), 'line 1 has the id "zz", which'), (ROW * 2, 'line 2 has the id "a" once more'),
    ("my notes\n", "line 1 is no row of a batch"), ("my notes", "line 1 is no row of a batch"),
    ('{"custom_id": "a"}\n', "line 1 is no row of a batch"), ("[]\n", "line 1 is no row of a batch"),
])
@pytest.mark.parametrize("name", ["out.jsonl", "out.errors.jsonl"])
def test_files_of_others_are_refused(
    folder: Path, name: str, content: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gemma4_core.loading.load_pretrained", None)
    (folder / name).write_text(content)
    ran = batch(folder)
    assert (ran.code, ran.out) == (1, "") and words in ran.err and str(folder / name) in ran.err
    assert (folder / name).read_text() == content


def test_overwrite_begins_anew(folder: Path) -> None:
    for name in ("out.jsonl", "out.errors.jsonl"):
        (folder / name).write_text("my notes\n")
    assert "nowhere" in batch(folder, "--overwrite", "-m", "nowhere").err
    assert (folder / "out.jsonl").read_text() == "my notes\n"  # nothing is lost before the model is there
    assert batch(folder, "--overwrite").code == 0
    assert len(read_rows(folder / "out.jsonl")) == 6 and not (folder / "out.errors.jsonl").exists()
    first = timeless(read_rows(folder / "out.jsonl"))
    assert batch(folder, "--overwrite").code == 0 and timeless(read_rows(folder / "out.jsonl")) == first


def test_a_second_process_is_refused(folder: Path) -> None:
    file = RowFile(folder / "out.jsonl", "--output", False)
    file.lock()
    ran = batch(folder)
    assert (ran.code, ran.out) == (1, "") and "another process writes to it" in ran.err
    file.close()
    assert not (folder / "out.jsonl").exists() and batch(folder).code == 0


def test_a_row_that_raises_fails_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gemma4_core.generation.requests import Request

    real = Request.inputs

    def inputs(request: Request, model: Any) -> Any:
        if request.prompt == "Once upon":
            raise ValueError("no such luck")
        return real(request, model)

    monkeypatch.setattr(Request, "inputs", inputs)
    assert batch(folder).code == 1
    error = read_rows(folder / "out.errors.jsonl")["5"]["error"]
    assert error == {"code": "internal_error", "message": "line 5: ValueError: no such luck"}


def test_constraints_fail_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gemma4_core.generation.requests import Request

    real = Request.choices

    def choices(request: Request, *args: Any) -> Any:
        if request.n == 2:
            raise ValueError("no such schema")
        return real(request, *args)

    monkeypatch.setattr(Request, "choices", choices)
    monkeypatch.setattr("gemma4_core.generation.constraints.registry", SimpleNamespace(constraints={}))
    monkeypatch.setattr("gemma4_core.plugins.separate_packages.installed", lambda package: False)
    with open(folder / "in.jsonl", "a") as file:
        file.write(json.dumps(question("json", response_format={"type": "json_object"})) + "\n")
    assert batch(folder).code == 1
    errors = read_rows(folder / "out.errors.jsonl")
    assert errors["c"]["error"]["message"] == "line 3: ValueError: no such schema"
    assert "pip install -e plugins/gemma4-schema" in errors["json"]["error"]["message"]
    assert len(read_rows(folder / "out.jsonl")) == 5


def test_a_full_disk_keeps_what_is_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gemma4_plugins.commands.batch.row_file as module

    real, count = module.os.write, [0]

    def write(handle: int, data: bytes) -> int:
        count[0] += 1
        if count[0] == 4:
            return real(handle, data[:10])
        if count[0] == 5:
            raise OSError(28, "No space left on device")
        return real(handle, data)

    monkeypatch.setattr(module.os, "write", write)
    ran = batch(folder)
    assert (ran.code, ran.out) == (1, "") and "out.jsonl: No space left on device" in ran.err
    monkeypatch.undo()
    assert len(read_rows(folder / "out.jsonl")) == 3 and (folder / "out.jsonl").read_text().endswith("}\n")
    assert batch(folder).code == 0 and len(read_rows(folder / "out.jsonl")) == 6


def test_usage(folder: Path) -> None:
    given = ("batch", "-m", "demo", "--input", folder / "in.jsonl", "--output")
    assert "--output" in usage("batch", "-m", "demo", "--input", folder / "in.jsonl")
    assert "same file as --input" in usage(*given, folder / "in.jsonl")
    assert "same file as --output" in usage(*given, folder / "out.jsonl", "--errors", folder / "." / "out.jsonl")
    assert "'0' is neither" in usage(*given, folder / "out.jsonl", "--parallel", 0)
    assert "No such file" in failure(*given, folder / "absent" / "out.jsonl")
    assert "directory" in failure(*given, folder)
    assert "regular file" in failure(*given, "/dev/null")


def test_a_model_that_cannot_answer_is_refused_before_its_weights_are_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from reference_data import load

    monkeypatch.setattr("gemma4_core.loading.read_text", None)
    ran = batch(folder, "-m", load("dense").folder)
    assert ran.code == 1 and "has no tokenizer" in ran.err and not (folder / "out.jsonl").exists()


def test_rows_with_pictures(tmp_path: Path) -> None:
    picture = Path(__file__).parents[2] / "docs" / "images" / "picture.jpg"
    data = "data:image/jpeg;base64," + base64.b64encode(picture.read_bytes()).decode()
    write_lines(tmp_path / "in.jsonl", [
        question(id, messages=[{"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "Describe the picture."}]}])
        for id, url in (("file", str(picture)), ("data", data), ("web", "http://localhost:9/x.png"))
    ])
    ran = batch(tmp_path, "--temperature", 0)
    assert ran.code == 1 and "line 3: http://localhost:9/x.png: URLs are fetched only with --allow-urls" in ran.err
    rows = read_rows(tmp_path / "out.jsonl")
    flags = ("-m", "demo", "--device", "cpu", "--dtype", "float32", "--temperature", 0, "-n", 8)
    said = gemma4("generate", *flags, "--image", picture, "--prompt", "Describe the picture.").out
    assert text_of(rows["file"]) == text_of(rows["data"]) == said.removesuffix("\n")


def test_lines_are_read_as_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_lines(tmp_path / "in.jsonl", [question(f"row-{number}", max_tokens=2) for number in range(24)])
    real, ahead = Batch.again, []

    def again(self: Batch) -> Iterator[Row | Fault]:
        for number, line in enumerate(real(self)):
            ahead.append(number - len((tmp_path / "out.jsonl").read_text().splitlines()))
            yield line

    monkeypatch.setattr(Batch, "again", again)
    assert batch(tmp_path, "--parallel", 2).code == 0
    assert len(ahead) == 24 and max(ahead) <= 4


def test_an_input_that_changes_ends_the_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Batch.scanned

    def scanned(path: Path, defaults: Defaults) -> Batch:
        found = real(path, defaults)
        path.write_text(path.read_text().replace('"id": "d"', '"id": "other"'))
        return found

    monkeypatch.setattr(Batch, "scanned", scanned)
    ran = batch(folder)
    assert (ran.code, ran.out) == (1, "") and "line 4 has changed while the batch ran" in ran.err

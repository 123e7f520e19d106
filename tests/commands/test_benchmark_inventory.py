"""The inventory of untracked files: what it lists and counts, in which order, and that it touches nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from benchmark_tools import bench, commit, git, good, refused, repository, script

UNTRACKED = {
    "benchmarks/a.csv": "x" * 10, "benchmarks/a.csv.progress.jsonl": "{}\n", "benchmarks/b.json": "{}",
    "notes/draft.md": "draft", "run.log": "log", "tools/x.py": "pass", "odd name/e f.json": "{}", "Ü.csv": "1",
    "benchmarks/quiet.csv": "x" * 100,
}  # fmt: skip
TRACKED = {
    "README.md": "See benchmarks/a.csv, and ./benchmarks/a.csv. Not benchmarks/a.csv.bak, xa.csv or other/a.csv.\n",
    "docs/state.json": '{"last": "b.json", "table": "../benchmarks/a.csv"}',
    "docs/more.txt": "`odd name/e f.json`, and Ü.csv",
    "src/code.py": "open('benchmarks/quiet.csv')  # programs are neither documentation nor configuration",
    ".gitignore": "ignored/\n",
}


@pytest.fixture
def repo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = repository(tmp_path / "repo", TRACKED)
    for name, text in UNTRACKED.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / "ignored").mkdir()
    (folder / "ignored/x.csv").write_text("x")
    monkeypatch.chdir(folder)
    return folder


def payload(*args: object) -> dict[str, Any]:
    ran = good("inventory", "--format", "json", *args)
    found = json.loads(ran.out)
    assert ran.err == f"inventoried {found['untracked_count']} untracked path(s)\n"
    return found


def test_json(repo: Path) -> None:
    found = payload()
    rows = found["rows"]
    assert {row["path"] for row in rows} == set(UNTRACKED) and found["untracked_count"] == len(rows) == len(UNTRACKED)
    assert found["total_size"] == sum((repo / name).stat().st_size for name in UNTRACKED)
    counts = {row["path"]: row["reference_count"] for row in rows}
    assert counts == dict.fromkeys(UNTRACKED, 0) | {
        "benchmarks/a.csv": 3, "benchmarks/b.json": 1, "odd name/e f.json": 1, "Ü.csv": 1}
    assert [row["path"] for row in rows][:4] == ["benchmarks/a.csv", "benchmarks/b.json", "odd name/e f.json", "Ü.csv"]
    assert rows[0]["references"] == ["README.md", "docs/state.json"] and found["referenced_count"] == 4
    assert found["counts_by_category"] == {"benchmark-progress-log": 1, "benchmark-result": 1, "benchmark-table": 3,
                                           "configuration": 1, "document": 1, "log": 1, "source": 1}  # fmt: skip
    assert found["counts_by_suffix"][".csv"] == 3 and found["counts_by_suffix"][".jsonl"] == 1
    assert "review" in rows[0]["disposition"] and all(row["disposition"] for row in rows)


def test_nothing_changes(repo: Path) -> None:
    index = (repo / ".git/index").read_bytes()
    before = {path: path.stat().st_mtime_ns for path in repo.rglob("*")}
    payload()
    good("inventory")
    assert {path: path.stat().st_mtime_ns for path in repo.rglob("*")} == before
    assert (repo / ".git/index").read_bytes() == index


def test_one_category(repo: Path) -> None:
    found = payload("--only-category", "benchmark-progress-log")
    assert [row["path"] for row in found["rows"]] == ["benchmarks/a.csv.progress.jsonl"]
    assert found["counts_by_category"] == {"benchmark-progress-log": 1} and found["total_size"] == 3
    several = payload("--only-category", "log", "--only-category", "SOURCE", "document")
    assert {row["category"] for row in several["rows"]} == {"log", "source", "document"}
    assert payload("--only-category", "weights")["rows"] == []


def test_unknown_category_is_refused_before_anything_is_read(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def collect(*args: object) -> None:
        raise AssertionError("nothing may be collected")

    monkeypatch.setattr(script("inventory"), "collect", collect)
    line = refused("inventory", "--only-category", "log", "--only-category", "benchmark-progres-log", code=2)
    assert "benchmark-progres-log" in line and "--list-categories" in line


def test_list_of_categories() -> None:
    ran = good("inventory", "--list-categories")
    names = ran.out.splitlines()
    assert "benchmark-progress-log" in names and len(set(names)) == len(names) > 5 and ran.err == ""
    assert list(json.loads(good("inventory", "--list-categories", "--format", "json").out)) == names
    assert [name for name in names if script("categories").CATEGORIES[name].summary] == names


def test_markdown(repo: Path, tmp_path: Path) -> None:
    (repo / "a|b.csv").write_text("1")
    out = tmp_path / "made" / "list.md"
    ran = good("inventory", "--output", out)
    assert ran.out == "" and ran.err == "inventoried 10 untracked path(s)\n"
    lines = out.read_text().splitlines()
    table = [line for line in lines if line.startswith("| ") and line.count("|") >= 7]
    assert table[0].startswith("| path") and table[1].startswith("| benchmarks/a.csv | 10 B | benchmark-table | 3 |")
    assert any(line.startswith("| a\\|b.csv |") for line in table) and len(table) == 11
    assert good("inventory").out.splitlines()[2:] == lines[2:]
    found = good("inventory", "--format", "json", "--output", tmp_path / "list.json").out
    assert json.loads(found) == json.loads((tmp_path / "list.json").read_text())


def test_from_a_folder_inside_and_from_none(repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repo / "docs")
    assert payload()["untracked_count"] == len(UNTRACKED)
    monkeypatch.chdir(tmp_path)
    assert payload("--repository", repo)["untracked_count"] == len(UNTRACKED)
    assert "not a git repository" in refused("inventory")
    monkeypatch.setenv("PATH", "/nowhere")
    assert "git" in refused("inventory")


@pytest.mark.parametrize(("word", "path", "meant"), [
    ("benchmarks/a.csv", "benchmarks/a.csv", True), ("a.csv", "benchmarks/a.csv", True),
    ("../benchmarks/a.csv", "benchmarks/a.csv", True), ("/home/me/repo/benchmarks/a.csv", "benchmarks/a.csv", True),
    ("other/a.csv", "benchmarks/a.csv", False), ("b.csv", "benchmarks/a.csv", False), ("..", "a", False),
])  # fmt: skip
def test_what_names_a_path(word: str, path: str, meant: bool) -> None:
    assert script("inventory").names(word, path) is meant


def test_bytes_that_are_no_text(repo: Path) -> None:
    commit(repo, {"docs/x.md": "benchmarks/quiet.csv"})
    (repo / "docs/x.md").write_bytes(b"\xff\xfe benchmarks/quiet.csv \xff")
    assert payload()["rows"] == []  # everything was committed
    (repo / "new\udcff.csv").write_text("1")
    ran = bench("inventory")
    assert ran.code == 0 and "new\N{REPLACEMENT CHARACTER}.csv" in ran.out
    assert payload()["untracked_count"] == 1 and git(repo, "status", "--porcelain")

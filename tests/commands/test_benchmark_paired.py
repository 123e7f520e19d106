"""Baseline and candidate by turns: targets of every kind, what a child may print, and the artefact."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from benchmark_tools import bench, commit, git, good, refused, repository, script

SCORE = """
import json, os, sys
from pathlib import Path
import helper
from speed.model import SPEED
log = os.environ.get("RUN_LOG")
if log:
    Path(log).open("a").write(f"{SPEED}\\n")
print(json.dumps({"score": SPEED, "arguments": sys.argv[1:], "helper": helper.NAME,
                  "target": os.environ["GEMMA4_BENCHMARK_TARGET"]}))
"""


@pytest.fixture
def repo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two revisions of a package, 2 and 5 fast, with a benchmark and its helper; the current folder."""
    folder = repository(tmp_path / "repo", {
        "src/speed/__init__.py": "", "src/speed/model.py": "SPEED = 2.0", "benchmarks/score.py": SCORE,
        "benchmarks/helper.py": "NAME = 'here'",
    })  # fmt: skip
    commit(folder, {"src/speed/model.py": "SPEED = 5.0"})
    monkeypatch.chdir(folder)
    return folder


USUAL = ("--benchmark", "benchmarks/score.py")


def artefact(*args: object) -> dict[str, Any]:
    return json.loads(good("paired", *args).out)


def test_revisions(repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUN_LOG", str(tmp_path / "log"))
    out = tmp_path / "made" / "x.json"
    ran = good("paired", "--baseline-target", "HEAD~1", "--candidate-target", "HEAD", *USUAL, "--out", out, "--label",
               "faster", "--", "--max-new-tokens", "16", "--", "-x")  # fmt: skip
    found = json.loads(out.read_text())
    assert (tmp_path / "log").read_text().split() == ["2.0", "5.0"] * 2 and found["order"] == "ABAB"
    assert (found["label"], found["absolute_delta"], found["relative_delta"]) == ("faster", 3.0, 1.5)
    assert found["baseline"]["scores"] == [2.0, 2.0] and found["candidate"]["score"] == 5.0
    assert found["baseline"]["revision"] == git(repo, "rev-parse", "HEAD~1")[:12]
    for side in ("baseline", "candidate"):
        assert len(found[side]["payloads"]) == 2 and found[side]["payload"]["helper"] == "here"
        assert found[side]["payload"]["arguments"] == ["--max-new-tokens", "16", "--", "-x"] == found["arguments"]
        assert not Path(found[side]["worktree"]).exists()
    assert json.loads(ran.out)["absolute_delta"] == 3.0 and ran.err == ""
    assert len(git(repo, "worktree", "list").splitlines()) == 1 and git(repo, "status", "--porcelain") == ""


def test_worktrees_and_files_inside(repo: Path, tmp_path: Path) -> None:
    git(repo, "worktree", "add", "--detach", str(tmp_path / "old"), "HEAD~1")
    (tmp_path / "old/src/speed/model.py").write_text("SPEED = 4.0")
    file = tmp_path / "old/src/speed/model.py"
    found = artefact("--baseline", tmp_path / "old", "--candidate-target", "src/speed/model.py", *USUAL, "--rounds", 1)
    assert (found["baseline"]["score"], found["candidate"]["score"], found["order"]) == (4.0, 5.0, "AB")
    assert found["baseline"]["revision"].endswith("+") and not found["candidate"]["revision"].endswith("+")
    assert found["candidate"]["payload"]["target"] == found["candidate"]["file"] == str(repo / "src/speed/model.py")
    found = artefact("--baseline-target", file, "--candidate-target", file, *USUAL, "--rounds", 1)
    assert (found["absolute_delta"], found["relative_delta"]) == (0.0, 0.0)
    assert found["baseline"]["worktree"] == str(tmp_path / "old") and found["label"] is None


def test_benchmark_of_the_baseline(repo: Path, tmp_path: Path) -> None:
    """One that is missing here is found there, with its neighbours; the target's own package comes first."""
    git(repo, "worktree", "add", str(tmp_path / "old"), "-b", "old", "HEAD~1")
    commit(tmp_path / "old", {"lab/other.py": SCORE, "lab/helper.py": "NAME = 'there'",
                              "lab/speed/model.py": "SPEED = 100.0"})  # fmt: skip
    pair = ["--baseline-target", tmp_path / "old/src/speed/model.py", "--candidate-target", repo, "--rounds", 1]
    found = artefact(*pair, "--benchmark", "lab/other.py")
    assert found["benchmark"] == str(tmp_path / "old/lab/other.py") and found["absolute_delta"] == 3.0
    assert found["candidate"]["payload"]["helper"] == "there"
    line = refused("paired", *pair, "--benchmark", "lab/none.py")
    assert "lab/none.py" in line and str(tmp_path / "old") in line and str(repo) in line


def test_plain_folders_are_worktrees_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, speed in (("a", 1.0), ("b", 0.5)):
        (tmp_path / name / "benchmarks").mkdir(parents=True)
        (tmp_path / name / "speed").mkdir()
        (tmp_path / name / "speed/model.py").write_text(f"SPEED = {speed}")
    (tmp_path / "a/benchmarks/score.py").write_text(SCORE)
    (tmp_path / "a/benchmarks/helper.py").write_text("NAME = 'a'")
    found = artefact("--baseline", "a/speed/model.py", "--candidate", "b/speed/model.py", *USUAL, "--rounds", 1)
    assert (found["absolute_delta"], found["baseline"]["revision"]) == (-0.5, None)


def test_commands(repo: Path) -> None:
    program = [sys.executable, "-c", "import json,sys; print(json.dumps(dict(score=len(sys.argv))))"]
    quoted = " ".join(f"'{word}'" for word in program)
    found = artefact("--baseline-command", quoted, "--candidate", quoted + " more", "--", "1", "2")
    assert (found["baseline"]["score"], found["absolute_delta"], found["relative_delta"]) == (3.0, 1.0, 1 / 3)
    assert found["benchmark"] is None and found["baseline"]["command"] == [*program, "1", "2"]
    assert artefact("--baseline", "HEAD", "--candidate-command", quoted, *USUAL)["candidate"]["score"] == 1.0


def test_plugins_of_a_worktree_come_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    show = ("import json; from importlib.metadata import entry_points as e\n"
            "print(json.dumps({'score': 1, 'names': [p.name for p in e(group='gemma4')]}))")
    project = '[project]\nname = "tinygrad-gemma4"\nversion = "0"\n[project.entry-points.gemma4]\n{} = "x"\n'
    for name in ("one", "two"):
        repository(tmp_path / name, {"pyproject.toml": project.format(name), "b.py": show})
    monkeypatch.chdir(tmp_path)
    found = artefact("--baseline", "one", "--candidate", "two", "--benchmark", "b.py", "--rounds", 1)
    assert "one" in found["baseline"]["payload"]["names"] and "two" not in found["baseline"]["payload"]["names"]
    assert "two" in found["candidate"]["payload"]["names"] and "bf16" not in found["candidate"]["payload"]["names"]


@pytest.mark.parametrize(("text", "named"), [
    ('{"score": NaN}', "NaN"), ('{"score": Infinity}', "Infinity"), ('{"score": -Infinity}', "-Infinity"),
    ('{"score": 1e999}', "score"), ('{"score": 1, "other": {"a": [1, -1e999]}}', "other.a[1]"), ('{"score": "5"}', "5"),
    ('{"score": true}', "true"), ('{"score": null}', "null"), ("{}", "no score"), ("[1]", "[1]"), ("5", "5"),
    ("", "nothing"), ("done\n{}", "done"), ('{"score": 1', '{"score": 1'), ('{"score": 1}{"score": 1}', "score"),
    (f'{{"score": {10**400}}}', "1000"), ("[" * 100_000, "[[["),
])  # fmt: skip
def test_only_finite_json_counts(text: str, named: str, tmp_path: Path) -> None:
    (tmp_path / "said").write_text(text)
    out = tmp_path / "x.json"
    line = refused("paired", "--baseline-command", "echo '{\"score\": 1}'", "--candidate-command",
                   f"cat {tmp_path / 'said'}", "--out", out)  # fmt: skip
    assert named in line and "candidate" in line and not out.exists()


def test_least_delta(repo: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.json"
    pair = ["--baseline", "HEAD", "--candidate", "HEAD~1", *USUAL, "--rounds", 1, "--out", out]
    ran = bench("paired", *pair, "--min-delta", "-2.9")
    assert ran.code == 1 and "-2.9" in ran.err and "-3" in ran.err and len(ran.err.splitlines()) == 1
    assert json.loads(out.read_text())["absolute_delta"] == -3.0 == json.loads(ran.out)["absolute_delta"]
    good("paired", *pair, "--min-delta", "-3")
    for wrong in ("nan", "inf", "much"):
        assert wrong in refused("paired", *pair, "--min-delta", wrong, code=2)


def test_zero_has_no_relative_delta() -> None:
    found = artefact("--baseline-command", "echo '{\"score\": 0}'", "--candidate-command", "echo '{\"score\": 1}'")
    assert (found["absolute_delta"], found["relative_delta"]) == (1.0, None)


def test_refused(repo: Path, tmp_path: Path) -> None:
    fine = ["--baseline-command", "echo '{\"score\": 1}'"]
    assert "candidate" in refused("paired", *fine, code=2)
    assert "baseline" in refused("paired", *fine, "--baseline", "HEAD", "--candidate", "HEAD", code=2)
    assert "'HEDA'" in refused("paired", *fine, "--candidate", "HEDA")
    assert "'-x'" in refused("paired", *fine, "--candidate=-x")
    assert "no-such" in refused("paired", *fine, "--candidate-command", "no-such")
    assert "empty" in refused("paired", *fine, "--candidate-command", "")
    assert "quot" in refused("paired", *fine, "--candidate-command", "echo 'a")
    assert "exit code 3" in refused("paired", *fine, "--candidate-command", "sh -c 'echo no >&2; exit 3'")
    assert "--run-seconds" in refused("paired", *fine, "--candidate-command", "sleep 60", "--run-seconds", "0.2")
    assert "src" in refused("paired", *fine, "--candidate", "HEAD", "--out", repo / "src", code=2)
    (repo / "file").touch()
    line = refused("paired", *fine, "--candidate-command", "echo '{\"score\": 2}'", "--out", repo / "file" / "x.json")
    assert "file" in line


def test_artefacts_never_hold_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        script("payload").write_json(tmp_path / "x.json", {"a": float("nan")})
    assert list(tmp_path.iterdir()) == []

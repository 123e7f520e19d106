"""Untracked files: benchmark artefacts and others, their sizes, and what refers to them.

    python benchmarks/inventory.py --output docs/inventory.md
    python benchmarks/inventory.py --format json --only-category benchmark-progress-log

Reads only: nothing is deleted, staged or ignored. Files that tracked documentation, state or configuration refers to
come first, the most referenced at the top. Ignored files are not listed.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import click
from categories import CATEGORIES, category_of
from payload import git, into, now, start, write_json

from gemma4_core.cli.base import GemmaCommand, ManyOption
from gemma4_core.cli.output import note, write
from gemma4_core.errors import InputError
from gemma4_core.formatting import human_bytes

SPEAKING = {".md", ".rst", ".txt", ".json", ".jsonl", ".toml", ".yaml", ".yml", ".cfg", ".ini", ".conf", ".mk"}
"""Suffixes of tracked documentation, state and configuration."""
SPEAKING_NAMES = {"makefile", "readme", ".gitignore", ".gitattributes"}
LARGEST = 8 << 20
"""Maximum bytes of a tracked file that is read."""
WORD = re.compile(r"[\w./+@%~=:-]*[\w+@%~=-]")
"""A path or name in running text; a full stop that ends a sentence is not part of it."""


@dataclass(frozen=True)
class Row:
    """An untracked file."""

    path: str
    size: int
    category: str
    suffix: str
    reference_count: int
    references: list[str]
    """Tracked files that refer to it."""
    disposition: str
    """A suggestion; nothing is done."""


def untracked(repository: Path) -> list[str]:
    """Paths of untracked files that are not ignored, relative to the repository."""
    listed = git("ls-files", "--others", "--exclude-standard", "-z", folder=repository)
    return sorted(path for path in listed.split("\0") if path)


def tracked_texts(repository: Path) -> Iterator[tuple[str, str]]:
    """Tracked documentation, state and configuration: path and content."""
    for path in git("ls-files", "-z", folder=repository).split("\0"):
        pure = PurePosixPath(path)
        if pure.suffix.lower() not in SPEAKING and pure.name.lower() not in SPEAKING_NAMES:
            continue
        try:
            file = repository / path
            if file.is_file() and file.stat().st_size <= LARGEST:
                yield path, file.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue


def references(repository: Path, paths: Sequence[str]) -> dict[str, Counter[str]]:
    """For each path, how often each tracked text names it: by the whole path, or by an end of it with the file name."""
    found: dict[str, Counter[str]] = {path: Counter() for path in paths}
    by_name: dict[str, list[str]] = {}
    odd = {path for path in paths if not WORD.fullmatch(path)}
    for path in paths:
        by_name.setdefault(path.rsplit("/", 1)[-1], []).append(path)
    for source, text in tracked_texts(repository):
        for word in WORD.findall(text):
            for path in by_name.get(word.rsplit("/", 1)[-1], ()):
                if path not in odd and names(word, path):
                    found[path][source] += 1
        for path in odd:
            if count := text.count(path):
                found[path][source] += count
    return found


def names(word: str, path: str) -> bool:
    """Whether a word of a text names a path: the path itself, an end of it, or a longer one that ends with it."""
    parts = [part for part in word.split("/") if part not in ("", ".", "..")]
    own = path.split("/")
    shorter = min(len(parts), len(own))
    return shorter > 0 and parts[-shorter:] == own[-shorter:]


def collect(repository: Path, wanted: Sequence[str]) -> list[Row]:
    """Rows of the wanted categories (all where none is given), the most referenced first, then by path."""
    paths = [path for path in untracked(repository) if not wanted or category_of(path) in wanted]
    spoken = references(repository, paths)
    rows = []
    for path in paths:
        try:
            size = (repository / path).lstat().st_size
        except OSError:
            continue  # it has been deleted meanwhile
        category, count = category_of(path), spoken[path].total()
        disposition = CATEGORIES[category].referenced if count else CATEGORIES[category].unreferenced
        suffix = PurePosixPath(path).suffix.lower()
        rows.append(Row(path, size, category, suffix, count, sorted(spoken[path]), disposition))
    return sorted(rows, key=lambda row: (-row.reference_count, row.path))


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """Counts over rows; ``referenced_count`` is how many of them some text refers to."""
    return {
        "untracked_count": len(rows),
        "total_size": sum(row.size for row in rows),
        "referenced_count": sum(row.reference_count > 0 for row in rows),
        "counts_by_category": dict(sorted(Counter(row.category for row in rows).items())),
        "counts_by_suffix": dict(sorted(Counter(row.suffix or "(none)" for row in rows).items())),
    }


def as_json(rows: Sequence[Row], repository: Path) -> dict[str, Any]:
    """The whole report as plain values, for programs."""
    return {"repository": str(repository), "created": now(), **summary(rows), "rows": [asdict(row) for row in rows]}


def as_markdown(rows: Sequence[Row], repository: Path) -> str:
    """The whole report as Markdown, for people."""
    told = summary(rows)
    lines = [
        f"# Untracked files of {cell(repository.name)}, {now()}", "",
        f"{told['untracked_count']} files, {human_bytes(told['total_size'])}, {told['referenced_count']} of them named "
        "by tracked documentation, state or configuration. Nothing was changed; what to keep is up to you.",
        "",
        "| path | size | category | references | named in | suggestion |", "|---|---:|---|---:|---|---|",
    ]  # fmt: skip
    for row in rows:
        where = ", ".join(cell(name) for name in row.references[:3]) + (" …" if len(row.references) > 3 else "")
        values = (cell(row.path), human_bytes(row.size), row.category, row.reference_count, where, row.disposition)
        lines.append(f"| {' | '.join(map(str, values))} |")
    for title, counts in (("category", told["counts_by_category"]), ("suffix", told["counts_by_suffix"])):
        lines += ["", f"| {title} | files |", "|---|---:|"]
        lines += [f"| {cell(name)} | {count} |" for name, count in counts.items()]
    return "\n".join(lines) + "\n"


def cell(text: str) -> str:
    """Text inside a table's cell."""
    plain = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    return plain.replace("\\", "\\\\").replace("|", "\\|")


def known_categories(ctx: click.Context, param: click.Parameter, value: Sequence[str]) -> list[str]:
    """Category names as they are spelled. Raises BadParameter before anything is collected."""
    found = []
    for name in value:
        if name.strip().lower() not in CATEGORIES:
            raise click.BadParameter(f"{name[:100]!r} is not a category; --list-categories prints them.")
        found.append(name.strip().lower())
    return found


def list_categories(as_format: str) -> str:
    """The categories: a name per line, or as JSON with what belongs to each."""
    if as_format == "json":
        return json.dumps({name: category.summary for name, category in CATEGORIES.items()}, indent=2) + "\n"
    return "".join(f"{name}\n" for name in CATEGORIES)


@click.command("inventory", cls=GemmaCommand)
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), default=None, metavar="FILE",
              help="File to write; Markdown goes there instead of to stdout, JSON to both.")
@click.option("--format", "as_format", type=click.Choice(["markdown", "json"]), default="markdown", show_default=True,
              help="What to write.")
@click.option("--only-category", "wanted", cls=ManyOption, separator=",", callback=known_categories,
              metavar="NAME...", help="List only these categories.")
@click.option("--list-categories", "listing", is_flag=True, help="Print the categories and exit.")
@click.option("--repository", type=click.Path(path_type=Path, file_okay=False), default=Path(), metavar="FOLDER",
              help="A folder of the repository. Default: the current one.")
def inventory_command(
    output: Path | None, as_format: str, wanted: Sequence[str], listing: bool, repository: Path
) -> None:
    """List untracked files with size, category and references to them; changes nothing."""
    if listing:
        write(list_categories(as_format))
        return
    top = git("rev-parse", "--show-toplevel", folder=repository).removesuffix("\n")
    if not top:
        raise InputError(f"--repository {repository} is not a work tree of a git repository")
    rows = collect(Path(top), wanted)
    if as_format == "json":
        found = as_json(rows, Path(top))
        if output is not None:
            write_json(output, found)
        write(json.dumps(found, indent=2) + "\n")
    elif output is not None:
        with into(output) as file:
            file.write(as_markdown(rows, Path(top)))
    else:
        write(as_markdown(rows, Path(top)))
    note(f"inventoried {len(rows)} untracked path(s)")


if __name__ == "__main__":
    start(inventory_command, __file__)

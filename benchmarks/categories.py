"""Kinds of files that benchmarks and other work leave behind, and what one might do with each."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Category:
    """A kind of file: which paths belong to it, and suggestions."""

    summary: str
    pattern: str
    """A pattern to find in the path; case does not matter."""
    unreferenced: str
    """What to do with a file that nothing refers to."""
    referenced: str = "evidence that is cited: review, then commit it or fix the citation"


CATEGORIES: dict[str, Category] = {
    "benchmark-progress-log": Category(
        "progress of matrix rows", r"\.progress\.jsonl?$", "remove once its matrix is done"),
    "benchmark-table": Category(
        "tables of measurements", r"\.(csv|tsv)$", "review; commit what a claim rests on, remove the rest"),
    "benchmark-result": Category(
        "payloads and artefacts of benchmarks", r"(^|/)(bench[^/]*|results?|paired[^/]*)/.*\.jsonl?$|"
        r"(^|/)[^/]*(bench|paired|compare|cold[-_]?start|matrix)[^/]*\.jsonl?$",
        "review; commit what a claim rests on, remove the rest"),
    "profile": Category(
        "profiles and traces", r"\.(prof|pstats|nsys-rep|ncu-rep|qdrep|perf|trace|pftrace)$|(^|/)perf\.data|"
        r"(^|/)profile[^/]*\.(json|txt|html|svg)$", "remove, or note its finding in the documentation first"),
    "plot": Category("drawn results", r"\.(png|svg|pdf|jpe?g)$", "remove; plots can be drawn again"),
    "log": Category("output of runs", r"\.(log|out|err)$|(^|/)nohup\.out", "remove"),
    "weights": Category(
        "checkpoints and arrays", r"\.(safetensors|gguf|npz|npy|pt|bin|model)$", "move out of the repository"),
    "source": Category(
        "programs and scripts", r"\.(py|c|h|cc|cpp|cu|cuh|metal|sh|js|html|ipynb)$|(^|/)Makefile$",
        "commit it or remove it", "commit it: others rely on it"),
    "document": Category(
        "texts", r"\.(md|rst|txt)$", "commit it or remove it", "commit it: others refer to it"),
    "configuration": Category(
        "settings and data files", r"\.(json|jsonl|toml|ya?ml|cfg|ini|conf)$", "commit it or remove it",
        "commit it: others refer to it"),
    "temporary": Category("left-over files", r"(\.(tmp|bak|swp|orig|rej|old)|~)$", "remove"),
    "other": Category("everything else", r"", "review"),
}  # fmt: skip
"""Categories by name; the first that matches is used."""


def category_of(path: str) -> str:
    """The category of a path relative to its repository."""
    return next(name for name, category in CATEGORIES.items() if re.search(category.pattern, path, re.IGNORECASE))

"""The log of a run: a CSV file with a line for each step, and the loss curve as a picture."""

from __future__ import annotations

import csv
import errno
import io
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from gemma4_core.checkpoint.atomic import atomic_file, write_error
from gemma4_core.formatting import shown_path

COLUMNS = (
    "step", "epoch", "loss", "lr", "gradient_norm", "tokens", "targets", "seconds", "tokens_per_second",
    "memory_bytes", "validation_loss", "perplexity",
)


class CsvLog:
    """Lines that are appended whole, each in one write. A line that a kill has cut, and lines after the step that a run
    goes on from, are left out when it is opened again."""

    def __init__(self, path: Path, after: int = 0) -> None:
        """``after``: the step to go on from, 0 to start over. Raises CheckpointError."""
        self.path = path
        rows = [row for row in read_log(path) if int(row["step"]) <= after] if after else []
        with atomic_file(path, "w") as file:
            file.write(line(COLUMNS) + "".join(line([row.get(name, "") for name in COLUMNS]) for row in rows))
        self._file: IO[bytes] = open(path, "ab", buffering=0)  # noqa: SIM115

    def add(self, row: Mapping[str, Any]) -> None:
        """One line. Raises CheckpointError where it cannot be written."""
        values = [row.get(name) for name in COLUMNS]
        data = line(["" if value is None else value for value in values]).encode()
        size = os.fstat(self._file.fileno()).st_size
        try:
            if (self._file.write(data) or 0) < len(data):  # the disk has room for a part of it
                self._file.truncate(size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as fault:
            raise write_error(fault, shown_path(self.path)) from fault

    def amend(self, step: int, values: Mapping[str, Any]) -> None:
        """Add values to the line of a step that is there; the file is replaced whole. Raises CheckpointError."""
        self._file.close()
        rows = [{**row, **(values if row["step"] == str(step) else {})} for row in read_log(self.path)]
        with atomic_file(self.path, "w") as file:
            file.write(line(COLUMNS) + "".join(line([row.get(name, "") for name in COLUMNS]) for row in rows))
        self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115

    def __enter__(self) -> CsvLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def line(values: Any) -> str:
    """Values as a line of CSV; floats as Python writes them, so that they can be read back exactly."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue()


def read_log(path: Path) -> list[dict[str, str]]:
    """The whole lines of a log, by column; empty where there is none."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    whole = text[: text.rfind("\n") + 1]
    found = []
    try:
        for row in csv.DictReader(io.StringIO(whole)):
            if re.fullmatch("[0-9]{1,12}", row.get("step") or "") and None not in row and None not in row.values():
                found.append(row)
    except csv.Error:  # damaged from here on
        pass
    return found


def number(text: str) -> float:
    """A number of a log, NaN where it is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def draw_curve(log: Path, target: Path) -> bool:
    """The loss curve of a log as PNG; False where matplotlib is not installed. Raises CheckpointError."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False
    rows = read_log(log)
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for name, style in (("loss", {"linewidth": 1.0}), ("validation_loss", {"marker": "o"})):
        points = [(int(row["step"]), number(row.get(name, ""))) for row in rows]
        points = [point for point in points if math.isfinite(point[1])]
        if points:
            axes.plot(*zip(*points, strict=True), label=name.replace("_", " "), **style)
    axes.set(xlabel="step", ylabel="loss")
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()
    picture = io.BytesIO()
    FigureCanvasAgg(figure).print_png(picture)
    with atomic_file(target) as file:
        file.write(picture.getvalue())
    return True

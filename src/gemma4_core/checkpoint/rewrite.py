"""Rewriting a checkpoint, such as in another format: resumable, and whole or not at all.

Finished files wait in a hidden folder beside the target, so that an interrupted run continues where it stopped; the
target appears whole when all are there. Formats that write files of their own start over.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from gemma4_core.checkpoint.atomic import check_target, make_parents, swap, sync_folder, sync_tree, write_error
from gemma4_core.checkpoint.blocks import SavedWeights
from gemma4_core.checkpoint.contents import CONFIG, replaceable_checkpoint, weight_files
from gemma4_core.checkpoint.saving import write_checkpoint
from gemma4_core.checkpoint.temporary import lock, remove, restore, short_name, still_there, sweep
from gemma4_core.contracts import CheckpointFormat, Context, WeightBlocks
from gemma4_core.errors import CheckpointError, InputError
from gemma4_core.formatting import shown_path

SHARD_BYTES = 1 << 30
"""Bytes of one written file, which is the most that an interruption can cost."""
PLAN, LOCK, FINISHED, WHOLE = "plan.json", "lock", "finished", "whole"


def check_out(context: Context, target: str | Path, overwrite: bool = True) -> None:
    """Refuse a target that may not be replaced. Raises InputError, CheckpointError."""
    assert context.path is not None
    final, where = Path(os.path.realpath(target)), shown_path(target)
    if final == Path(os.path.realpath(context.path)):
        raise InputError(f"--out {where} is the checkpoint itself; give another folder")
    check_target(final, where, replaceable_checkpoint, overwrite)


def rewrite_checkpoint(
    context: Context,
    weights: Sequence[WeightBlocks],
    target: str | Path,
    chosen: CheckpointFormat,
    dtype: str,
    plan: str,
    doing: str = "quantizing",
    overwrite: bool = True,
) -> None:
    """Rewrite a checkpoint; an interrupted run continues, and the target appears whole.

    Args:
        context: the checkpoint that it is made from.
        weights: what is written, none of it read yet.
        target: an absent or empty folder, or one that holds a checkpoint and nothing else, which is replaced.
        chosen: the format to write; it must have ``save``.
        dtype: name of the type that the result computes in.
        plan: all that the result depends on besides the source; what an earlier run with another plan has left is
            deleted.
        doing: suffix of the hidden folder in which finished files wait.
        overwrite: False refuses to replace a checkpoint too.

    Raises:
        CheckpointError: the target cannot be written or replaced, or another process is writing it.
    """
    final, where = Path(os.path.realpath(target)), shown_path(target)
    try:
        with workplace(final, context, plan, doing) as work:
            whole = work / WHOLE
            shutil.rmtree(whole, ignore_errors=True)
            whole.mkdir()
            (work / FINISHED).mkdir(exist_ok=True)
            saved = SavedWeights(weights, SHARD_BYTES, work / FINISHED)
            write_checkpoint(whole, context, chosen, saved, dtype)
            sync_tree(whole)
            swap(whole, final, where, replaceable_checkpoint, overwrite)
            sync_folder(final.parent)
    except OSError as fault:
        raise write_error(fault, where) from fault


@contextmanager
def workplace(final: Path, context: Context, plan: str, doing: str) -> Iterator[Path]:
    """The hidden folder beside the target, for this process alone; it stays when the work is interrupted.

    One that was made for other weights is emptied.
    """
    make_parents(final.parent)
    sweep(final.parent)
    work = final.parent / f".{short_name(final)}.{doing}"
    with hold(work):
        restore(work / f"{WHOLE}.old", final)
        text = json.dumps(fingerprint(context, plan), indent=2)
        if not (work / PLAN).exists() or (work / PLAN).read_text(encoding="utf-8") != text:
            empty(work)
            (work / PLAN).write_text(text, encoding="utf-8")
        yield work
        with suppress(OSError):
            # the lock goes last: another process would take a folder without it for its own
            empty(work)
            (work / LOCK).unlink()
            work.rmdir()


def empty(work: Path) -> None:
    """Remove all but the lock."""
    for path in work.iterdir():
        if path.name != LOCK:
            remove(path)


def hold(work: Path) -> IO[str]:
    """Make a folder where there is none and lock it. The system frees the lock when this process ends, however it ends.
    Raises CheckpointError where another process has it."""
    while True:
        work.mkdir(exist_ok=True)
        with suppress(FileNotFoundError):  # another process has just removed it
            file = open(work / LOCK, "w", encoding="utf-8")  # noqa: SIM115 (the caller closes it)
            if lock(file) is False:
                file.close()
                raise CheckpointError(f"another process is writing in {shown_path(work)}; wait for it to end")
            if still_there(file, work / LOCK):
                return file
            file.close()


def fingerprint(context: Context, plan: str) -> Mapping[str, Any]:
    """What half-finished work is valid for: the plan, and the source's files with size and time."""
    assert context.path is not None
    files = weight_files(context)
    if context.folder is not None and (context.folder / CONFIG).exists():
        files.append(context.folder / CONFIG)
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return {"plan": plan, "source": os.path.realpath(context.path), "shard": SHARD_BYTES, "files": stats}

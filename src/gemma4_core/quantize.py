"""Writing a checkpoint in another format, tensor by tensor, without ever holding the model.

Finished parts wait in a hidden folder beside the target, so that an interrupted run goes on where it stopped; the
target appears whole when all are there.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from gemma4_core.checkpoint.atomic import check_target, make_parents, swap, sync_folder, sync_tree, write_error
from gemma4_core.checkpoint.contents import is_checkpoint, replaceable_checkpoint
from gemma4_core.checkpoint.context import read_context
from gemma4_core.checkpoint.convert import RUN_NAMES
from gemma4_core.checkpoint.dtypes import choose_dtype
from gemma4_core.checkpoint.folder import copy_others, write_config
from gemma4_core.checkpoint.folder_headers import INDEX_FILE, SINGLE_FILE
from gemma4_core.checkpoint.hub import resolve_folder
from gemma4_core.checkpoint.names import NamedSource
from gemma4_core.checkpoint.opening import open_checkpoint
from gemma4_core.checkpoint.rows import HostWeight
from gemma4_core.checkpoint.shard import Shard
from gemma4_core.checkpoint.temporary import lock, remove, restore, short_name, still_there, sweep
from gemma4_core.checkpoint.unserved import check_stored
from gemma4_core.config import expected_text_tensors, ignorable
from gemma4_core.errors import CheckpointError, InputError
from gemma4_core.formatting import shown, shown_path
from gemma4_core.plugins import registry

if TYPE_CHECKING:
    from tinygrad import Tensor
    from tinygrad.dtype import DType

    from gemma4_core.contracts import CheckpointFormat, Context, WeightSource

PART_BYTES = 2 << 30
"""Stored bytes of the source that become one part, which is what an interruption can cost."""
PLAN, LOCK = "plan.json", "lock"


class StoredWeight:
    """A tensor that is read from its file when it is written."""

    def __init__(self, source: WeightSource, name: str, dtype: DType) -> None:
        self.source, self.name, self.dtype = source, name, dtype
        self.shape = source.infos[name].shape

    def dense(self) -> Tensor:
        """The tensor in plain memory; no kernel is compiled for it."""
        return self.source.tensor(self.name, "PYTHON", self.dtype)


def quantize(source: str | Path, target: str | Path, format: str = "int8", overwrite: bool = True) -> Path:
    """Write a checkpoint in a quantised format.

    Args:
        source: a folder, a hub name or an alias, with ordinary weights.
        target: an absent or empty folder, or one that holds a checkpoint and nothing else, which is replaced whole.
        format: name of a checkpoint format plugin that can be written.
        overwrite: False refuses to replace a checkpoint too.

    Returns:
        the target.

    Raises:
        CheckpointError, ConfigError: the source is damaged or quantised already, or the target cannot be written.
        PluginError, InputError: no such format, or one that cannot be written.
    """
    chosen: CheckpointFormat = registry.select("format", None, format)
    if chosen.save is None:
        raise InputError(f"--format {shown(format)} can be read, not written")
    context = read_context(resolve_folder(source))
    assert context.config is not None
    check_out(context, target, overwrite)
    with opened(context) as source_weights:
        dtype = choose_dtype(None, source_weights.infos, context.config)
        give = lambda names: weights(names, source_weights, context, dtype)  # noqa: E731
        rewrite(context, source_weights, target, chosen, dtype, give, chosen.name, overwrite=overwrite)
    return Path(target)


def check_out(context: Context, target: str | Path, overwrite: bool = True) -> None:
    """Refuse a target that may not be replaced. Raises InputError, CheckpointError."""
    assert context.folder is not None
    final, where = Path(os.path.realpath(target)), shown_path(target)
    if final == Path(os.path.realpath(context.folder)):
        raise InputError(f"--out {where} is the checkpoint itself; give another folder")
    check_target(final, where, replaceable_checkpoint, overwrite)


def rewrite(
    context: Context,
    source: WeightSource,
    target: str | Path,
    chosen: CheckpointFormat,
    dtype: DType,
    give: Callable[[Sequence[str]], Iterator[tuple[str, Any]]],
    plan: str,
    doing: str = "quantizing",
    overwrite: bool = True,
) -> None:
    """Write a checkpoint anew, part by part; an interrupted run goes on, and the target appears whole.

    Args:
        context, source: the checkpoint and its open weights.
        target: an absent or empty folder, or one that holds a checkpoint and nothing else, which is replaced.
        chosen: the format to write.
        dtype: what the result computes in.
        give: weights by name as the format's ``save`` takes them, for the names of one part.
        plan: all that the result depends on besides the source; parts of another plan are thrown away.
        doing: end of the hidden folder's name in which parts wait.
        overwrite: False refuses to replace a checkpoint too.

    Raises:
        CheckpointError: the target cannot be written or replaced, or another process is at it.
    """
    final, where = Path(os.path.realpath(target)), shown_path(target)
    try:
        with workplace(final, context, plan, doing) as work:
            write_parts(work, source, context, chosen, give)
            assemble(work, context, dtype)
            swap(work / "whole", final, where, replaceable_checkpoint, overwrite)
            sync_folder(final.parent)
    except OSError as fault:
        raise write_error(fault, where) from fault


def done_before(target: Path, format: str) -> bool:
    """Whether a folder is a checkpoint of this format already."""
    if not is_checkpoint(target):
        return False
    chosen: CheckpointFormat = registry.select("format", None, format)
    return bool(chosen.matches(read_context(target)))


@contextmanager
def opened(context: Context) -> Iterator[NamedSource]:
    """The source's weights, checked against its config. Raises CheckpointError for quantised ones."""
    assert context.folder is not None and context.config is not None
    source = open_checkpoint(context).weights
    try:
        packed = next((name for name, info in source.infos.items() if info.dtype not in RUN_NAMES.values()), None)
        if packed is not None:
            stands = f"{shown(packed)} is {source.infos[packed].dtype}"
            raise CheckpointError(f"{shown_path(context.folder)} is quantised already ({stands}); give the checkpoint "
                                  f"with ordinary weights")
        check_stored(context, source)
        yield source
    finally:
        source.close()


@contextmanager
def workplace(final: Path, context: Context, plan: str, doing: str) -> Iterator[Path]:
    """The hidden folder beside the target, for this process alone; it stays when the work is interrupted.

    One that was made for other weights is emptied.
    """
    make_parents(final.parent)
    sweep(final.parent)
    work = final.parent / f".{short_name(final)}.{doing}"
    with hold(work):
        restore(work / "whole.old", final)
        text = json.dumps(fingerprint(context, plan), indent=2)
        if not (work / PLAN).exists() or (work / PLAN).read_text(encoding="utf-8") != text:
            for path in work.iterdir():
                if path.name != LOCK:
                    remove(path)
            (work / PLAN).write_text(text, encoding="utf-8")
        yield work
        with suppress(OSError):
            # the lock goes last: what another process finds without it, it would take for its own
            for path in work.iterdir():
                if path.name != LOCK:
                    remove(path)
            (work / LOCK).unlink()
            work.rmdir()


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
    """What a half-finished work is valid for: plan, and the source's files with size and time."""
    assert context.folder is not None
    files = sorted([*context.folder.glob("*.safetensors"), context.folder / "config.json"])
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return {"plan": plan, "folder": os.path.realpath(context.folder), "part": PART_BYTES, "files": stats}


def write_parts(
    work: Path,
    source: WeightSource,
    context: Context,
    chosen: CheckpointFormat,
    give: Callable[[Sequence[str]], Iterator[tuple[str, Any]]],
) -> None:
    """Write what is missing of the parts, each whole or not at all."""
    assert context.config is not None and chosen.save is not None
    names = [name for name in source.infos if not ignorable(context.config, name)]
    for number, part in enumerate(split(names, source), 1):
        folder = work / f"part-{number:05d}"
        if folder.exists():
            continue
        unfinished = folder.with_suffix(".tmp")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        chosen.save(give(part), unfinished, context)
        sync_tree(unfinished)
        os.replace(unfinished, folder)
        sync_folder(work)


def split(names: Sequence[str], source: WeightSource) -> Iterator[list[str]]:
    """Tensor names by part."""
    part: list[str] = []
    size = 0
    for name in names:
        if part and size + source.infos[name].nbytes > PART_BYTES:
            yield part
            part, size = [], 0
        part.append(name)
        size += source.infos[name].nbytes
    yield part


def weights(
    names: Sequence[str], source: WeightSource, context: Context, dtype: DType
) -> Iterator[tuple[str, Any]]:
    """Weights as a format's ``save`` takes them, none of them read yet."""
    assert context.config is not None
    text = expected_text_tensors(context.config)
    for name in names:
        shape = source.infos[name].shape
        if name in text and len(shape) >= 2:
            yield name, HostWeight(source.row_reader(name, in_memory=False), shape, dtype)
        else:
            yield name, StoredWeight(source, name, dtype)


def assemble(work: Path, context: Context, dtype: DType) -> None:
    """Make the folder ``whole`` of the parts: numbered shards, index, config, tokenizer files."""
    from gemma4_core.checkpoint.upload import NAMES

    whole = work / "whole"
    shutil.rmtree(whole, ignore_errors=True)
    whole.mkdir()
    parts = sorted(work.glob("part-*[0-9]"))
    shards = [path for part in parts for path in sorted(part.glob("*.safetensors"))]
    names = [SINGLE_FILE]
    if len(shards) > 1:
        names = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    weight_map: dict[str, str] = {}
    total = 0
    for path, name in zip(shards, names, strict=True):
        shard = Shard(path)
        shard.file.close()
        weight_map |= dict.fromkeys(shard.header.tensors, name)
        total += sum(entry.nbytes for entry in shard.header.tensors.values())
        # a second name for the same file: the part stays for another attempt
        link(path, whole / name)
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (whole / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    manifest: dict[str, Any] = {}
    for part in parts:
        if (part / "config.json").exists():
            manifest = merged(manifest, json.loads((part / "config.json").read_text(encoding="utf-8")))
    (whole / "config.json").write_text(json.dumps(manifest), encoding="utf-8")
    names_of = {stored: name for name, stored in RUN_NAMES.items()}
    write_config(context.raw_config, names_of[NAMES[dtype]], whole)
    copy_others(context.folder, whole)
    sync_tree(whole)


def link(path: Path, name: Path) -> None:
    """A file under a second name, a copy where the file system has no links."""
    try:
        os.link(path, name)
    except OSError:
        shutil.copyfile(path, name)


def merged(one: Any, two: Any) -> Any:
    """What several parts put into config.json as one: objects by key, lists one after the other."""
    if isinstance(one, dict) and isinstance(two, dict):
        return one | {key: merged(one[key], value) if key in one else value for key, value in two.items()}
    return one + two if isinstance(one, list) and isinstance(two, list) else two

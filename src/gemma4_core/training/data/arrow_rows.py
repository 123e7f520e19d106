"""Rows of Parquet and Arrow files, a few at a time. They are read with pyarrow, the extra ``data``."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from gemma4_core.errors import InputError
from gemma4_core.formatting import shown, shown_path
from gemma4_core.json_lines import DEEPEST
from gemma4_core.training.data.columns import Columns, known_keys
from gemma4_core.training.data.json_rows import hub_hint, opened
from gemma4_core.training.data.stored_media import MediaStore

if TYPE_CHECKING:
    import pyarrow

UNREAD = "…"
"""Stands for the value of a column that nothing reads."""
TEXTS = ("text", "prompt", "completion", "instruction", "input", "context", "output", "response", "system")
"""Keys of text: some programs write it as bytes."""
ROWS, MEDIA_ROWS = 1024, 32
"""Rows that are read at a time; fewer where they hold bytes."""
STREAM_BUFFER = 1 << 20
"""Bytes of a column that are read at a time."""
PARQUET, ARROW = b"PAR1", b"ARROW1"
STREAM = b"\xff\xff\xff\xff"
"""What Arrow files without a footer begin with, such as those of ``datasets``."""


def arrow_format(path: Path) -> str | None:
    """``Parquet`` or ``Arrow`` for files of these formats, by their first bytes or, where they are damaged, by their
    names; None for others and for files that cannot be read."""
    try:
        head = b""
        if path.is_file():
            with open(path, "rb") as file:
                head = file.read(6)
    except (OSError, ValueError):
        return None
    suffix = path.suffix.lower()
    if head.startswith(PARQUET) or suffix in (".parquet", ".pq"):
        return "Parquet"
    return "Arrow" if head == ARROW or head[:4] == STREAM or suffix in (".arrow", ".feather", ".ipc") else None


def arrow_rows(path: Path, columns: Columns, store: MediaStore) -> Iterator[tuple[int, Any]]:
    """The rows of a Parquet or Arrow file as objects, counted from 1, without null values.

    Args:
        columns: those that are mapped are read, besides those that are named like our keys; the others have the value
            ``UNREAD``.
        store: takes bytes and media of the form that ``datasets`` writes, ``{"bytes": …, "path": …}``.

    Raises:
        InputError: naming the file, without pyarrow, or where the file or a column's type cannot be read.
    """
    where, name = shown_path(path), arrow_format(path) or "Parquet"
    try:
        import pyarrow  # noqa: F401
    except ImportError as fault:
        raise InputError(f"{where}: {name} files need pyarrow; install it with: pip install pyarrow") from fault
    try:
        file = opened(path)
    except OSError as fault:
        raise InputError(f"{where}: {fault.strerror or fault}; check the path{hub_hint(path)}") from fault
    keys = {*known_keys(), *columns.sources()}
    texts = {*TEXTS, *(theirs for ours, theirs in columns.names.items() if ours in TEXTS)}
    with file:
        with reported(where, name):
            schema, batches = (parquet if name == "Parquet" else arrow)(file, where, keys)
            names = schema.names
            read = [column for column in names if column in keys]
            types = [column_type(schema.field(column), where, column in texts) for column in read]
        if not read and names:
            columns.applied(dict.fromkeys(names))
            columns.check(where)
            raise InputError(f"{where}: has no column that examples are made of; it has "
                             f"{', '.join(shown(column)[1:-1] for column in names[:12])}; name them with "
                             f"--column, such as --column messages={shown(names[0])[1:-1]}"[:450])
        unread = {column: UNREAD for column in names if column not in keys}
        number = 0
        while True:
            with reported(where, name):
                if (batch := next(batches, None)) is None:
                    return
                batch.validate(full=True)
                parts = [values(batch.column(column), kind) for column, kind in zip(read, types, strict=True)]
            for row in zip(*parts, strict=True):
                number += 1
                place = f"{where}:{number}"
                held = {column: plain(value, store, place) for column, value in zip(read, row, strict=True)}
                yield number, unread | {column: value for column, value in held.items() if value is not None}


@contextmanager
def reported(where: str, name: str) -> Iterator[None]:
    """Whatever pyarrow raises as InputError."""
    try:
        yield
    except InputError:
        raise
    except MemoryError as fault:
        raise InputError(f"{where}: does not fit in memory; its row groups are too large, or it is damaged") from fault
    except Exception as fault:
        reason = " ".join(str(fault).split())[:200].rstrip(". ") or type(fault).__name__
        raise InputError(f"{where}: cannot be read as {name}: {shown(reason, 200)[1:-1]}; the file may be damaged or "
                         f"cut off") from fault


def parquet(file: IO[bytes], where: str, keys: Collection[str]) -> tuple[pyarrow.Schema, Iterator[Any]]:
    """The schema and the rows of a Parquet file.

    What the file says of each column of a row group is not looked at: pyarrow 26 ends the process where that is
    damaged.
    """
    from pyarrow.parquet import ParquetFile

    opened = ParquetFile(file, buffer_size=STREAM_BUFFER, pre_buffer=False)
    schema = opened.schema_arrow
    refuse_doubles(schema, where, keys)
    columns = [name for name in schema.names if name in keys]
    size = MEDIA_ROWS if any(holds_bytes(schema.field(name).type) for name in columns) else ROWS
    return schema, opened.iter_batches(size, columns=columns, use_threads=False)


def arrow(file: IO[bytes], where: str, keys: Collection[str]) -> tuple[pyarrow.Schema, Iterator[Any]]:
    """The schema and the rows of an Arrow file, with or without a footer."""
    from pyarrow import ipc

    head = file.read(len(ARROW))
    file.seek(0)
    if head != ARROW:
        stream = ipc.open_stream(file)
        refuse_doubles(stream.schema, where, keys)
        return stream.schema, iter(stream)
    whole = ipc.open_file(file)
    refuse_doubles(whole.schema, where, keys)
    return whole.schema, (whole.get_batch(index) for index in range(whole.num_record_batches))


def refuse_doubles(schema: pyarrow.Schema, where: str, keys: Collection[str]) -> None:
    """Raise InputError for two columns of one name that are both read."""
    for name in keys:
        if len(schema.get_all_field_indices(name)) > 1:
            raise InputError(f"{where}: has several columns {shown(name)}; rename one of them")


def column_type(column: pyarrow.Field, where: str, text: bool) -> pyarrow.DataType:
    """The type that a column is read as. Raises InputError for one that nothing can be made of."""
    import pyarrow

    kind = pyarrow.large_string() if text and is_bytes(column.type) else readable(column.type)
    if kind is None:
        raise InputError(f"{where}: column {shown(column.name)} is {shown(str(column.type), 120)[1:-1]}, of which no "
                         f"example can be made; give text, numbers, lists and structs of them, or bytes")
    return kind


def readable(kind: Any, depth: int = 0) -> Any:
    """A type whose values are plain Python ones: dates, times and decimals as text. None where there is none."""
    import pyarrow
    from pyarrow import types

    if depth > DEEPEST:
        return None
    if isinstance(kind, pyarrow.BaseExtensionType):
        return readable(kind.storage_type, depth + 1)
    if types.is_dictionary(kind):
        return readable(kind.value_type, depth + 1)
    if types.is_struct(kind):
        fields = [(field.name, readable(field.type, depth + 1)) for field in kind]
        return None if any(inner is None for _, inner in fields) else pyarrow.struct(fields)
    if types.is_map(kind):
        key, item = readable(kind.key_type, depth + 1), readable(kind.item_type, depth + 1)
        return None if key is None or item is None or not is_text(key) else pyarrow.map_(key, item)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        inner = readable(kind.value_type, depth + 1)
        return None if inner is None else pyarrow.large_list(inner)
    if types.is_timestamp(kind) or types.is_date(kind) or types.is_time(kind) or types.is_decimal(kind):
        return pyarrow.string()
    if types.is_float16(kind):
        return pyarrow.float32()
    simple = types.is_null(kind) or types.is_boolean(kind) or types.is_integer(kind) or types.is_floating(kind)
    return kind if simple or is_text(kind) or is_bytes(kind) else None


def is_text(kind: Any) -> bool:
    """Whether a type is text."""
    from pyarrow import types

    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def is_bytes(kind: Any) -> bool:
    """Whether a type is bytes."""
    from pyarrow import types

    tests = (types.is_binary, types.is_large_binary, types.is_fixed_size_binary, types.is_binary_view)
    return any(test(kind) for test in tests)


def holds_bytes(kind: Any, depth: int = 0) -> bool:
    """Whether there are bytes anywhere inside of a type."""
    if is_bytes(kind) or depth > DEEPEST:
        return True
    return any(holds_bytes(kind.field(index).type, depth + 1) for index in range(kind.num_fields))


def values(column: Any, kind: Any) -> Sequence[Any]:
    """A column's values as Python ones."""
    import pyarrow

    while isinstance(column.type, pyarrow.BaseExtensionType):
        column = column.storage
    found: list[Any] = (column if column.type == kind else column.cast(kind)).to_pylist()
    return found


def plain(value: Any, store: MediaStore, where: str) -> Any:
    """A value as JSON would give it: structs without their null values, maps as objects, bytes as media."""
    if isinstance(value, bytes):
        return store.add(value, f"{where} ({len(value)} bytes)")
    if isinstance(value, dict):
        if "bytes" in value and value.keys() <= {"bytes", "path"}:
            return medium(value, store, where)
        return {key: plain(item, store, where) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        if value and isinstance(value[0], tuple):
            return {key: plain(item, store, where) for key, item in value if item is not None}
        return [plain(item, store, where) for item in value]
    return value


def medium(value: dict[str, Any], store: MediaStore, where: str) -> Any:
    """A medium as ``datasets`` writes it: its bytes, else the path; None where there is neither."""
    data, path = value["bytes"], value.get("path")
    if isinstance(data, bytes):
        return store.add(data, f"{where} ({shown(path, 60)[1:-1]})" if isinstance(path, str) and path else where)
    return path if isinstance(path, str) and path else None

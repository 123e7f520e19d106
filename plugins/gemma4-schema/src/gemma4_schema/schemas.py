"""Grammars of JSON schemas."""

from __future__ import annotations

from typing import Any

from gemma4_core import InputError
from gemma4_schema.accepting import Exclusion
from gemma4_schema.reading import SchemaReader, checked_size
from gemma4_schema.spelling import Json
from gemma4_schema.writing import GrammarWriter


def schema_grammar(schema: Any) -> str:
    """The grammar of JSON that a schema allows. Raises InputError for a schema that cannot be kept."""
    checked_size(schema)
    writer = GrammarWriter(Json())
    return writer.grammar(written(SchemaReader(schema), writer, "json_schema"))


def written(reader: SchemaReader, writer: GrammarWriter, where: str) -> str:
    """What a schema allows, as a piece of a rule. Raises InputError."""
    try:
        node = reader.read()
        exclusion = Exclusion(reader.definitions)
        for place, options in reader.exclusive:
            pair = exclusion.all_exclusive(options)
            if pair is not None:
                raise InputError(f"constraint {place}: options {pair[0] + 1} and {pair[1] + 1} of oneOf might hold "
                                 "at once; use anyOf, or give each a required key with a const of its own")
        found = writer.schema(node, reader.definitions)
    except RecursionError as error:
        raise InputError(f"constraint {where}: its parts lie too deep in each other") from error
    if found is None:
        raise InputError(f"constraint {where}: no value of finite size fits it; look for a definition that always "
                         "holds itself, and for conditions that exclude each other")
    return found

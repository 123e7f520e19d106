"""Answers of a given form from random weights: do they end, do they parse, do they fit their schema?

    python benchmarks/robustness/schemas.py --schemas 100 --answers 10 --seed 1
    python benchmarks/robustness/schemas.py --schemas 100 --answers 10 --tokenizer FOLDER --parallel 0
    python benchmarks/robustness/schemas.py --schemas 20 --answers 4 --parallel 1 --parallel 16

Random schemas (nesting, enums, lists, bounds, optional keys, unicode, references, recursion) are answered by a model
with random weights, which drifts wherever the form lets it, and so are forced calls of tools with random parameters:
alone and many at a time, with drafts and without, after thoughts and without. ``--parallel 0`` is no model at all: ids
are drawn from those allowed, which is as good at drifting and quick. Each answer that ends by itself is parsed and
validated with jsonschema. Prints one JSON object of figures. Exit code 1 if an answer that ended does not fit, if more
than one in a hundred answers did not end, or if a forced call was not made.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import click
import numpy as np

WORDS = ("name", "größe", "日本", "a b", "x-y", "émoji🙂", "kind", "v_1", "Straße", "items", "quote\"d", "back\\slash",
         "colon:", "comma,", "brace}", "ключ", "new\nline", "id", "<|\"|>", "é")


class Schemas:
    """A source of random schemas in which every string, list and map is bounded."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self._definitions: dict[str, Any] = {}

    def whole(self, object_only: bool = False) -> dict[str, Any]:
        """A schema with its definitions."""
        self._definitions = {}
        for number in range(int(self.rng.integers(0, 3))):
            self._definitions[f"part {number}/~"] = self._leaf()
        made = self._object(3) if object_only or self.rng.random() < 0.8 else self._value(3)
        if self.rng.random() < 0.3:
            made = self._recursive(made)
        return {**made, "$defs": self._definitions} if self._definitions else made

    def _chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def _words(self, count: int) -> list[str]:
        return [str(word) for word in self.rng.permutation(np.array(WORDS, object))[:count]]

    def _value(self, depth: int) -> dict[str, Any]:
        draw = self.rng.random()
        if depth <= 0 or draw < 0.45:
            return self._leaf()
        if draw < 0.65:
            return self._object(depth - 1)
        if draw < 0.8:
            return self._array(depth - 1)
        if draw < 0.9:
            return {"anyOf": [self._value(depth - 1) for _ in range(int(self.rng.integers(2, 4)))]}
        return self._tagged(depth - 1)

    def _leaf(self) -> dict[str, Any]:
        kinds = [self._string, self._integer, self._number, self._enum]
        plain: list[dict[str, Any]] = [
            {"type": "boolean"}, {"type": "null"}, {"const": self._words(1)[0]}, {"type": ["integer", "null"]},
            {"type": "string", "format": "date"}, {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"},
        ]
        if self._definitions and self._chance(0.15):
            name = next(iter(self._definitions))
            return {"$ref": "#/$defs/" + name.replace("~", "~0").replace("/", "~1").replace(" ", "%20")}
        number = int(self.rng.integers(0, len(kinds) + len(plain)))
        return kinds[number]() if number < len(kinds) else plain[number - len(kinds)]

    def _string(self) -> dict[str, Any]:
        low = int(self.rng.integers(0, 4))
        return {"type": "string", "minLength": low, "maxLength": low + int(self.rng.integers(0, 24))}

    def _integer(self) -> dict[str, Any]:
        made: dict[str, Any] = {"type": "integer"}
        low = int(self.rng.integers(-1000, 1000))
        if self._chance(0.6):
            made[str(self.rng.choice(["minimum", "exclusiveMinimum"]))] = low
        if self._chance(0.6):
            made[str(self.rng.choice(["maximum", "exclusiveMaximum"]))] = low + int(self.rng.integers(2, 5000))
        if self._chance(0.15):
            made["multipleOf"] = int(self.rng.choice([2, 3, 5, 7, 10]))
            made.pop("exclusiveMinimum", None), made.pop("maximum", None), made.pop("exclusiveMaximum", None)
        return made

    def _number(self) -> dict[str, Any]:
        made: dict[str, Any] = {"type": "number"}
        low = round(float(self.rng.uniform(-50, 50)), int(self.rng.integers(0, 4)))
        if self._chance(0.6):
            made[str(self.rng.choice(["minimum", "exclusiveMinimum"]))] = low
        if self._chance(0.6):
            high = low + round(float(self.rng.uniform(0.1, 60)), 2)
            made[str(self.rng.choice(["maximum", "exclusiveMaximum"]))] = high
        return made

    def _enum(self) -> dict[str, Any]:
        values: list[Any] = [*self._words(int(self.rng.integers(1, 5))), 1, -2.5, None, True, {"a": [1, "b"]}, []]
        return {"enum": [values[i] for i in self.rng.permutation(len(values))[: int(self.rng.integers(1, 5))].tolist()]}

    def _array(self, depth: int) -> dict[str, Any]:
        low = int(self.rng.integers(0, 3))
        made: dict[str, Any] = {"type": "array", "minItems": low, "maxItems": low + int(self.rng.integers(0, 3))}
        if self._chance(0.2):
            prefix = [self._value(depth) for _ in range(int(self.rng.integers(1, 4)))]
            return {"type": "array", "prefixItems": prefix, "items": False, "minItems": len(prefix)}
        if self._chance(0.15):
            words = self._words(4)
            return {"type": "array", "items": {"enum": words}, "uniqueItems": True, "minItems": low, "maxItems": 4}
        return made | {"items": self._value(depth)}

    def _object(self, depth: int) -> dict[str, Any]:
        names = self._words(int(self.rng.integers(1, 6)))
        made: dict[str, Any] = {"type": "object", "properties": {name: self._value(depth) for name in names}}
        required = [name for name in names if self._chance(0.6)]
        if required:
            made["required"] = required
        if self._chance(0.6):
            made["additionalProperties"] = False
        elif self._chance(0.2):
            made |= {"additionalProperties": self._integer(), "maxProperties": len(names) + 2, "required": names}
        if self._chance(0.1):
            made = {"allOf": [made, {"properties": {names[0]: {"description": "the same"}}, "required": names[:1]}]}
        return made

    def _tagged(self, depth: int) -> dict[str, Any]:
        options = []
        for tag in self._words(int(self.rng.integers(2, 4))):
            one = self._object(depth)
            body = one["allOf"][0] if "allOf" in one else one
            others = {name: value for name, value in body["properties"].items() if name != "kind"}
            body["properties"] = {"kind": {"const": tag}, **others}
            body["required"] = sorted({"kind", *body.get("required", [])})
            body.pop("maxProperties", None)
            options.append(body)
        return {"oneOf": options}

    def _recursive(self, inner: dict[str, Any]) -> dict[str, Any]:
        again = {"$ref": "#/$defs/node"}
        way = int(self.rng.integers(0, 3))
        child = {"anyOf": [again, {"type": "null"}]} if way == 0 else again
        more: dict[str, Any] = {"type": "array", "items": again, "maxItems": 2} if way == 1 else child
        node = {"type": "object", "properties": {"value": self._leaf(), "next": more},
                "required": ["value", "next"] if way < 2 else ["value"], "additionalProperties": False}
        self._definitions["node"] = node
        return {"type": "object", "properties": {"root": again, "inner": inner}, "required": ["root", "inner"]}


# ------------------------------------------------------------------------------------------------- the model


def random_model(folder: Path, tokenizer: Path | None, device: str) -> Any:
    """A tiny model with random weights and the small vocabulary, or that of a tokenizer folder."""
    from gemma4_core import load_pretrained
    from gemma4_core.checkpoint import write_random_checkpoint
    from gemma4_core.config import preset_dict

    source = Path(str(files("gemma4_core") / "data" / "tokenizer")) if tokenizer is None else tokenizer
    names = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
    extra = {name: (source / name).read_bytes() for name in names if (source / name).exists()}
    data = json.loads(extra["tokenizer.json"])
    ids = {token["content"]: token["id"] for token in data["added_tokens"]}
    size = max(*data["model"]["vocab"].values(), *ids.values()) + 1
    config = preset_dict("tiny-e2b", False)
    config["text_config"] |= {"vocab_size": size, "vocab_size_per_layer_input": size, "pad_token_id": ids["<pad>"],
                              "eos_token_id": ids["<eos>"], "bos_token_id": ids["<bos>"]}
    stops = [ids[name] for name in ("<eos>", "<turn|>", "<|tool_response>")]
    extra["generation_config.json"] = json.dumps({"eos_token_id": stops, "bos_token_id": ids["<bos>"]}).encode()
    write_random_checkpoint(folder, {**config, "eos_token_id": stops}, 0, extra_files=extra)
    return load_pretrained(folder, device=device, modalities=("text",))


def requests(
    kind: str, made: Sequence[Any], answers: int, longest: int, ways: Sequence[tuple[bool, bool]]
) -> Iterator[Any]:
    """Requests with what their answers must fit."""
    from gemma4_core import Request

    for number, schema in enumerate(made):
        for answer in range(answers):
            thinking, drafted = ways[answer % len(ways)]
            options: dict[str, Any] = {
                "max_new_tokens": longest,
                "temperature": (1.0, 0.0, 1.5)[answer % 3], "seed": number * 1000 + answer, "thinking": thinking,
                "draft": "lookup" if drafted else None,
            }  # fmt: skip
            if kind == "schema":
                options["messages"] = [{"role": "user", "content": f"Question {number}."}]
                options["constraint"] = {"json_schema": schema, "thinking_budget": 24}
            else:
                tools = [{"name": f"tool.{i}", "parameters": one} for i, one in enumerate(schema)]
                choice: Any = "required" if answer % 2 else {"name": "tool.0"}
                # the declarations of large schemas fill a context in small tokens
                options |= {"prompt": f"Question {number}.", "tools": tools}
                options["constraint"] = {"tools": choice, "thinking_budget": 24}
            yield schema, Request(**options)


def shown(schema: Any) -> str:
    """The beginning of a schema."""
    return json.dumps(schema, ensure_ascii=False)[:600]


class Check:
    """Counts answers and looks at each."""

    def __init__(self) -> None:
        self.answers = self.ended = self.calls = self.tokens = 0
        self.wrong: list[str] = []
        self.endless: list[str] = []

    def take(self, kind: str, schema: Any, answer: Any) -> None:
        """Look at one answer."""
        self.answers += 1
        self.tokens += len(answer.tokens)
        if answer.error is not None:
            self.wrong.append(f"{answer.error}: {shown(schema)}")
        elif answer.finish_reason != ("stop" if kind == "schema" else "tool_call"):
            self.endless.append(f"{answer.finish_reason}: {answer.text[-200:]!r} {shown(schema)}")
        else:
            self.ended += 1
            try:
                self._fits(kind, schema, answer)
            except Exception as error:
                said = str(error).splitlines()[0][:200]
                self.wrong.append(f"{type(error).__name__} {said}: {answer.text[:200]!r} {shown(schema)}")

    def _fits(self, kind: str, schema: Any, answer: Any) -> None:
        import jsonschema

        if kind == "schema":
            jsonschema.Draft202012Validator(schema).validate(json.loads(answer.text))
            return
        if not answer.tool_calls or answer.text:
            raise ValueError("no call, or text beside it")
        for call in answer.tool_calls:
            self.calls += 1
            parameters = schema[int(call["name"].removeprefix("tool."))]
            jsonschema.Draft202012Validator(parameters).validate(call["arguments"])


def run(model: Any, kind: str, made: Sequence[Any], answers: int, parallel: int, longest: int) -> tuple[Check, int]:
    """Answer everything with a scheduler of so many rows."""
    from gemma4_core import Scheduler

    ways = [(False, False), (True, False), (False, True), (True, True)]
    check, waiting, running = Check(), requests(kind, made, answers, longest, ways), {}
    with Scheduler(model, parallel, longest + 2048, prefix_bytes=0) as scheduler:
        more = True
        while more or running:
            while more and len(running) < 2 * parallel:
                found = next(waiting, None)
                more = found is not None
                if found is not None:
                    running[scheduler.submit(found[1])] = found[0]
            scheduler.step()
            for one in [one for one in running if one.done]:
                check.take(kind, running.pop(one), one.answer)
        steps = scheduler.stats().steps
    return check, steps


def draw(model: Any, kind: str, made: Sequence[Any], answers: int, longest: int) -> Check:
    """Answer everything with ids drawn from those allowed, each as likely as any other."""
    from gemma4_core import Answer
    from gemma4_core.engine.sequence import Token

    ways, check = [(False, False), (True, False)], Check()
    for schema, request in requests(kind, made, answers, longest, ways):
        rng, answer = np.random.default_rng(request.sampling.seed), Answer()
        form, parts = request.constrained(model, [], longest), request.parts(model, [])
        while len(answer.tokens) < longest:
            ids = np.flatnonzero(np.unpackbits(form.mask().view(np.uint8), bitorder="little"))
            token = int(rng.choice(ids))
            if token in request.ends(model):
                break
            form.advance(token)
            for part in parts.token(Token(token, 0.0)):
                answer.take(part)
        if form.error is not None:
            answer.error = str(form.error)
        for part in parts.end("stop"):
            answer.take(part)
        answer.finish_reason = parts.reason("length" if len(answer.tokens) == longest else "stop")
        check.take(kind, schema, answer)
    return check


@click.command()
@click.option("--schemas", default=100, show_default=True, help="Random schemas, and as many sets of tools.")
@click.option("--answers", default=10, show_default=True, help="Answers to each.")
@click.option("--parallel", type=int, default=(0, 1, 16), multiple=True, show_default=True,
              help="Answers at once; 0 draws ids without a model.")
@click.option("--longest", default=2048, show_default=True, help="Tokens of the longest answer.")
@click.option("--tokenizer", type=click.Path(exists=True, path_type=Path), default=None,
              help="Folder with another tokenizer.json; the small one that ships with the package by default.")
@click.option("--seed", default=1, show_default=True, help="Another one makes other schemas.")
@click.option("--device", default="auto", show_default=True, help="Device plugin.")
@click.option("--out", type=click.Path(path_type=Path), default=None, help="File for what did not fit.")
def main(
    schemas: int, answers: int, parallel: Sequence[int], longest: int, tokenizer: Path | None, seed: int, device: str,
    out: Path | None,
) -> None:
    """Answer random schemas and call random tools with random weights."""
    source = Schemas(np.random.default_rng(seed))
    made = {"schema": [source.whole() for _ in range(schemas)],
            "tools": [[source.whole(object_only=True) for _ in range(2)] for _ in range(schemas)]}
    report: dict[str, Any] = {}
    faults: list[str] = []
    good = True
    with tempfile.TemporaryDirectory(prefix="gemma4-schemas-") as place:
        model = random_model(Path(place) / "model", tokenizer, device)
        for kind, several in made.items():
            for rows in parallel:
                began = time.perf_counter()
                check, steps = run(model, kind, several, answers, rows, longest) if rows else (
                    draw(model, kind, several, answers, longest), None)
                report[f"{kind}, {rows} at a time" if rows else f"{kind}, drawn"] = {
                    "answers": check.answers, "ended": check.ended, "wrong": len(check.wrong), "calls": check.calls,
                    "tokens": check.tokens, "steps": steps, "seconds": round(time.perf_counter() - began, 1),
                }
                print(json.dumps(report, ensure_ascii=False), file=sys.stderr)
                faults += [*check.wrong, *check.endless]
                enough = check.answers if kind == "tools" else -(-99 * check.answers // 100)
                good = good and not check.wrong and check.ended >= enough
    if out is not None:
        out.write_text("\n".join(faults) + "\n")
    print(json.dumps(report, ensure_ascii=False))
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()

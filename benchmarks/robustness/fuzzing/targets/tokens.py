"""Streams of token ids as a model may give them: decoding, splitting answers, tool calls, stop strings."""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fuzzing.samples import Sample, write_sample
from fuzzing.targets import Broken
from fuzzing.targets._shared import TOKENIZER, plain, small_checkpoint, small_config
from fuzzing.values import STRINGS

CALLS = ('call:weather{city:<|"|>Oslo<|"|>}', "call:f{}", 'call:f{a:[1,2,{b:null}],c:<|"|>x', "call:f{a:" + "[" * 200,
         'call:f{"a": "\\ud800"}', "call:f{a:1e999}", "call:f{a:" + "9" * 5000 + "}", "call:f", "call:{", "f(a=1)",
         "call:f{a:'" + "\\" * 99 + "'}", 'call:f{<|"|>k<|"|>:1}', "call:f{a:1,}", "call:f{a:-}", "{" * 500,
         "call:f{a:true,b:False,c:None,d:.5,e:+1e-3}", "thought\n", "thought", "thinking", "\n", "call:f{" * 40)


class Target:
    reads_anything = False

    def __init__(self) -> None:
        from gemma4_core.checkpoint.context import read_context
        from gemma4_core.plugins import registry

        self.place = tempfile.TemporaryDirectory()
        small, root = small_checkpoint(), Path(self.place.name)
        config = {"config.json": plain(small_config())}
        write_sample({**config, "tokenizer.json": small["tokenizer.json"]}, root / "json")
        write_sample({**config, "tokenizer.model": (TOKENIZER / "tokenizer.model").read_bytes()}, root / "pieces")
        self.tokenizers = []
        for name in ("json", "pieces"):
            context = read_context(root / name)
            self.tokenizers.append(registry.select("tokenizer", context).load(context))

    def seeds(self) -> Sequence[Sample]:
        tokenizer = self.tokenizers[0]
        call = "<|tool_call>" + CALLS[0] + "<tool_call|>"
        texts = ("<|channel>thought\nHm.<channel|>One two." + call, "One 😀 two.<turn|>")
        found: list[dict[str, Any]] = [
            {"tokenizer": 0, "ids": tokenizer.encode(text), "prompt": [], "stops": ["two", "\n\n"]} for text in texts
        ]
        found.append({"tokenizer": 1, "ids": self.tokenizers[1].encode("One two."), "prompt": [2], "stops": ["o"]})
        return [{"stream.json": plain(item)} for item in found]

    def mutate(self, rng: random.Random, sample: Sample) -> Sample:
        stream: dict[str, Any] = json.loads(sample["stream.json"])
        tokenizer = self.tokenizers[stream["tokenizer"]]
        specials = sorted(tokenizer.special_tokens.values())
        ids: list[int] = stream[rng.choice(("ids", "ids", "ids", "prompt"))]
        at = rng.randrange(len(ids) + 1)
        match rng.randrange(8):
            case 0:
                ids[at:at] = [rng.randrange(tokenizer.vocab_size) for _ in range(rng.choice((1, 5, 50)))]
            case 1 | 2:
                ids.insert(at, rng.choice(specials))
            case 3:
                ids.insert(at, rng.choice((-1, tokenizer.vocab_size, 1 << 31, 1 << 70, tokenizer.vocab_size - 1)))
            case 4:
                del ids[at : at + rng.choice((1, 1, 5))]
            case 5:
                ids[at:at] = ids[: rng.randrange(1, 400)] * rng.choice((1, 20))
            case 6:
                stream["stops"].append(rng.choice([text for text in STRINGS if text and len(text) < 200]))
            case _:
                text = rng.choice(CALLS)
                ids[at:at] = tokenizer.encode(rng.choice(("<|tool_call>", "<|channel>", "")) + text
                                              + rng.choice(("<tool_call|>", "<channel|>", "")))
        stream["ids"], stream["prompt"] = stream["ids"][:5000], stream["prompt"][:5000]
        return {"stream.json": plain(stream)}

    def run(self, folder: Path) -> None:
        stream = json.loads((folder / "stream.json").read_bytes())
        tokenizer = self.tokenizers[stream["tokenizer"]]
        text = split_answer(tokenizer, stream)
        stopped(text, stream["stops"])
        ids = [token for token in stream["ids"] if 0 <= token < tokenizer.vocab_size]
        decoder = tokenizer.stream()
        pieces = "".join(map(decoder.add, ids)) + decoder.flush()
        if pieces != tokenizer.decode(ids):
            raise Broken("a stream decodes as the whole does", repr(pieces[:100]))


def split_answer(tokenizer: Any, stream: dict[str, Any]) -> str:
    """The text of an answer; the promises of its pieces are checked."""
    from gemma4_core.text import AnswerSplitter

    splitter, text = AnswerSplitter(tokenizer, stream["prompt"]), ""
    pieces = [piece for token in stream["ids"] for piece in splitter.add(token)]
    for piece in [*pieces, *splitter.finish()]:
        if piece.kind not in ("text", "thinking", "tool_call"):
            raise Broken("kinds of pieces", piece.kind)
        piece.text.encode()
        if piece.kind == "tool_call":
            call = json.loads(piece.text)
            if piece.tool_call != call or not isinstance(call["arguments"], dict):
                raise Broken("a call is its JSON", piece.text[:200])
        text += piece.text if piece.kind == "text" else ""
    if splitter.finish():
        raise Broken("an answer ends once", text[:100])
    return text


def stopped(text: str, stops: list[str]) -> None:
    """The text that is passed on must not depend on how it arrives."""
    from gemma4_core.text import StopStrings

    results = []
    for size in (1, 7, max(len(text), 1)):
        filter_, given = StopStrings(stops), ""
        for at in range(0, len(text), size):
            given += filter_.add(text[at : at + size])[0]
        results.append((given + ("" if filter_.stopped else filter_.flush()), filter_.stopped))
    if len(set(results)) > 1:
        raise Broken("stop strings do not depend on pieces", repr(results)[:300])
    if results[0][1] is False and results[0][0] != text:
        raise Broken("nothing is lost without a stop", repr(results[0][0])[:300])

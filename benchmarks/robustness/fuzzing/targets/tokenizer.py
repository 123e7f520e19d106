"""tokenizer.json, tokenizer.model and tokenizer_config.json: loading, encoding, decoding whole and piece by piece."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from fuzzing.binary import mutate_bytes
from fuzzing.samples import Sample, mutate_files
from fuzzing.targets import Broken
from fuzzing.targets._shared import TOKENIZER, plain, small_checkpoint, small_config
from fuzzing.values import Pairs, Raw, mutate_json, odd_value, parsed, written

TEXTS = ("", "One two  three", "<bos><|turn>user\nHi<turn|>", "a" * 2000,
         "\0 \u202e é中😀", "  lead", "x\r\n\t", "<0x41>")
STEPS = (
    '{"type":"Replace","pattern":{"String":"a"},"content":"' + "a" * 50 + '"}',
    '{"type":"Replace","pattern":{"Regex":"(a+)+$"},"content":""}', '{"type":"Replace","pattern":{"Regex":"(x|x|y)*z"},'
    '"content":"b"}', '{"type":"ByteLevel","add_prefix_space":true,"trim_offsets":true,"use_regex":true}',
    '{"type":"Metaspace","replacement":"▁","prepend_scheme":"always","split":true}', '{"type":"ByteFallback"}',
    '{"type":"Fuse"}', '{"type":"Strip","content":" ","start":1,"stop":0}', '{"type":"NFKC"}', '{"type":"Lowercase"}',
    '{"type":"Strip","content":"a","start":9999999999,"stop":9999999999}', '{"type":"CTC","pad_token":"<pad>",'
    '"word_delimiter_token":"|","cleanup":true}', '{"type":"WordPiece","prefix":"##","cleanup":true}',
    '{"type":"BPEDecoder","suffix":"</w>"}', '{"type":"Split","pattern":{"Regex":"a*"},"behavior":"Isolated",'
    '"invert":false}', '{"type":"Precompiled","precompiled_charsmap":"AAAA"}', '{"type":"Prepend","prepend":"▁"}',
    '{"type":"TemplateProcessing","single":[{"Sequence":{"id":"A","type_id":0}}],"pair":[],"special_tokens":{}}',
    '{"type":"BertNormalizer"}', '{"type":"UnicodeScripts"}', '{"type":"Digits","individual_digits":true}', "null",
)  # fmt: skip
SECTIONS = ("normalizer", "pre_tokenizer", "decoder", "post_processor", "truncation", "padding", "model")
WORDS = ("BPE", "Unigram", "WordPiece", "WordLevel", "unk_token", "vocab", "merges", "type", "content", "special",
         "byte_fallback", "ignore_merges", "added_tokens", "bos_token", "eos_token", "chat_template", "normalized",
         "additional_special_tokens", "extra_special_tokens", "added_tokens_decoder", "lstrip", "rstrip", "single_word")


class Target:
    reads_anything = False

    def seeds(self) -> Sequence[Sample]:
        small = small_checkpoint()
        config = {"config.json": plain(small_config())}
        own = {name: small[name] for name in ("tokenizer.json", "tokenizer_config.json")}
        self.names = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")
        return [
            config | own,
            config | {"tokenizer.json": (TOKENIZER / "tokenizer.json").read_bytes()},
            config | {"tokenizer.model": (TOKENIZER / "tokenizer.model").read_bytes(),
                      "tokenizer_config.json": small["tokenizer_config.json"]},
        ]

    def mutate(self, rng: random.Random, sample: Sample) -> Sample:
        if rng.random() < 0.04:
            return mutate_files(rng, sample, self.names)
        name = rng.choice([name for name in self.names if name in sample] or [*self.names])
        content = sample.get(name, b"{}")
        if isinstance(content, str) or name == "tokenizer.model":
            return {**sample, name: mutate_bytes(rng, content if isinstance(content, bytes) else b"")}
        if name == "tokenizer.json" and rng.random() < 0.3:
            return {**sample, name: with_section(rng, content)}
        return {**sample, name: mutate_json(rng, content, WORDS)}

    def run(self, folder: Path) -> None:
        from gemma4_core.checkpoint.context import read_context
        from gemma4_core.errors import Gemma4Error
        from gemma4_core.plugins import registry

        context = read_context(folder)
        tokenizer = registry.select("tokenizer", context).load(context)
        for text in TEXTS:
            try:
                ids = tokenizer.encode(text)
                stream = tokenizer.stream()
                pieces = "".join(map(stream.add, ids)) + stream.flush()
                whole = tokenizer.decode(ids)
            except Gemma4Error as error:
                if len(str(error)) >= 500 or not str(error).isprintable():
                    raise
                continue
            if not isinstance(pieces, str) or not isinstance(whole, str):
                raise Broken("decoding gives text", repr(whole)[:100])
            pieces.encode()
            whole.encode()
        tokenizer.decode([0, 1, tokenizer.vocab_size - 1] if tokenizer.vocab_size > 1 else [])


def with_section(rng: random.Random, content: bytes) -> bytes:
    """A tokenizer.json with another normalizer, decoder or the like, of one or several steps."""
    section = rng.choice(SECTIONS[:4])
    steps = [Raw(rng.choice(STEPS)) for _ in range(rng.choice((1, 1, 2, 5)))]
    keys = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers", "decoder": "decoders",
            "post_processor": "processors"}
    made = steps[0] if len(steps) == 1 else Pairs([("type", "Sequence"), (keys[section], list(steps))])
    if rng.random() < 0.1:
        made = odd_value(rng)
    try:
        tree = parsed(content)
        if not isinstance(tree, Pairs):
            return content
        changed = Pairs([(key, made if key == section else value) for key, value in tree])
        return written(changed).encode("utf-8", "surrogatepass")
    except (ValueError, RecursionError):
        return content

"""The text decoder's configuration: ``text_config`` of config.json, or the whole file of a text-only checkpoint.

Defaults, the forced last layer and the two spellings of per-layer sizes follow transformers 5.23.0,
``models/gemma4/configuration_gemma4.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from gemma4_core.config.models import FULL, SLIDING
from gemma4_core.config.section import Section

PER_LAYER_KEYS = ("head_dim", "num_key_value_heads")
LARGEST = 1 << 20
"""Bound of every width: the official ones end at 21504."""
LARGEST_VOCABULARY = 1 << 24
LARGEST_CONTEXT = 1 << 27


@dataclass(frozen=True)
class RopeParameters:
    """Rotary embedding of one kind of layer."""

    rope_type: str
    """``default`` or ``proportional``."""
    rope_theta: float
    partial_rotary_factor: float = 1.0
    """Part of the lanes that rotate; always 1.0 for ``default``."""


@dataclass(frozen=True)
class LayerConfig:
    """One decoder layer, everything resolved."""

    index: int
    kind: str
    """``sliding_attention`` or ``full_attention``."""
    head_dim: int
    num_key_value_heads: int
    intermediate_size: int
    k_eq_v: bool
    """Values start from the raw key projection; there is no v_proj."""
    donor: int | None
    """Index of the layer whose K and V this one uses, None where it has its own."""
    rope_theta: float
    partial_rotary_factor: float
    window: int | None
    """Keys that a query sees, itself included; None on full layers."""

    @property
    def is_full(self) -> bool:
        return self.kind == FULL

    @property
    def is_shared(self) -> bool:
        return self.donor is not None


@dataclass(frozen=True)
class TextConfig:
    """The decoder. Field names are the keys of config.json; ``layers`` holds what they mean layer by layer."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    """Of sliding layers."""
    num_global_key_value_heads: int
    """Of full layers."""
    head_dim: int
    """Of sliding layers."""
    global_head_dim: int
    """Of full layers."""
    layer_types: tuple[str, ...]
    sliding_window: int
    num_kv_shared_layers: int
    use_double_wide_mlp: bool
    attention_k_eq_v: bool
    hidden_size_per_layer_input: int
    """0 without per-layer embeddings."""
    vocab_size_per_layer_input: int
    enable_moe_block: bool
    num_experts: int
    top_k_experts: int
    moe_intermediate_size: int
    sliding_rope: RopeParameters
    full_rope: RopeParameters
    max_position_embeddings: int
    final_logit_softcapping: float | None
    rms_norm_eps: float
    use_bidirectional_attention: str | None
    """``vision`` or None."""
    pad_token_id: int
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None

    @cached_property
    def layers(self) -> tuple[LayerConfig, ...]:
        """Every decoder layer in order."""
        return tuple(self._layer(index) for index in range(self.num_hidden_layers))

    @property
    def usable_ids(self) -> int:
        """Ids below this one have a row in every embedding table. It is less than ``vocab_size`` where the vocabulary
        was resized without the per-layer table."""
        per_layer = self.vocab_size_per_layer_input if self.hidden_size_per_layer_input else self.vocab_size
        return min(self.vocab_size, per_layer)

    @property
    def first_shared_layer(self) -> int:
        """Index of the first layer without K and V of its own; the number of layers where there is none."""
        return self.num_hidden_layers - self.num_kv_shared_layers

    def _layer(self, index: int) -> LayerConfig:
        kind = self.layer_types[index]
        full, shared = kind == FULL, index >= self.first_shared_layer
        rope = self.full_rope if full else self.sliding_rope
        donor = max(i for i in range(self.first_shared_layer) if self.layer_types[i] == kind) if shared else None
        return LayerConfig(
            index=index,
            kind=kind,
            head_dim=self.global_head_dim if full else self.head_dim,
            num_key_value_heads=self.num_global_key_value_heads if full else self.num_key_value_heads,
            intermediate_size=self.intermediate_size * (2 if self.use_double_wide_mlp and shared else 1),
            k_eq_v=self.attention_k_eq_v and full,
            donor=donor,
            rope_theta=rope.rope_theta,
            partial_rotary_factor=rope.partial_rotary_factor,
            window=None if full else self.sliding_window,
        )


def parse_text(section: Section) -> TextConfig:
    """Read and check a text config. Raises ConfigError naming key and value."""
    refuse_unsupported(section)
    vocabulary = section.integer("vocab_size", 262_144, 8, LARGEST_VOCABULARY)
    count = section.integer("num_hidden_layers", 30, 1, 1024)
    types = layer_types(section, count)
    moe = section.flag("enable_moe_block")
    sizes = attention_sizes(section, types)
    per_layer = section.optional_integer("hidden_size_per_layer_input", 256, 0, LARGEST) or 0
    ropes = rope_parameters(section, types)
    softcap = "final_logit_softcapping"
    config = TextConfig(
        vocab_size=vocabulary,
        hidden_size=section.integer("hidden_size", 2304, 1, LARGEST),
        intermediate_size=section.integer("intermediate_size", 9216, 1, LARGEST),
        num_hidden_layers=count,
        num_attention_heads=section.integer("num_attention_heads", 8, 1, 4096),
        **sizes,
        layer_types=types,
        sliding_window=section.integer("sliding_window", 512, 1, LARGEST_CONTEXT),
        num_kv_shared_layers=shared_layers(section, types),
        use_double_wide_mlp=section.flag("use_double_wide_mlp"),
        attention_k_eq_v=section.flag("attention_k_eq_v"),
        hidden_size_per_layer_input=per_layer,
        vocab_size_per_layer_input=section.integer("vocab_size_per_layer_input", 262_144, 1, LARGEST_VOCABULARY),
        enable_moe_block=moe,
        num_experts=section.integer("num_experts", 0, 1, 4096) if moe else 0,
        top_k_experts=section.integer("top_k_experts", 0, 1, 4096) if moe else 0,
        moe_intermediate_size=section.integer("moe_intermediate_size", 0, 1, LARGEST) if moe else 0,
        sliding_rope=ropes[SLIDING],
        full_rope=ropes[FULL],
        max_position_embeddings=section.integer("max_position_embeddings", 131_072, 1, LARGEST_CONTEXT),
        final_logit_softcapping=None if section.get(softcap) is None else section.number(softcap, 0.0, 0.0, 1e6),
        rms_norm_eps=section.number("rms_norm_eps", 1e-6, 0.0, 1.0),
        use_bidirectional_attention=section.only("use_bidirectional_attention", (None, "vision"), None),
        pad_token_id=section.optional_integer("pad_token_id", 0, 0, vocabulary - 1) or 0,
        eos_token_ids=section.token_ids("eos_token_id", (1,), LARGEST_VOCABULARY) or (),
        bos_token_id=section.optional_integer("bos_token_id", 2, 0, vocabulary - 1),
    )
    check_together(section, config)
    return config


def refuse_unsupported(section: Section) -> None:
    """Known keys whose other values would need arithmetic that this runtime does not have."""
    section.only("hidden_activation", ("gelu_pytorch_tanh",), "gelu_pytorch_tanh")
    section.only("attention_bias", (False,), False)
    section.only("tie_word_embeddings", (True,), True)


def layer_types(section: Section, count: int) -> tuple[str, ...]:
    """The kind of every layer: as given, else five sliding ones and a full one; the last is always full."""
    value = section.get("layer_types")
    if value is None:
        value = [SLIDING if (index + 1) % 6 else FULL for index in range(count)]
    if not isinstance(value, list) or len(value) != count:
        length = f"a list of {len(value)}" if isinstance(value, list) else "no list"
        raise section.fault("layer_types", f"this is {length}, and num_hidden_layers is {count}")
    for index, kind in enumerate(value):
        if kind not in (SLIDING, FULL):
            raise section.fault(f"layer_types[{index}]", f'only "{SLIDING}" and "{FULL}" are supported', kind)
    return (*value[:-1], FULL)


def shared_layers(section: Section, types: tuple[str, ...]) -> int:
    """How many of the last layers use K and V of an earlier one of their kind, which must exist."""
    key = "num_kv_shared_layers"
    shared = section.integer(key, 0, 0, 1024)
    own = types[: len(types) - shared]
    if shared >= len(types):
        raise section.fault(key, f"it must be less than num_hidden_layers, which is {len(types)}")
    missing = [kind for kind in set(types) if kind not in own] if shared else []
    if missing:
        raise section.fault(key, f"no {missing[0]} layer is left among the first {len(own)} to share K and V with")
    return shared


def attention_sizes(section: Section, types: tuple[str, ...]) -> dict[str, int]:
    """Head sizes and key-value heads of sliding and full layers, from either spelling."""
    head_dim = section.integer("head_dim", 256, 2, 8192)
    heads = section.integer("num_key_value_heads", 4, 1, 4096)
    sizes = {SLIDING: {"head_dim": head_dim, "num_key_value_heads": heads}}
    sizes[FULL] = dict(sizes[SLIDING])
    if "per_layer_config" in section.data:
        overrides = per_layer_overrides(section, types)
        for kind in set(types):
            sizes[kind] |= overrides[types.index(kind)]
    else:
        sizes[FULL]["head_dim"] = section.integer("global_head_dim", 512, 2, 8192)
        given = section.optional_integer("num_global_key_value_heads", None, 1, 4096)
        # the reference reads this key only where keys are also the values
        if given is not None and section.flag("attention_k_eq_v"):
            sizes[FULL]["num_key_value_heads"] = given
    return {
        "head_dim": sizes[SLIDING]["head_dim"],
        "global_head_dim": sizes[FULL]["head_dim"],
        "num_key_value_heads": sizes[SLIDING]["num_key_value_heads"],
        "num_global_key_value_heads": sizes[FULL]["num_key_value_heads"],
    }


def per_layer_overrides(section: Section, types: tuple[str, ...]) -> list[dict[str, int]]:
    """``per_layer_config`` as one dict per layer. Keys are layer numbers, perhaps zero-padded. Layers of one kind must
    agree, as in the reference, whose rotary tables are one per kind."""
    found: list[dict[str, int]] = [{} for _ in types]
    table = section.child("per_layer_config") or Section({}, section.where)
    for key in table.data:
        if not key.isascii() or not key.isdigit() or len(key) > 8 or int(key) >= len(types):
            raise table.fault(key, f"its keys must be layer numbers below {len(types)}")
        layer = table.child(key) or Section({}, section.where)
        for name, value in layer.data.items():
            if name in PER_LAYER_KEYS:
                found[int(key)][name] = layer.integer(name, 0, 1, 8192)
            elif value != section.data.get(name, value) or (name == "skip" and value):
                raise layer.fault(name, f"only {' and '.join(PER_LAYER_KEYS)} may differ between layers")
    for index, kind in enumerate(types):
        if found[index] != found[types.index(kind)]:
            raise table.fault(f"{index}", f"all {kind} layers must have the same sizes", found[index])
    return found


def rope_parameters(section: Section, types: tuple[str, ...]) -> dict[str, RopeParameters]:
    """Rotary parameters by kind of layer, the released ones where the key is absent."""
    default = {SLIDING: RopeParameters("default", 1e4), FULL: RopeParameters("proportional", 1e6, 0.25)}
    table = section.child("rope_parameters")
    if table is None:
        return default
    for kind in set(types):
        inner = table.child(kind)
        if inner is None:
            raise table.fault(kind, "rope parameters of this kind of layer are needed")
        default[kind] = one_rope(inner)
    return default


def one_rope(section: Section) -> RopeParameters:
    """One kind's parameters. A partial factor counts only for ``proportional``, as in the reference."""
    rope_type = section.only("rope_type", ("default", "proportional"), section.get("type", "default"))
    theta = section.number("rope_theta", 0.0, 1.0, 1e12)
    section.only("factor", (1.0,), 1.0)
    partial = section.number("partial_rotary_factor", 1.0, 0.0, 1.0) if rope_type == "proportional" else 1.0
    return RopeParameters(rope_type, theta, partial)


def check_together(section: Section, config: TextConfig) -> None:
    """What keys must hold among each other."""
    for layer in config.layers:
        if layer.head_dim % 2:
            flat = "global_head_dim" if layer.is_full else "head_dim"
            key = f"per_layer_config.{layer.index}.head_dim" if "per_layer_config" in section.data else flat
            raise section.fault(key, "rotary embedding needs an even head size", layer.head_dim)
        if config.num_attention_heads % layer.num_key_value_heads:
            keys = f"num_key_value_heads, which is {layer.num_key_value_heads} in layer {layer.index}"
            reason = f"it must be a multiple of {keys}"
            raise section.fault("num_attention_heads", reason, config.num_attention_heads)
    if config.enable_moe_block and config.top_k_experts > config.num_experts:
        raise section.fault("top_k_experts", f"it must be at most num_experts, which is {config.num_experts}")
    if config.pad_token_id >= config.usable_ids:
        # it stands in the place of soft tokens
        reason = f"it must be below vocab_size_per_layer_input, which is {config.usable_ids}"
        raise section.fault("pad_token_id", reason, config.pad_token_id)

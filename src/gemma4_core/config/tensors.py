"""Every tensor of the text model that a config calls for, by full checkpoint name with its shape."""

from __future__ import annotations

import re
from collections.abc import Container

from gemma4_core.config.outer import GemmaConfig
from gemma4_core.config.text import LayerConfig, TextConfig

Shapes = dict[str, tuple[int, ...]]
NORMS = ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm")
EXPERT_NORMS = ("post_feedforward_layernorm_1", "post_feedforward_layernorm_2", "pre_feedforward_layernorm_2")
HEAD, TABLE = "lm_head.weight", "embed_tokens.weight"
WRAPPERS = re.compile(r"(?:(?:base_model|module|model|language_model|text_model)\.)*")
"""Modules around the model whose names other tools store or leave out."""
WRAPPED = re.compile(r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""What torch puts around modules that it compiles, shards or recomputes."""
DERIVED = re.compile(
    r"(?:.*\.)?(?:rotary_emb\..+|(?:\w+_)?inv_freq|(?:\w+_)?position_ids|inv_timescales|(?:cos|sin)(?:_cached)?|softcap"
    r"|\w*embed_scale|per_layer_(?:input|projection)_scale|scalar_root_size|gradient_clipping|\w*causal\w*_mask)"
)
"""Buffers of transformers' Gemma models, 5.23.0 and older ones, all computed from the config."""


def expected_text_tensors(config: GemmaConfig) -> Shapes:
    """The decoder's tensors. Shared layers have no k_proj, v_proj and k_norm here (see ``ignorable``)."""
    text, prefix = config.text_config, config.text_prefix
    hidden, size = text.hidden_size, text.hidden_size_per_layer_input
    shapes: Shapes = {TABLE: (text.vocab_size, hidden)}
    if size:
        packed = text.num_hidden_layers * size
        shapes["embed_tokens_per_layer.weight"] = (text.vocab_size_per_layer_input, packed)
        shapes["per_layer_model_projection.weight"] = (packed, hidden)
        shapes["per_layer_projection_norm.weight"] = (size,)
    for layer in text.layers:
        tensors = attention_tensors(text, layer) | feed_forward_tensors(text, layer)
        shapes |= {f"layers.{layer.index}.{name}": shape for name, shape in tensors.items()}
    shapes["norm.weight"] = (hidden,)
    return {prefix + name: shape for name, shape in shapes.items()}


def attention_tensors(text: TextConfig, layer: LayerConfig) -> Shapes:
    """Attention of one layer, by name below the layer."""
    hidden, width = text.hidden_size, layer.head_dim
    queries, keys = text.num_attention_heads * width, layer.num_key_value_heads * width
    shapes: Shapes = {
        "self_attn.q_proj.weight": (queries, hidden),
        "self_attn.q_norm.weight": (width,),
        "self_attn.o_proj.weight": (hidden, queries),
    }
    if not layer.is_shared:
        shapes["self_attn.k_proj.weight"] = (keys, hidden)
        shapes["self_attn.k_norm.weight"] = (width,)
        if not layer.k_eq_v:
            shapes["self_attn.v_proj.weight"] = (keys, hidden)
    return shapes


def feed_forward_tensors(text: TextConfig, layer: LayerConfig) -> Shapes:
    """Norms, MLP, experts and per-layer input of one layer, by name below the layer."""
    hidden, wide, size = text.hidden_size, layer.intermediate_size, text.hidden_size_per_layer_input
    shapes: Shapes = {f"{norm}.weight": (hidden,) for norm in NORMS}
    shapes |= {"mlp.gate_proj.weight": (wide, hidden), "mlp.up_proj.weight": (wide, hidden)}
    shapes |= {"mlp.down_proj.weight": (hidden, wide), "layer_scalar": (1,)}
    if size:
        shapes["per_layer_input_gate.weight"] = (size, hidden)
        shapes["per_layer_projection.weight"] = (hidden, size)
        shapes["post_per_layer_input_norm.weight"] = (hidden,)
    if text.enable_moe_block:
        experts, narrow = text.num_experts, text.moe_intermediate_size
        shapes |= {f"{norm}.weight": (hidden,) for norm in EXPERT_NORMS}
        shapes |= {"router.proj.weight": (experts, hidden), "router.scale": (hidden,)}
        shapes["router.per_expert_scale"] = (experts,)
        # rows 0 to narrow - 1 of an expert are its gate, the rest its up projection
        shapes["experts.gate_up_proj"] = (experts, 2 * narrow, hidden)
        shapes["experts.down_proj"] = (experts, hidden, narrow)
    return shapes


def below_wrappers(name: str) -> str:
    """A tensor's or module's name without the modules around the text model or the whole model."""
    name = WRAPPED.sub("", name)
    return name[WRAPPERS.match(name).end() :]  # type: ignore[union-attr]


def released_name(config: GemmaConfig, name: str, known: Container[str]) -> str:
    """The name among ``known`` (or of an ``ignorable`` tensor) of a stored tensor that lacks modules around the model,
    or has others: ``layers.0.…`` and ``language_model.layers.0.…`` are ``model.language_model.layers.0.…``. A stored
    head is the embedding table. Other names come back as they are."""
    if name in known:
        return name
    rest = below_wrappers(name)
    text = config.text_prefix + (TABLE if rest == HEAD else rest)
    found = (one for one in (text, f"model.{rest}") if one in known or ignorable(config, one))
    return next(found, name)


def is_head(name: str) -> bool:
    """Whether a stored tensor is an output head beside the embedding table."""
    return below_wrappers(name) == HEAD


def is_derived(name: str) -> bool:
    """Whether a stored tensor is a buffer that the model computes from its config, and no weight."""
    return DERIVED.fullmatch(name) is not None


def ignorable(config: GemmaConfig, name: str) -> bool:
    """Whether a stored tensor is one of K and V of a shared layer: released files hold them, nothing uses them."""
    prefix = re.escape(config.text_prefix)
    found = re.fullmatch(rf"{prefix}layers\.(\d{{1,4}})\.self_attn\.(k_proj|v_proj|k_norm)\.weight", name)
    text = config.text_config
    return found is not None and text.first_shared_layer <= int(found[1]) < text.num_hidden_layers

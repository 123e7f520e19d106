"""A model whose heads are whole panels of the processor kernels, on full layers more than one slice of a product, and a
prompt of several chunks."""

from gemma4_core.text.tiny import TINY_TEXT_IDS

CONFIG = {
    "model_type": "gemma4_text", **TINY_TEXT_IDS, "vocab_size": 512, "vocab_size_per_layer_input": 512,
    "hidden_size": 96, "intermediate_size": 128, "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2, "num_kv_shared_layers": 1,
    "num_attention_heads": 6, "num_key_value_heads": 2, "num_global_key_value_heads": 1,
    "head_dim": 64, "global_head_dim": 512, "sliding_window": 70, "hidden_size_per_layer_input": 16,
    "max_position_embeddings": 2048, "final_logit_softcapping": 30.0,
}  # fmt: skip
IDS = [2, *((7919 * i + 3) % 500 + 5 for i in range(330))]

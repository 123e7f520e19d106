"""What ``forward_ids`` tells of its inside: hidden states between layers, attention weights."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from reference_data import load

from gemma4_core import LoadedModel, load_pretrained
from gemma4_core.model.layers import matrix

BOTH = {"return_hidden": True, "return_attention": True}


pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("plain_loops")]


@cache
def model(name: str) -> LoadedModel:
    return load_pretrained(load(name).folder, device="cpu", dtype="float32")


@cache
def inside_of(name: str) -> tuple[np.ndarray, list[np.ndarray]]:
    """Hidden states and attention weights of the reference's first prompt, without a cache."""
    _, none, inside = model(name).forward_ids(load(name).ids[:1], **BOTH)
    assert none is None and inside.hidden is not None and inside.attention is not None
    return inside.hidden.numpy(), [weights.numpy() for weights in inside.attention]


@pytest.mark.parametrize("name", ["e2b", "moe", "dense"])
def test_hidden_states_are_the_references(name: str) -> None:
    reference = load(name)
    ids = reference.ids[:1]
    logits, none, inside = model(name).forward_ids(ids, return_hidden=True)
    assert none is None and inside.attention is None and inside.hidden is not None
    assert inside.hidden.shape == (len(reference.hidden), *ids.shape, reference.hidden.shape[-1])
    np.testing.assert_allclose(inside.hidden.numpy()[:, 0], reference.hidden.astype(np.float32), rtol=2e-3, atol=4e-3)
    np.testing.assert_array_equal(logits.numpy(), model(name).forward_ids(ids)[0].numpy())


def test_attention_is_what_the_formula_says() -> None:
    """The first layer computed again in float64: norm, projections, rotation by angle, softmax over the window."""
    name = "e2b"
    ids = load(name).ids[:1]
    hidden, weights_found = inside_of(name)
    attention, config = model(name).text.layers[0].attention, model(name).text.layers[0].config
    text = model(name).config.text_config
    assert len(weights_found) == text.num_hidden_layers and config.window is not None
    assert ids.shape[1] > config.window
    h = hidden[0, 0].astype(np.float64)

    def normed(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + text.rms_norm_eps) * weight

    def rotated(x: np.ndarray) -> np.ndarray:
        half = config.head_dim // 2
        angle = np.arange(len(ids[0]))[:, None] * config.rope_theta ** (-np.arange(half) / half)  # [T, D / 2]
        cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
        a, b = x[..., :half], x[..., half:]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    x = normed(h, model(name).text.layers[0].before.numpy())
    q, k = ((x @ matrix(place).dense().numpy().astype(np.float64).T).reshape(len(x), -1, config.head_dim)
            for place in (attention.q_proj, attention.k_proj))
    q, k = rotated(normed(q, attention.q_norm.numpy())), rotated(normed(k, attention.k_norm.numpy()))
    k = k.repeat(q.shape[1] // k.shape[1], axis=1)
    scores = np.einsum("thd,shd->hts", q, k)
    row, column = np.arange(len(x))[:, None], np.arange(len(x))
    scores[:, (column > row) | (column <= row - config.window)] = -np.inf
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    np.testing.assert_allclose(weights_found[0][0], weights / weights.sum(-1, keepdims=True), atol=2e-5)


def test_with_a_cache_it_is_the_same_in_the_order_of_positions() -> None:
    name = "e2b"
    ids = load(name).ids[:1]
    hidden, attention = inside_of(name)
    held = model(name).make_cache()
    model(name).forward_ids(ids[:, :-5], cache=held)
    logits, held_too, inside = model(name).forward_ids(ids[:, -5:], cache=held, **BOTH)
    assert held_too is held and held.length == ids.shape[1]
    assert inside.hidden is not None and inside.attention is not None
    np.testing.assert_allclose(inside.hidden.numpy(), hidden[:, :, -5:], atol=2e-3)
    for ours, theirs in zip(inside.attention, attention, strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs[:, :, -5:], atol=1e-4)
        np.testing.assert_allclose(ours.numpy().sum(-1), 1, atol=1e-5)
    np.testing.assert_allclose(logits.numpy(), load(name).logits[:1, -5:], atol=2e-3)
    # what the portable run wrote into the cache is read by the steps that follow
    answer = list(model(name).generate([*map(int, ids[0]), 7], max_new_tokens=3, stop_ids=()))
    one = model(name).make_cache()
    model(name).forward_ids(ids[:1], cache=one, return_hidden=True)
    assert list(model(name).generate([*map(int, ids[0]), 7], max_new_tokens=3, stop_ids=(), cache=one)) == answer


def test_gradients_flow_from_hidden_states_to_the_weights() -> None:
    m = model("e2b")
    _, _, inside = m.forward_ids([2, 5, 9], **BOTH)
    assert inside.hidden is not None and inside.attention is not None
    first = m.text.layers[0]
    # all of them before any is computed: what is realized has no gradient any more
    losses = {"hidden": inside.hidden[-1].square().sum(), "attention": inside.attention[0].square().sum()}
    found = {name: loss.gradient(first.before, first.after) for name, loss in losses.items()}
    reached = {name: [g.uop.device is not None for g in gradients] for name, gradients in found.items()}
    assert reached == {"hidden": [True, True], "attention": [True, False]}  # what follows attention cannot change it
    assert float(found["attention"][0].abs().sum().item()) > 0

"""Hidden states and attention weights of several rows over one cache."""

from __future__ import annotations

import numpy as np
import pytest
from short_models import short_folder

from gemma4_core import InputError, load_pretrained

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("plain_loops")]


def test_several_rows_over_a_cache_are_each_what_they_are_alone() -> None:
    model = load_pretrained(short_folder("e2b"), device="cpu", dtype="float32")
    ids = np.random.default_rng(0).integers(3, model.config.text_config.usable_ids, (3, 14)).astype(np.int32)
    held = model.make_cache()
    model.forward_ids(ids[:, :7], cache=held)
    logits, _, inside = model.forward_ids(ids[:, 7:11], cache=held, return_hidden=True, return_attention=True)
    after, _ = model.forward_ids(ids[:, 11:], cache=held)
    assert inside.hidden is not None and inside.attention is not None and held.length == 14
    assert inside.hidden.shape[1:3] == (3, 4) and inside.attention[0].shape[0] == 3
    for row in range(3):
        one = model.make_cache()
        model.forward_ids(ids[row, :7], cache=one)
        mine, _, alone = model.forward_ids(ids[row, 7:11], cache=one, return_hidden=True, return_attention=True)
        assert alone.hidden is not None and alone.attention is not None
        np.testing.assert_allclose(inside.hidden.numpy()[:, row], alone.hidden.numpy()[:, 0], atol=1e-4)
        for ours, theirs in zip(inside.attention, alone.attention, strict=True):
            np.testing.assert_allclose(ours.numpy()[row], theirs.numpy()[0], atol=1e-5)
            np.testing.assert_allclose(ours.numpy()[row].sum(-1), 1, atol=1e-5)
        np.testing.assert_allclose(logits.numpy()[row], mine.numpy()[0], atol=1e-4)
        # what the portable run wrote is read by the call that follows
        last, _ = model.forward_ids(ids[row, 11:], cache=one)
        np.testing.assert_allclose(after.numpy()[row], last.numpy()[0], atol=1e-4)
        whole = model.forward_ids(ids[row], cache=model.make_cache())[0].numpy()[0, 11:]
        np.testing.assert_allclose(after.numpy()[row], whole, atol=1e-4)
    with pytest.raises(InputError, match=r"holds 3 row\(s\), the call has 2"):
        model.forward_ids(ids[:2], cache=held, return_hidden=True)

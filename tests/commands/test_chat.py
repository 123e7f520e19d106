"""``Chat``, ``embed``, ``save_pretrained`` and how models and answers show themselves, with the demo model."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gemma4_core import Chat, InputError, load_pretrained
from gemma4_core.generation.answers import Answer
from gemma4_core.generation.loaded_model import LoadedModel

pytestmark = pytest.mark.usefixtures("plain_loops")

PICTURE = Path(__file__).parents[2] / "docs" / "images" / "picture.jpg"


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return load_pretrained("demo", device="cpu")


def test_a_chat_answers_and_remembers(model: LoadedModel) -> None:
    chat = Chat(model, max_new_tokens=24)
    first = chat.send("What is 12 + 34?")
    assert (first.text, first.finish_reason) == ("46", "stop") and str(first) == "46"
    assert len(first.tokens) == len(first.logprobs) == first.stats.generated_tokens
    assert chat.messages == [{"role": "user", "content": "What is 12 + 34?"}, {"role": "assistant", "content": "46"}]
    second = chat.send("Describe this.", images=[PICTURE])
    assert "red circle" in second.text and second.stats.reused_tokens > 0
    assert chat.messages[2]["content"][0] == {"type": "image", "image": PICTURE} and len(chat.messages) == 4
    # one medium needs no list, and a cold chat says the same
    cold = Chat(model, max_new_tokens=24)
    cold.turns = chat.messages[:2]
    assert cold.send("Describe this.", images=PICTURE).text == second.text


def test_a_chat_regenerates_and_goes_back(model: LoadedModel) -> None:
    chat = Chat(model, system="Be short.", max_new_tokens=8)
    answer = chat.send("What is 1 + 2?")
    assert chat.regenerate().text == answer.text and len(chat.messages) == 3
    assert chat.regenerate(max_new_tokens=1).finish_reason == "length" and len(chat.messages) == 3
    assert chat.undo() == "What is 1 + 2?" and chat.messages == [{"role": "system", "content": "Be short."}]
    for method in (chat.regenerate, chat.undo):
        with pytest.raises(InputError, match=f"{method.__name__}: there is no message yet"):
            method()


def test_a_message_that_cannot_be_answered_is_not_kept(model: LoadedModel) -> None:
    chat = Chat(model)
    for options in ({"images": ["/no/such.png"]}, {"temprature": 1}):
        with pytest.raises(InputError):
            chat.send("Hi", **options)
    assert chat.messages == []
    assert chat.send("What is 1 + 2?", thinking=False, tools=None, max_new_tokens=4).text == "3"
    with pytest.raises(InputError, match="a cache of its own"):
        chat.send("Hi", cache=model.make_cache())


def test_a_stream_tells_its_statistics_at_any_time(model: LoadedModel) -> None:
    parts = model.stream_generate("The hungry cat", max_new_tokens=40, stop_ids=())
    for _ in range(5):
        next(parts)
    assert parts.stats.generated_tokens == 5 and parts.stats.prompt_tokens > 1
    parts.close()
    assert parts.stats.generated_tokens == 5 and list(parts) == []


def test_help_tells_how_python_and_the_command_differ(model: LoadedModel) -> None:
    for method in (model.generate, model.stream_generate):
        text = inspect.getdoc(method) or ""
        assert "greedy unless a temperature is given" in text and "generation_config.json" in text
        names = set(inspect.signature(method).parameters)
        assert {"temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed", "stop_ids"} <= names
        with pytest.raises(InputError, match="did you mean 'temperature'"):
            method([2, 5] if method == model.generate else "x", temprature=1)
    assert "raw prompt" in inspect.getdoc(model.stream_generate)


def test_ids_in_the_place_of_text_are_told_apart(model: LoadedModel) -> None:
    for ids in ([2, 106], np.array([2, 106]), (2, 106)):
        with pytest.raises(InputError, match="prompt_tokens="):
            model.stream_generate(ids)


def test_embeddings_have_length_one_and_do_not_depend_on_company(model: LoadedModel) -> None:
    texts = ["The hungry cat", "The hungry cat eats.", "12 + 34"]
    vectors = model.embed(texts)
    assert vectors.shape == (3, model.config.text_config.hidden_size) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(model.embed(texts[1])[0], vectors[1], atol=1e-6)
    near, far = vectors[0] @ vectors[1], vectors[0] @ vectors[2]
    assert near > far and model.embed([]).shape == (0, vectors.shape[1])
    with pytest.raises(InputError, match="embed takes texts, not int"):
        model.embed([3])
    with pytest.raises(InputError, match="text 1 is empty"):
        model.embed(["full", ""])


@pytest.mark.parametrize("stop", [KeyboardInterrupt, GeneratorExit])
def test_a_stopped_answer_stays_as_far_as_it_came(
    model: LoadedModel, stop: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = Chat(model, max_new_tokens=8)
    whole = chat.send("What is 12 + 34?").text
    stream_generate, cache = model.stream_generate, chat.cache

    class Cut:
        """A stream that is stopped after its first part with text."""

        def __init__(self, *args: Any, **options: Any) -> None:
            self.stream = stream_generate(*args, **options)
            self.stats = self.stream.stats

        def __iter__(self) -> Any:
            for part in self.stream:
                yield part
                if part.text:
                    raise stop

    with monkeypatch.context() as patch:
        patch.setattr(model, "stream_generate", Cut)
        for ask in (lambda: chat.send("What is 56 + 21?"), chat.regenerate):
            with pytest.raises(stop):
                ask()
            assert [turn["role"] for turn in chat.turns] == ["user", "assistant"] * 2
            assert chat.turns[2]["content"] == "What is 56 + 21?" and 0 < len(chat.turns[3]["content"]) < 3
    assert chat.cache is not cache and chat.turns[1]["content"] == whole
    fresh = Chat(model, max_new_tokens=8)
    fresh.turns = list(chat.turns)
    assert chat.regenerate().text == fresh.regenerate().text


def test_unknown_options_of_a_chat_are_refused_at_once(model: LoadedModel) -> None:
    with pytest.raises(InputError, match="did you mean 'temperature'"):
        Chat(model, temprature=1)
    with pytest.raises(InputError, match="a cache of its own"):
        Chat(model, cache=model.make_cache())
    chat = Chat(model, max_new_tokens=1, image_tokens=70)
    with pytest.raises(InputError, match="did you mean 'top_k'"):
        chat.send("x", topk=1)
    assert chat.turns == []


@pytest.mark.parametrize("format", [None, "int8"])
def test_a_saved_model_opens_again(model: LoadedModel, tmp_path: Path, format: str | None) -> None:
    folder = model.save_pretrained(tmp_path / "saved", format)
    again = load_pretrained(folder, device="cpu")
    assert again.format_name == (format or "bf16")
    assert Chat(again, max_new_tokens=8).send("What is 12 + 34?").text == "46"
    if format is None:
        ids = [2, 5, 9, 3]
        np.testing.assert_array_equal(again.forward_ids(ids)[0].numpy(), model.forward_ids(ids)[0].numpy())
        assert not (folder / "training_state.json").exists()


def test_models_and_answers_show_themselves_in_a_notebook(model: LoadedModel) -> None:
    shown = model._repr_html_()
    assert "<td>cpu</td>" in shown and "vision" in shown and "bf16" in shown
    answer = Answer("<b>&", "<i>", [{"name": "f", "arguments": {"x": "<"}}])
    html = answer._repr_html_()
    assert "stopped early" in html
    answered = Chat(model, max_new_tokens=8).send("What is 12 + 34?")._repr_html_()
    assert "<p>stop, prompt " in answered and " tok/s" in answered
    assert "<b>&" not in html and "&lt;b&gt;&amp;" in html and "&lt;i&gt;" in html

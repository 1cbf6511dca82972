"""A chat session keeps the conversation as token ids and continues it."""

import pytest

from maverick_jax.errors import InputError
from maverick_jax.inference import ChatSession
from maverick_jax.inference.engine import Finish, Generation, Update
from maverick_jax.text import load_tokenizer
from maverick_jax.text.chat import Conversation, Message, Role, render


def test_each_answer_continues_all_that_was_said_and_has_a_seed_of_its_own():
    tokenizer = load_tokenizer("bytes")
    answers = [tokenizer.encode("cut"), [*tokenizer.encode("Yes."), tokenizer.controls["<|eot|>"]]] * 2
    requests = []

    class Scripted:
        def submit(self, request):
            requests.append(request)
            generation = Generation(request)
            generation.put(Update(tuple(answers.pop(0)), finish=Finish.STOP))
            return [generation]

    chat = ChatSession(tokenizer, system="Be kind.", max_tokens=9, seed=3)
    engine = Scripted()
    said = [Message(Role.SYSTEM, "Be kind.")]
    for text, answer in (("One", "cut"), ("Two", "Yes.")):
        written = list(chat.say(engine, text))  # pyright: ignore[reportArgumentType]
        said.append(Message(Role.USER, text))
        expected = render(Conversation(said), tokenizer, add_generation_prompt=True).ids.tolist()
        assert requests[-1].prompt == expected and chat.ids[: len(expected)] == expected
        assert chat.ids[-1] == tokenizer.controls["<|eot|>"] and chat.parse(written).text == answer
        said.append(Message(Role.ASSISTANT, answer))
    assert [(r.seed, r.max_tokens) for r in requests] == [(3, 9), (4, 9)]
    chat.reset()
    list(chat.say(engine, "One"))  # pyright: ignore[reportArgumentType]
    assert (requests[-1].prompt, requests[-1].seed) == (requests[0].prompt, 3)


def test_latents_are_before_each_answer_and_in_no_history():
    tokenizer = load_tokenizer("bytes_thinking")
    latent, end = (tokenizer.controls[name] for name in ("<|reasoning_reserved_special_token_0|>", "<|eot|>"))
    requests = []

    class Thinker:
        def submit(self, request):
            requests.append(request)
            generation = Generation(request)
            generation.put(Update((*tokenizer.encode("Yes."), end), finish=Finish.STOP))
            return [generation]

    chat, engine = ChatSession(tokenizer, latents=3), Thinker()
    said = []
    for text in ("One", "Two"):
        list(chat.say(engine, text))  # pyright: ignore[reportArgumentType]
        said.append(Message(Role.USER, text))
        asked = render(Conversation(said), tokenizer, add_generation_prompt=True, latents=3).ids.tolist()
        assert requests[-1].prompt == asked and asked.count(latent) == 3
        assert latent not in chat.ids
        said.append(Message(Role.ASSISTANT, "Yes."))


def test_a_tokenizer_without_the_formats_tokens_is_refused():
    without = load_tokenizer("bytes")
    without._set_controls({"<|end_of_text|>": 257})
    with pytest.raises(InputError, match=r"has no control token <\|begin_of_text\|>, which the chat format needs"):
        ChatSession(without)

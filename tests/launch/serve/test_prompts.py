"""Prompts of chats with latent thoughts."""

from launch.serve.chat import chat_usage
from launch.serve.limits import LIMITS
from launch.serve.pictures import PictureReader
from launch.serve.prompts import PromptMaker
from launch.serve.running import Spent
from maverick_jax.text import load_tokenizer
from maverick_jax.text.chat import Message, Role, find_dialect


def test_latents_end_the_prompt_of_an_answer_and_are_in_no_earlier_turn():
    tokenizer = load_tokenizer("bytes_thinking")
    maker = lambda latents: PromptMaker(
        tokenizer, find_dialect("meta_pythonic"), PictureReader(None, tokenizer, None, LIMITS), latents
    )
    said = [Message(Role.USER, "Hi"), Message(Role.ASSISTANT, "Yo"), Message(Role.USER, "So?")]
    names = ("<|reasoning_thinking_start|>", *["<|reasoning_reserved_special_token_0|>"] * 2)
    thought = [tokenizer.controls[name] for name in (*names, "<|reasoning_thinking_end|>")]
    found = maker(2).prompt(said)
    assert found.ids == [*maker(0).prompt(said).ids, *thought]
    usage = chat_usage(found, Spent())
    assert usage["prompt_tokens"] == len(found.ids) and usage["prompt_tokens_details"]["latent_tokens"] == 2

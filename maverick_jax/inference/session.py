"""An inference session: a conversation with a loaded model."""

from collections.abc import Iterator

from maverick_jax.inference.engine import Engine, GenerationRequest
from maverick_jax.inference.prompts import stop_ids
from maverick_jax.inference.sampling import Sampling
from maverick_jax.text import Tokenizer
from maverick_jax.text.chat import CallError, Conversation, Message, Reply, Role, dialect_of, render


class ChatSession:
    """The tokens of a conversation so far. The model's answers are kept as the tokens that it generated and never
    tokenized again."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        dialect: str | None = None,
        system: str = "",
        max_tokens: int = 512,
        sampling: Sampling | None = None,
        seed: int = 0,
        latents: int = 0,
    ):
        """dialect: the dialect of calls; None: the tokenizer's, or else the default. seed: seed of the first answer, to
        which each later answer adds 1. latents: latent thoughts before each answer, which are no part of the history.
        Raises InputError for an unknown dialect, and for a tokenizer without chat tokens."""
        self.tokenizer, self.max_tokens = tokenizer, max_tokens
        self.dialect = dialect_of(dialect, tokenizer)
        self.sampling, self.seed, self.latents = sampling or Sampling(), seed, latents
        self.system = [Message(Role.SYSTEM, system)] if system else []
        self.reset()
        self._rendered("", latents)

    def reset(self) -> None:
        """Begins a new conversation."""
        self.ids: list[int] = []
        self._before: list[int] = []
        self.turns = 0

    def say(self, engine: Engine, text: str) -> Iterator[int]:
        """Yields the tokens of the model's answer to the user's `text`, including the token that ends it. The engine
        keeps the conversation, so that a turn costs its new tokens."""
        said, stops = [*self.ids, *self._rendered(text)], stop_ids(self.tokenizer)
        prompt = [*self.ids, *self._rendered(text, self.latents)] if self.latents else said
        written: list[int] = []
        seed = self.seed + self.turns
        request = GenerationRequest(prompt, self.max_tokens, self.sampling, seed, stops, session="chat")
        (generation,) = engine.submit(request)
        try:
            for update in generation:
                written += update.tokens
                yield from update.tokens
        finally:
            generation.cancel()
        ends = written and written[-1] in stops
        self.ids = [*said, *written, *([] if ends else [self.tokenizer.controls["<|eot|>"]])]
        self._before = said
        self.turns += 1

    def replace(self, text: str) -> None:
        """The conversation goes on as if the model had answered with `text` the last time."""
        self.ids = [*self._before, *self.tokenizer.encode(text), self.tokenizer.controls["<|eot|>"]]

    def parse(self, written: list[int]) -> Reply | CallError:
        """Text and calls of an answer; a CallError if its calls cannot be parsed."""
        return self.dialect.parse_calls(written, self.tokenizer)

    def _rendered(self, text: str, latents: int = 0) -> list[int]:
        """Tokens of the user's message and of the answer's header, which are appended to the conversation, and of
        latent thoughts, which are not."""
        said = [*([] if self.ids else self.system), Message(Role.USER, text)]
        prompt = render(
            Conversation(said), self.tokenizer, self.dialect.name, add_generation_prompt=True, latents=latents
        )
        ids = prompt.ids.tolist()
        return ids[1:] if self.ids else ids

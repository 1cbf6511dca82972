"""An inference session: a conversation with a loaded model."""

from collections.abc import Iterator

from maverick_jax.inference.sampler import Request, stop_ids, stream_ids
from maverick_jax.inference.sampling import Sampling
from maverick_jax.model.transformer import Maverick
from maverick_jax.text import Tokenizer
from maverick_jax.text.chat import DEFAULT, CallError, Conversation, Message, Reply, Role, find_dialect, render


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
    ):
        """dialect: the dialect of calls; None: the tokenizer's, or else the default. seed: seed of the first answer, to
        which each later answer adds 1. Raises InputError for an unknown dialect, and for a tokenizer without chat
        tokens."""
        self.tokenizer, self.max_tokens = tokenizer, max_tokens
        self.dialect = find_dialect(dialect or tokenizer.dialect or DEFAULT)
        self.sampling, self.seed = sampling or Sampling(), seed
        self.system = [Message(Role.SYSTEM, system)] if system else []
        self.reset()
        self._rendered("")

    def reset(self) -> None:
        """Begins a new conversation."""
        self.ids: list[int] = []
        self.turns = 0

    def say(self, model: Maverick, text: str) -> Iterator[int]:
        """Yields the tokens of the model's answer to the user's `text`, including the token that ends it."""
        prompt = [*self.ids, *self._rendered(text)]
        written: list[int] = []
        seed = self.seed + self.turns
        request = Request(prompt, self.max_tokens, self.sampling, seed)
        for token in stream_ids(model, self.tokenizer, request):
            written.append(token)
            yield token
        ends = written and written[-1] in stop_ids(self.tokenizer)
        self.ids = [*prompt, *written, *([] if ends else [self.tokenizer.controls["<|eot|>"]])]
        self.turns += 1

    def parse(self, written: list[int]) -> Reply | CallError:
        """Text and calls of an answer; a CallError if its calls cannot be parsed."""
        return self.dialect.parse_calls(written, self.tokenizer)

    def _rendered(self, text: str) -> list[int]:
        """Tokens of the user's message and of the answer's header, which are appended to the conversation."""
        said = [*([] if self.ids else self.system), Message(Role.USER, text)]
        ids = render(Conversation(said), self.tokenizer, self.dialect.name, add_generation_prompt=True).ids.tolist()
        return ids[1:] if self.ids else ids

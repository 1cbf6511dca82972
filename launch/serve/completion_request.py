"""The body of a request to `/v1/completions`."""

from typing import Annotated, Any

from pydantic import Field

from launch.serve.errors import refused
from launch.serve.fields import MOST_TOP, SamplingFields
from launch.serve.limits import LIMITS


class CompletionRequest(SamplingFields):
    prompt: str | list[str] | list[int] | list[list[int]]
    """A text, which gets the token that begins texts; or token ids; or several of one of these."""
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    echo: bool | None = None
    """Begin each answer with its prompt."""
    logprobs: Annotated[int, Field(ge=0, le=MOST_TOP)] | None = None
    """Number of most likely tokens in each place."""
    return_tokens_as_token_ids: bool | None = None
    """Write tokens of log-probabilities as `token_id:N`."""
    return_token_ids: bool | None = None
    best_of: int | None = None
    suffix: None = None

    @property
    def limit(self) -> int:
        return 16 if self.max_tokens is None else self.max_tokens

    def prompts(self) -> list[str] | list[list[int]]:
        """One entry for each prompt. Raises ApiError if there is none, or one is empty."""
        given: Any = self.prompt
        found = [given] if isinstance(given, str) or (given and isinstance(given[0], int)) else given
        if not 0 < len(found) <= LIMITS.prompts:
            raise refused("prompt", f"{len(found):,} prompts; expected 1 to {LIMITS.prompts}")
        if any(isinstance(prompt, list) and not prompt for prompt in found):
            raise refused("prompt", "no token ids; expected at least one")
        return found

    def check(self) -> None:
        super().check()
        if self.best_of not in (None, 1, self.choices):
            raise refused("best_of", "answers are not ranked; expected the value of `n`")
        if self.limit == 0 and not self.echo:
            raise refused("max_tokens", "0 is possible only with `echo`")
        if self.echo and self.stream:
            raise refused("echo", "not together with `stream`")

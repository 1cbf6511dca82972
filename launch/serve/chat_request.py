"""The body of a request to `/v1/chat/completions`."""

from typing import Annotated, Any, Literal

from pydantic import Field

from launch.serve.errors import refused
from launch.serve.fields import MOST_TOP, Effort, RequestBody, ResponseFormat, SamplingFields
from launch.serve.limits import LIMITS


class NamedFunction(RequestBody):
    name: Annotated[str, Field(max_length=512)]


class NamedTool(RequestBody):
    type: Literal["function"]
    function: NamedFunction


class ChatRequest(SamplingFields):
    messages: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=LIMITS.messages)]
    tools: Annotated[list[dict[str, Any]], Field(max_length=LIMITS.tools)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    """Enforced where a call is required; elsewhere the model may write several, and none is dropped."""
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_TOP)] | None = None
    response_format: ResponseFormat | None = None
    reasoning_effort: Effort | None = None
    include_reasoning: bool | None = None
    """Send the thoughts too, as `reasoning` and `reasoning_content`; they are hidden by default."""
    return_token_ids: bool | None = None

    store: Any = None
    verbosity: Any = None
    modalities: list[Literal["text"]] | None = None
    functions: None = None
    function_call: None = None
    audio: None = None
    prediction: None = None
    web_search_options: None = None

    @property
    def limit(self) -> int | None:
        """Most tokens of an answer."""
        given = [most for most in (self.max_completion_tokens, self.max_tokens) if most is not None]
        return min(given, default=None)

    @property
    def offered(self) -> list[dict[str, Any]]:
        """The tools that the prompt declares."""
        return [] if self.tool_choice == "none" else self.tools or []

    @property
    def must_call(self) -> bool:
        return self.tool_choice == "required" or isinstance(self.tool_choice, NamedTool)

    @property
    def only_tool(self) -> str | None:
        return self.tool_choice.function.name if isinstance(self.tool_choice, NamedTool) else None

    def check(self) -> None:
        super().check()
        if self.top_logprobs is not None and not self.logprobs:
            raise refused("top_logprobs", "only with `logprobs`")
        if self.must_call and not self.tools:
            raise refused("tool_choice", "a call is required, but there are no `tools`")
        schema = self.response_format and self.response_format.schema_of_answer()
        if schema is not None and self.offered:
            raise refused("response_format", "not together with `tools`, because a call is no answer of that form")

"""The body of a request to `/v1/responses`, and its items as messages of the chat API."""

from typing import Annotated, Any, Literal

from pydantic import Field

from launch.serve.errors import refused
from launch.serve.fields import Effort, RequestBody, SamplingFields
from launch.serve.limits import LIMITS
from maverick_jax.settings.section import did_you_mean

THOUGHT = "reasoning_content"
TEXT_PARTS = ("input_text", "output_text", "text")
ITEMS = ("message", "function_call", "function_call_output", "reasoning")


class Reasoning(RequestBody):
    effort: Effort | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: None = None


class TextFormat(RequestBody):
    type: Literal["text", "json_object", "json_schema"] = "text"
    name: str | None = None
    description: str | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: bool | None = None


class TextOptions(RequestBody):
    format: TextFormat | None = None
    verbosity: Any = None


class NamedResponseTool(RequestBody):
    type: Literal["function"]
    name: Annotated[str, Field(max_length=512)]


class ResponseRequest(SamplingFields):
    input: str | Annotated[list[dict[str, Any]], Field(min_length=1, max_length=LIMITS.messages)]
    instructions: str | None = None
    previous_response_id: Annotated[str, Field(max_length=128)] | None = None
    store: bool | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    tools: Annotated[list[dict[str, Any]], Field(max_length=LIMITS.tools)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedResponseTool | None = None
    parallel_tool_calls: bool | None = None
    """Enforced where a call is required; elsewhere the model may write several, and none is dropped."""
    text: TextOptions | None = None
    reasoning: Reasoning | None = None
    include: list[Literal["reasoning.encrypted_content", "message.output_text.logprobs"]] | None = None
    truncation: Literal["disabled"] | None = None
    background: Literal[False] | None = None
    conversation: None = None
    max_tool_calls: None = None
    prompt: None = None
    top_logprobs: Literal[0] | None = None

    @property
    def is_kept(self) -> bool:
        return self.store is not False

    @property
    def shows_thoughts(self) -> bool:
        return self.reasoning is not None and self.reasoning.summary is not None

    @property
    def must_call(self) -> bool:
        return self.tool_choice == "required" or isinstance(self.tool_choice, NamedResponseTool)

    @property
    def only_tool(self) -> str | None:
        return self.tool_choice.name if isinstance(self.tool_choice, NamedResponseTool) else None

    @property
    def tool_choice_shown(self) -> Any:
        """As the response repeats it."""
        chosen = self.tool_choice
        return chosen.model_dump() if isinstance(chosen, NamedResponseTool) else chosen or "auto"

    @property
    def schema_of_answer(self) -> dict[str, Any] | None:
        form = self.text and self.text.format
        if form is None or form.type == "text":
            return None
        if form.type == "json_schema" and form.schema_ is None:
            raise refused("text.format", "schema is missing")
        return form.schema_ or {"type": "object"}

    def offered(self) -> list[dict[str, Any]]:
        """The tools in the form of the chat API."""
        found = []
        for i, tool in enumerate(self.tools or [] if self.tool_choice != "none" else []):
            if tool.get("type") != "function":
                raise refused(f"tools.{i}.type", f"{tool.get('type')!r:.40}; expected 'function'")
            found.append({"type": "function", "function": {k: v for k, v in tool.items() if k != "type"}})
        return found

    def check(self) -> None:
        super().check()
        if self.choices != 1:
            raise refused("n", "expected 1")
        if "message.output_text.logprobs" in (self.include or ()):
            raise refused("include", "log-probabilities are given by /v1/chat/completions")
        if self.must_call and not self.tools:
            raise refused("tool_choice", "a call is required, but there are no `tools`")
        if self.schema_of_answer is not None and self.offered():
            raise refused("text.format", "not together with `tools`, because a call is no answer of that form")

    def messages(self) -> list[dict[str, Any]]:
        """The input as messages of the chat API. Raises ApiError."""
        if isinstance(self.input, str):
            return [{"role": "user", "content": self.input}]
        found: list[dict[str, Any]] = []
        for i, item in enumerate(self.input):
            _add(found, item, f"input.{i}")
        return found


def _add(messages: list[dict[str, Any]], item: dict[str, Any], where: str) -> None:
    kind = item.get("type", "message")
    if kind == "message":
        _known(item, {"type", "role", "content", "id", "status", "phase"}, where)
        content = item.get("content")
        parts = [_part(part, f"{where}.content") for part in content] if isinstance(content, list) else content
        if item.get("role") == "assistant" and messages and set(messages[-1]) == {"role", "content", THOUGHT}:
            messages[-1]["content"] = parts
        else:
            messages.append({"role": item.get("role"), "content": parts})
    elif kind == "function_call":
        _known(item, {"type", "id", "call_id", "name", "arguments", "status", "caller", "namespace"}, where)
        function = {"name": item.get("name"), "arguments": item.get("arguments")}
        call = {"id": item.get("call_id"), "type": "function", "function": function}
        if messages and messages[-1]["role"] == "assistant":
            messages[-1].setdefault("tool_calls", []).append(call)
        else:
            messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
    elif kind == "function_call_output":
        _known(item, {"type", "id", "call_id", "output", "status"}, where)
        output = item.get("output")
        parts = [_part(part, f"{where}.output") for part in output] if isinstance(output, list) else output
        messages.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": parts})
    elif kind == "reasoning":
        _known(item, {"type", "id", "summary", "content", "encrypted_content", "status"}, where)
        parts = item.get("content") or item.get("summary") or ()
        texts = [part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str)]
        if len(texts) < len(parts):
            raise refused(where, "expected texts in `content` or `summary`")
        if texts:
            messages.append({"role": "assistant", "content": None, THOUGHT: "".join(texts)})
    else:
        raise refused(f"{where}.type", f"{kind!r:.40}; expected one of {', '.join(ITEMS)}")


def _part(part: Any, where: str) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in TEXT_PARTS:
        _known(part, {"type", "text", "annotations", "logprobs"}, where)
        return {"type": "text", "text": part.get("text")}
    if kind == "input_image":
        _known(part, {"type", "image_url", "detail", "file_id"}, where)
        return {"type": "image_url", "image_url": {"url": part.get("image_url")}}
    raise refused(where, f"type {kind!r:.40}; expected input_text, output_text or input_image")


def _known(found: dict[str, Any], known: set[str], where: str) -> None:
    for key in found:
        if key not in known:
            raise refused(f"{where}.{str(key)[:40]}", f"unknown field{did_you_mean(str(key)[:40], known)}")

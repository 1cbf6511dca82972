"""Fields that the generating routes share, as strict models: an unknown field is an error that names it."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, TypeVar

import pydantic
from pydantic import Field

from launch.serve.errors import ApiError, refused
from launch.serve.limits import LIMITS
from maverick_jax.inference.sampling import Sampling
from maverick_jax.settings.section import did_you_mean

Body = TypeVar("Body", bound="RequestBody")
StopText = Annotated[str, Field(min_length=1, max_length=256)]
Stop = StopText | Annotated[list[StopText], Field(max_length=4)] | None
Penalty = Annotated[float, Field(ge=-2, le=2)]
MOST_BIASES, MOST_STOP_IDS, MOST_TOP = 1_024, 8, 20


class RequestBody(pydantic.BaseModel):
    """The JSON body of a request."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    @classmethod
    def read(cls, value: Mapping[str, Any]) -> Self:
        """Raises ApiError for the first field that is wrong."""
        try:
            return cls.model_validate(value)
        except pydantic.ValidationError as error:
            raise _first(error, cls) from None


def _first(error: pydantic.ValidationError, model: type[RequestBody]) -> ApiError:
    first = error.errors(include_url=False, include_input=False)[0]
    path = [str(part)[:80] for part in first["loc"] if not str(part).startswith(("function-", "list[", "constrained"))]
    where = ".".join(path) or "body"
    if first["type"] == "extra_forbidden":
        near = did_you_mean(path[-1], model.model_fields) if len(path) == 1 else ""
        return refused(where, f"unknown field{near}")
    return refused(where, first["msg"][:1].lower() + first["msg"][1:300])


class StreamOptions(RequestBody):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None
    """Not used: nothing is padded."""


class SamplingFields(RequestBody):
    """How tokens are drawn and when an answer ends, and what clients may say that changes nothing."""

    model: Annotated[str, Field(max_length=512)]
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Annotated[float, Field(ge=0, lt=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    n: Annotated[int, Field(ge=1, le=LIMITS.choices)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Stop = None
    stop_token_ids: Annotated[list[int], Field(max_length=MOST_STOP_IDS)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    cache_salt: Annotated[str, Field(max_length=256)] | None = None
    """Cached keys and values are shared only among requests with the same salt."""

    user: Any = None
    metadata: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    prompt_cache_retention: Any = None

    def sampling(self, vocab_size: int) -> Sampling:
        return Sampling(
            temperature=_or(self.temperature, 1.0),
            top_k=max(_or(self.top_k, 0), 0),
            top_p=_or(self.top_p, 1.0),
            min_p=_or(self.min_p, 0.0),
            repetition_penalty=_or(self.repetition_penalty, 1.0),
            presence_penalty=_or(self.presence_penalty, 0.0),
            frequency_penalty=_or(self.frequency_penalty, 0.0),
            logit_bias=_biases(self.logit_bias or {}, vocab_size),
        )

    @property
    def choices(self) -> int:
        return self.n or 1

    @property
    def stop_texts(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def with_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def check(self) -> None:
        """Raises ApiError for fields that do not go together."""
        if self.stream_options is not None and not self.stream:
            raise refused("stream_options", "only with `stream`")


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


def _biases(given: Mapping[str, float], vocab_size: int) -> dict[int, float]:
    if len(given) > MOST_BIASES:
        raise refused("logit_bias", f"{len(given):,} tokens; expected at most {MOST_BIASES:,}")
    found: dict[int, float] = {}
    for key, bias in given.items():
        if not (key.isascii() and key.isdigit() and len(key) < 10 and int(key) < vocab_size):
            raise refused("logit_bias", f"{key[:40]!r} is not a token id; expected 0 to {vocab_size - 1}")
        found[int(key)] = bias
    return found


class JsonSchema(RequestBody):
    name: Annotated[str, Field(max_length=256)]
    description: str | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: bool | None = None


class ResponseFormat(RequestBody):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    def schema_of_answer(self) -> dict[str, Any] | None:
        """The JSON schema that the answer must satisfy; None: any text."""
        if self.type == "text":
            return None
        if self.type == "json_object":
            return {"type": "object"}
        if self.json_schema is None or self.json_schema.schema_ is None:
            raise refused("response_format", "json_schema.schema is missing")
        return self.json_schema.schema_


Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]


def require_known_effort(effort: str | None, param: str) -> bool:
    """Whether the model may think. Raises ApiError for levels, which these models do not have."""
    if effort not in (None, "none", "medium"):
        raise refused(param, f"{effort!r}: this model has no levels; expected 'none' (no thoughts) or 'medium'")
    return effort != "none"

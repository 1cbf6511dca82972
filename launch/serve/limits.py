"""Bounds of the server. Whatever exceeds one is refused with an error that names it, and nothing is cut in silence."""

import dataclasses

MIB = 1 << 20


@dataclasses.dataclass(frozen=True)
class RequestLimits:
    """Bounds of one server. Sizes are in bytes and times in seconds."""

    body: int = 32 * MIB
    depth: int = 64
    """Nesting of JSON in a body."""
    containers: int = 200_000
    """Lists and objects in a body."""
    items: int = 4_000_000
    """Commas between values in a body: token ids, mostly."""
    texts: int = 800_000
    """Texts in a body, keys included: each takes some 250 bytes when it is read."""
    messages: int = 4_096
    tools: int = 256
    prompts: int = 256
    """Prompts of one request to the completions route."""
    choices: int = 8
    """`n`, the answers to one prompt."""
    pictures: int = 64
    picture_pixels: int = 1 << 24
    pictures_pixels: int = 1 << 26
    """Pixels of one picture, and of all pictures of a request."""
    open_requests: int = 256
    """Requests at work or waiting; more are answered with 429."""
    connections: int = 1_024
    """Connections; more are answered with 503."""
    body_seconds: float = 60.0
    """Time in which a body must have arrived."""
    request_seconds: float = 3_600.0
    """Time in which a request must be answered."""
    write_seconds: float = 30.0
    """Time that a client may take to read a piece of a stream."""
    kept_responses: int = 1_024
    """Responses that `previous_response_id` can name; the oldest are forgotten first."""
    kept_tokens: int = 16 * MIB
    """Tokens of all kept responses."""


LIMITS = RequestLimits()

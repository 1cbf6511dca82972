"""What the collectives of a compiled program send."""

import re
from collections.abc import Callable

import jax


def compiled_text(function: Callable, *arguments) -> str:
    """The HLO text of `function` compiled for these arguments, whose operations have their own names even if the cache
    of compiled programs holds the same program with others."""
    key = "jax_compilation_cache_include_metadata_in_key"
    before = getattr(jax.config, key)
    jax.config.update(key, True)
    try:
        return jax.jit(function).lower(*arguments).compile().as_text()
    finally:
        jax.config.update(key, before)


def collectives(text: str, kind: str) -> list[str]:
    """The shapes, such as `8,16`, that the operations `kind` (`all-reduce`, `reduce-scatter`, ...) of an HLO text
    return; of an operation that the compiler combined of several, the shape of each."""
    types = re.findall(rf"^\s*(?:ROOT )?%?\S+ = (.*?) {kind}(?:-start)?\(", text, re.MULTILINE)
    return [dims for found in types for dims in re.findall(r"\w+\[([\d,]*)\]", found)]

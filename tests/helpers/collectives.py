"""What the collectives of a compiled program send."""

import re


def collectives(text: str, kind: str) -> list[str]:
    """The shapes, such as `8,16`, that the operations `kind` (`all-reduce`, `reduce-scatter`, ...) of an HLO text
    return; of an operation that the compiler combined of several, the shape of each."""
    types = re.findall(rf"^\s*(?:ROOT )?%?\S+ = (.*?) {kind}(?:-start)?\(", text, re.MULTILINE)
    return [dims for found in types for dims in re.findall(r"\w+\[([\d,]*)\]", found)]

"""Config overrides on the command lines of benchmarks that start runs."""

import argparse
import sys
from collections.abc import Sequence


def with_overrides(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None = None
) -> tuple[argparse.Namespace, list[str]]:
    """The arguments of `parser`, and the words `key=value` among them, wherever they stand: an option of several
    values would take them too."""
    words = list(sys.argv[1:] if argv is None else argv)
    is_override = lambda word: "=" in word and not word.startswith("-")
    return parser.parse_args([word for word in words if not is_override(word)]), list(filter(is_override, words))

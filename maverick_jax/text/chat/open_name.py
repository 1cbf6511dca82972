"""The name of a call that is being written."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple


class OpenName(NamedTuple):
    """A place in an answer where the name of a tool is written, or begins."""

    written: str
    """The part of the name that is there."""
    opens: tuple[str, ...] = ("",)
    """What may come before the rest of the name, such as a quote."""
    closes: str = ""
    """What ends the name."""
    must: bool = True
    """Whether nothing else than a name can follow."""

    def continuations(self, names: Iterable[str]) -> Iterator[str]:
        """What may follow, up to the end of the name, if it is one of `names`."""
        for name in names:
            if name.startswith(self.written):
                yield from (f"{opening}{name[len(self.written) :]}{self.closes}" for opening in self.opens)

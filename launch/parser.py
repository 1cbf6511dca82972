"""Arguments of the command line: errors with the nearest valid choice, and the list of verbs."""

import argparse
import re
from collections.abc import Mapping
from typing import NoReturn

from maverick_jax.errors import InputError
from maverick_jax.settings.section import did_you_mean


class Parser(argparse.ArgumentParser):
    """Raises InputError for bad arguments, with the nearest valid option."""

    def error(self, message: str) -> NoReturn:
        message = message.replace(", key=value", "")  # argparse lists it as required, but it is optional
        near = ""
        if unknown := re.search(r"unrecognized arguments: (-\S+)", message):
            near = did_you_mean(unknown[1], [o for action in self._actions for o in action.option_strings])
        elif choice := re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message):
            near = did_you_mean(choice[1], re.findall(r"[\w-]+", choice[2]))
        raise InputError(f"{self.prog}: {message}{near} (see {self.prog} --help)")


def usage(verbs: Mapping[str, str]) -> str:
    """The text of `maverick --help`. `verbs`: name -> what it does."""
    width = max(map(len, verbs))
    lines = [f"  {name:<{width}}  {what}" for name, what in verbs.items()]
    return "\n".join(
        [
            "usage: maverick VERB ...",
            "",
            "Pretrain, distill and fine-tune Llama-4-Maverick-class models.",
            "",
            *lines,
            "",
            "Run `maverick VERB --help` for the arguments of a verb.",
            "",
            "exit codes: 0 success; 1 check failed; 75, 76 restart; 77 restart on another machine; 78 bad config or",
            "input; 79 too many non-finite updates; 80 suspected data corruption; 81 no restorable checkpoint;",
            "130 interrupted",
        ]
    )

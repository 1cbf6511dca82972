"""The process of `symbolic`: compares pairs of LaTeX expressions, one JSON line each, and answers with a line."""

import json
import logging
import resource
import sys

MEMORY = 4 << 30


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    logging.disable(logging.CRITICAL)
    from math_verify import LatexExtractionConfig, parse, verify

    config = [LatexExtractionConfig()]  # the other kind evaluates Python expressions

    def read(text: str):
        return parse(f"${text}$", config, fallback_mode="no_fallback", parsing_timeout=None)

    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        reference, answer = json.loads(line)
        try:
            gold, given = read(reference), read(answer)
            said = "cannot be parsed" if not given or not gold else "differs"
            if said == "differs" and verify(gold, given, timeout_seconds=None):
                said = "equal"
        except (Exception, RecursionError, MemoryError) as error:
            said = f"cannot be compared: {type(error).__name__}"
        print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main()

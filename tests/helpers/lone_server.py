"""A server over a scripted engine with the limits that users have, in a process of its own so that its memory can be
measured. Prints its port, and ends with its standard input."""

import sys

from tests.helpers.serving import serving

if __name__ == "__main__":
    with serving() as client:
        print(client.port, flush=True)
        sys.stdin.read()

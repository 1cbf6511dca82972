"""Answers signals the moment they arrive, although the main thread is in native code.

Python runs a signal's handler between two bytecodes of the main thread. While XLA compiles, or a step waits for another
process, that is minutes away. So a thread of its own reads the numbers of signals, which the interpreter writes to a
pipe at once, and gives them to whoever wants to answer: the last of those who asked.
"""

import contextlib
import ctypes
import os
import signal
import threading
from collections.abc import Callable, Iterator

ANSWERED = (signal.SIGINT, signal.SIGTERM)
_ACTION_BYTES = 1024
"""More than the size of C's `struct sigaction` anywhere. It begins with the address of the handler."""
_DEFAULT, _IGNORE = 0, 1
Answer = Callable[[int], object]

_answers: list[Answer] = []
_listens = False
_native: dict[int, int] = {}
"""Addresses of the handlers that C code installed, by signal: JAX's, in a job of several processes."""


@contextlib.contextmanager
def answers(answer: Answer) -> Iterator[None]:
    """While this is open, `answer` gets the numbers of SIGINT and SIGTERM, in a thread of its own, unless a later one
    that is still open gets them. After the first of all, the former handlers are back, also those of C. Does nothing
    outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _answers.append(answer)
    try:
        with contextlib.nullcontext() if _listens else _listening():
            yield
    finally:
        _answers.remove(answer)


def keep_answering() -> None:
    """To be called after C code may have installed handlers of its own: signals are answered as before, and `pass_on`
    reaches those handlers."""
    if _answers and threading.current_thread() is threading.main_thread():
        for number in ANSWERED:
            _install(number)


def pass_on(number: int) -> bool:
    """Calls the handler that C code has installed for a signal; False: there is none. JAX's only sets a flag, so that
    any thread may call it."""
    if (address := _native.get(number, _DEFAULT)) in (_DEFAULT, _IGNORE):
        return False
    ctypes.CFUNCTYPE(None, ctypes.c_int)(address)(int(number))
    return True


@contextlib.contextmanager
def _listening() -> Iterator[None]:
    global _listens
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.ExitStack() as stack:
        for number in ANSWERED:
            stack.enter_context(_handled(number))
        former = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        threading.Thread(target=_read, args=(reader,), name="signals", daemon=True).start()
        _listens = True
        try:
            yield
        finally:
            _listens = False
            signal.set_wakeup_fd(former)
            os.close(writer)  # the thread reads the end of the pipe, and ends


def _read(reader: int) -> None:
    with os.fdopen(reader, "rb", buffering=0) as numbers:
        while number := numbers.read(1):
            if number[0] in ANSWERED and _answers:
                _answers[-1](number[0])


@contextlib.contextmanager
def _handled(number: int) -> Iterator[None]:
    before = _action(number)
    former = signal.getsignal(number)
    _install(number)
    try:
        yield
    finally:
        last = _native.pop(number, None)
        if former is not None:
            signal.signal(number, former)
        if last is None or last == _address(before):
            ctypes.CDLL(None).sigaction(int(number), before, None)
        else:  # installed meanwhile
            ctypes.CDLL(None).signal(int(number), ctypes.c_void_p(last))


def _install(number: int) -> None:
    """A handler of Python's, which does nothing: without one the number would not be written to the pipe."""
    there = _address(_action(number))
    signal.signal(number, _nothing)
    if there != _address(_action(number)):  # Python's handlers all have one address
        _native[number] = there


def _nothing(number: int, frame: object) -> None:
    pass


def _action(number: int) -> ctypes.Array:
    found = ctypes.create_string_buffer(_ACTION_BYTES)
    ctypes.CDLL(None).sigaction(int(number), None, found)
    return found


def _address(action: ctypes.Array) -> int:
    return ctypes.c_void_p.from_buffer(action).value or _DEFAULT

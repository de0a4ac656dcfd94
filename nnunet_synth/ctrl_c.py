"""Ctrl-C, in this process and in those that it starts: every one of them would say so at length."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


@contextmanager
def keyboard_interrupt_wins() -> Iterator[None]:
    """After Ctrl-C, whatever is raised is a KeyboardInterrupt: libraries that are interrupted while they are imported
    make an ImportError of it."""
    pressed = False

    def press(number: int, frame: object) -> None:
        nonlocal pressed
        pressed = True
        raise KeyboardInterrupt

    listens = threading.current_thread() is threading.main_thread() \
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if listens:
        signal.signal(signal.SIGINT, press)
    try:
        yield
    except Exception as error:
        if pressed:
            raise KeyboardInterrupt from error
        raise
    finally:
        if listens:
            signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def held_back() -> Iterator[None]:
    """What is started in here does not hear Ctrl-C until it asks to; this process hears it afterwards."""
    if not hasattr(signal, "pthread_sigmask"):      # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Worker:
    """A function as a worker process runs it: Ctrl-C stops what it does and what it is still given; while it waits for
    work, nothing is raised."""

    busy = stopped = False

    def __init__(self, function: Callable[[Item], Result]) -> None:
        self.function = function

    def __call__(self, item: Item) -> Result:
        Worker.busy = True
        try:
            if Worker.stopped:
                raise KeyboardInterrupt
            return self.function(item)
        finally:
            Worker.busy = False

    @classmethod
    def listen(cls) -> None:
        """Called once in a worker that was started with Ctrl-C held back."""
        def stop(number: int, frame: object) -> None:
            cls.stopped = True
            if cls.busy:
                raise KeyboardInterrupt

        signal.signal(signal.SIGINT, stop)
        if hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})

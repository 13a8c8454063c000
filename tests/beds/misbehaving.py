"""Functions for worker processes that crash, hang or swallow memory. The workers import this file by name, so it imports little."""

import os
import time


def misbehave(value: str) -> str:
    if value == "crash":
        os.abort()
    if value == "hang":
        time.sleep(60)
    if value == "swallow":
        raise MemoryError
    if value == "mistake":
        raise KeyError("our own mistake")
    return value.upper()


def nothing() -> None:
    """No limits."""

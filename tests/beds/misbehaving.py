"""Functions for worker processes that crash, hang or swallow memory. The workers import this file by name, so it imports little."""

import os
import struct
import sys
import time


def misbehave(value: str) -> str:
    if value == "crash":
        os.abort()
    if value == "hang":
        time.sleep(60)
    if value == "swallow":
        raise MemoryError
    if value == "half a message":
        connection = sys._getframe(1).f_locals["connection"]
        os.write(connection.fileno(), struct.pack("!i", 1000) + b"half")
        os._exit(1)
    if value == "mistake":
        raise KeyError("our own mistake")
    return value.upper()


def number_of_this_process(_: int) -> int:
    return os.getpid()

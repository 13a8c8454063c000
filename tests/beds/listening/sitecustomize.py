"""Imported by every Python process that has this folder on its PYTHONPATH: writes down each attempt to reach a network, with who
made it. Unix sockets stay on the machine and do not count.
"""

import os
import socket
import sys
import traceback
from typing import Any

WATCHED = (
    "socket.connect",
    "socket.sendto",
    "socket.sendmsg",
    "socket.getaddrinfo",
    "socket.gethostbyname",
    "socket.gethostbyaddr",
)
FILE = os.environ.get("NETWORK_ATTEMPTS")


def hear(event: str, arguments: tuple[Any, ...]) -> None:
    if event not in WATCHED:
        return
    first, *rest = arguments
    if isinstance(first, socket.socket):
        if first.family == socket.AF_UNIX:
            return
    else:
        rest = list(arguments)
    place = "".join(traceback.format_stack(limit=8)[:-1])
    with open(str(FILE), "a") as file:  # noqa: PTH123 - pathlib may not be imported yet
        file.write(f"{event} {rest} in {sys.argv[:3]}\n{place}\n")


if FILE:
    sys.addaudithook(hear)

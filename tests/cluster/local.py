#!/usr/bin/env python3
"""The local one-node Kubernetes cluster for development and tests, from the command line.

    python3 tests/cluster/local.py up                 start it (the first time builds Kubernetes: about ten minutes)
    python3 tests/cluster/local.py images             build our images and bring them in
    python3 tests/cluster/local.py status             what runs
    python3 tests/cluster/local.py kubectl get pods   talk to it
    python3 tests/cluster/local.py down               stop it and remove its traces

With CLUSTER=current nothing is started: the cluster of the current kubectl context is named and used.
Exit codes: 0 done, 1 failed, 2 wrong usage, 3 this machine cannot carry the cluster.
"""

import argparse
import os
import sys
from collections.abc import Callable

from local_cluster import (
    access,
    binaries,
    image_sources,
    images,
    lifecycle,
    settings,
)
from local_cluster.console import say
from local_cluster.errors import ClusterError


def up(_: argparse.Namespace) -> int:
    if access.uses_current_context():
        say(
            f"- CLUSTER=current: nothing is started; using the context {access.current_context()!r} "
            f"of {access.kubeconfig()}"
        )
        return 0
    lifecycle.start()
    return 0


def down(_: argparse.Namespace) -> int:
    if access.uses_current_context():
        say("- CLUSTER=current: that cluster is not ours to stop; nothing is done")
        return 0
    lifecycle.stop()
    return 0


def status(_: argparse.Namespace) -> int:
    if access.uses_current_context():
        print(f"context {access.current_context()}")
        return 0
    return 0 if lifecycle.describe() else 1


def kubeconfig(_: argparse.Namespace) -> int:
    print(access.kubeconfig())
    return 0


def volumes(_: argparse.Namespace) -> int:
    if access.uses_current_context():
        say("- CLUSTER=current: that cluster's volumes are not ours to wipe; nothing is done")
        return 0
    lifecycle.recycle_volumes()
    return 0


def build_images(arguments: argparse.Namespace) -> int:
    unknown = set(arguments.names) - set(image_sources.BY_NAME)
    if unknown:
        raise ClusterError(f"no such image: {', '.join(unknown)}", f"name one of {', '.join(image_sources.BY_NAME)}")
    chosen = {name: image_sources.BY_NAME[name] for name in arguments.names or image_sources.BY_NAME}
    if not arguments.print and access.uses_current_context():
        raise ClusterError(
            "CLUSTER=current: images cannot be brought into that cluster from here",
            "build the Containerfiles, push to your registry, name them in the chart's values",
        )
    for name, image in chosen.items():
        print(f"{name}={image.reference() if arguments.print else images.ensure(image)}")
    return 0


def build_binaries(_: argparse.Namespace) -> int:
    binaries.build_missing()
    print(settings.BINARIES)
    return 0


def _become(name: str, words: list[str]) -> int:
    """Give this process over to the program, so that its input, output and signals are the terminal's."""
    program = access.tool(name)
    environment = {**os.environ, "KUBECONFIG": str(access.kubeconfig())}
    sys.stdout.flush()
    os.execve(program, [name, *words], environment)


COMMANDS: dict[str, tuple[str, Callable[[argparse.Namespace], int]]] = {
    "up": ("start the cluster; a running one is left as it is", up),
    "down": ("stop the cluster and remove its traces", down),
    "status": ("show what runs; exit code 1 when the cluster is not usable", status),
    "kubeconfig": ("print the path of the kubeconfig to use", kubeconfig),
    "volumes": ("wipe the volumes of deleted claims and offer them again", volumes),
    "images": ("build the images whose inputs changed, bring them in, print name=reference", build_images),
    "binaries": ("build what is missing of kubectl, helm, kube-apiserver, ... and print their folder", build_binaries),
}
PASSED_ON = {"kubectl": "run kubectl against the cluster", "helm": "run helm against the cluster"}


def main(words: list[str]) -> int:
    try:
        # Before argparse, which would take the other program's options for its own.
        if words and words[0] in PASSED_ON:
            return _become(words[0], words[1:])
        arguments = _parser().parse_args(words)
        return int(arguments.function(arguments))
    except ClusterError as error:
        say(f"\nERROR: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        say("\ninterrupted")
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (explanation, function) in COMMANDS.items():
        command = commands.add_parser(name, help=explanation, description=explanation)
        command.set_defaults(function=function)
        if function is build_images:
            command.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(image_sources.BY_NAME)}; all")
            command.add_argument("--print", action="store_true", help="build nothing, only print name=reference")
    for name, explanation in PASSED_ON.items():
        commands.add_parser(name, help=explanation, description=explanation)
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""`mark put`: local files into a workspace."""

import re
import time
from collections.abc import Iterable
from pathlib import Path

import click
from mark_crds import names
from mark_crds.shared import PATH_PATTERN

from mark_operator.cli.errors import InputError, RefusedError
from mark_operator.cli.options import Connection, connection_options, say
from mark_operator.cli.session import Session
from mark_operator.cli.transfer_bar import transfer_bar
from mark_operator.cli.view.formatting import byte_size, duration, plural
from mark_operator.cli.workspace.choice import choose_copying
from mark_operator.cli.workspace.copies import Found, look, send_files
from mark_operator.cli.workspace.copy_pod import running_copy_pod
from mark_operator.cli.workspace.local_files import File, listing, local_paths

# What runs and their stages write; a copy would break what they rely on.
OPERATORS_OWN = (names.RUNS_FOLDER, names.COMPLETED_FOLDER, names.LOCKS_FOLDER)

_EXAMPLES = """\b
Examples:
  mark put contracts/ corpus --claim mark-workspace
  mark put tiny-llama/ base/tiny-llama --claim mark-workspace
  mark put preferences.jsonl preferences/may.jsonl --claim mark-workspace --replace
"""


@click.command(epilog=_EXAMPLES)
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("path")
@click.option("--claim", required=True, help="The PersistentVolumeClaim of the workspace.")
@click.option("--replace", is_flag=True, help="Replace what is at PATH when it differs.")
@click.option("--image", envvar="MARK_IMAGE", help="Image of the copy Pod; default: the operator's trainer image.")
@connection_options
def put(source: Path, path: str, claim: str, replace: bool, image: str | None, connection: Connection) -> None:
    """Copy the local folder or file SOURCE into a workspace, where it becomes PATH.

    A short-lived Pod without any rights receives the files, checks the sha256 of each and puts them at PATH in one
    rename, so that a run sees all of them or none. Equal files that are there already are not sent again; different
    ones stay, unless --replace says otherwise. Links are followed; permissions and times are not kept.
    """
    target = workspace_path(path)
    paths = local_paths(source)
    total = sum(file.stat().st_size for _, file in paths)
    with transfer_bar("reading", total) as advance:
        files = listing(paths, advance)
    session = connection.open()
    started = time.monotonic()
    with running_copy_pod(session, choose_copying(session, claim=claim, image=image)) as pod:
        sent = _send(session, pod, source, target, files, replace=replace)
    verb = "copied to" if sent else "already the same at"
    took = f" in {duration(time.monotonic() - started)}" if sent else ""
    say(f"{plural(len(files), 'file')}, {byte_size(total)}: {verb} {target} of {claim}{took}; every sha256 agrees")


def workspace_path(text: str) -> str:
    """A path as manifests write it; raises when it is none, or one that belongs to the operator."""
    path = text.removeprefix("./").rstrip("/")
    if not re.fullmatch(PATH_PATTERN, path):
        raise InputError(
            f"{text!r} is no path of a workspace", "write it relative to the workspace's root, such as base/tiny-llama"
        )
    if path.split("/")[0] in OPERATORS_OWN:
        raise InputError(f"{path}: only runs write there", f"choose a folder other than {', '.join(OPERATORS_OWN)}")
    return path


def _send(session: Session, pod: str, source: Path, target: str, files: list[File], *, replace: bool) -> bool:
    """Send what is not there yet; whether anything was sent."""
    found = look(session, pod, target)
    if found and sorted(found.files, key=_name) == sorted(files, key=_name) and found.is_folder == source.is_dir():
        return False
    if found and not replace:
        raise RefusedError(f"{target} exists and is another: {_difference(found, source, files)}", _REPLACE_REMEDY)
    with transfer_bar("copying", sum(file.size for file in files)) as advance:
        send_files(session, pod, source, target, files, replace=replace, advance=advance)
    return True


def _name(file: File) -> str:
    return file.name


def _difference(found: Found, source: Path, files: list[File]) -> str:
    if found.is_folder != source.is_dir():
        there, here = ("a folder", "a file") if found.is_folder else ("a file", "a folder")
        return f"it is {there}, and {source} is {here}"
    have = {file.name: file.digest for file in files}
    there_have = {file.name: file.digest for file in found.files}
    kinds = {
        "changed": {name for name in have.keys() & there_have.keys() if have[name] != there_have[name]},
        "only there": there_have.keys() - have.keys(),
        "only here": have.keys() - there_have.keys(),
    }
    return "; ".join(f"{plural(len(found), 'file')} {kind}{_examples(found)}" for kind, found in kinds.items() if found)


def _examples(file_names: Iterable[str]) -> str:
    some = sorted(name for name in file_names if name)[:3]
    return f" ({', '.join(some)})" if some else ""


_REPLACE_REMEDY = "add --replace to put yours in its place, or choose another path"

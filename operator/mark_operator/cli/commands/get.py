"""`mark get`: what a run has made, out of its workspace."""

import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path, PurePosixPath

import click

from mark_operator.cli.errors import ClusterError, NotFoundError, RefusedError
from mark_operator.cli.options import Connection, connection_options, kind_option, say
from mark_operator.cli.runs import RunReference, parse_reference, read_run, state_of
from mark_operator.cli.session import Json, Session
from mark_operator.cli.transfer_bar import transfer_bar
from mark_operator.cli.view.formatting import byte_size, plural
from mark_operator.cli.workspace.choice import choose_copying
from mark_operator.cli.workspace.copies import fetch_files, read_file
from mark_operator.cli.workspace.copy_pod import Copying, running_copy_pod
from mark_operator.cli.workspace.local_files import File

ARTIFACTS = ("report", "adapter", "predictions", "dataset", "page", "rewardModel")
MANIFEST = "manifest.json"

_EXAMPLES = """\b
Examples:
  mark get contracts-lora report
  mark get contracts-lora adapter --to adapters/contracts
  mark get erun/contracts-check predictions
"""


@click.command(epilog=_EXAMPLES)
@click.argument("name")
@click.argument("artifact", type=click.Choice(ARTIFACTS))
@click.option("--to", "target", type=click.Path(path_type=Path), help="Where it goes; default: NAME-ARTIFACT here.")
@click.option("--replace", is_flag=True, help="Replace what is there.")
@click.option("--image", envvar="MARK_IMAGE", help="Image of the copy Pod; default: that of the run.")
@kind_option
@connection_options
def get(
    name: str,
    artifact: str,
    target: Path | None,
    replace: bool,
    image: str | None,
    kind: str | None,
    connection: Connection,
) -> None:
    """Copy what the run NAME has made out of its workspace.

    Every byte is checked against the digest in the run's status; a copy that is cut off or damaged leaves nothing.
    """
    session, reference = connection.open(), parse_reference(name, kind)
    run = read_run(session, reference)
    made = find_artifact(run, reference, artifact)
    place = target or Path(f"{reference.name}-{artifact}{PurePosixPath(made['path']).suffix}")
    if place.exists() and not replace:
        raise RefusedError(f"{place} exists", "name another place with --to, or add --replace")
    with running_copy_pod(session, copying_for(session, run, image)) as pod:
        files = _fetch(session, pod, made, place)
    size = byte_size(sum(file.size for file in files))
    say(
        f"{plural(len(files), 'file')}, {size}: {made['path']} copied to {place}; "
        "the digest agrees with the run's status"
    )


def find_artifact(run: Json, reference: RunReference, kind: str) -> Json:
    """What the run's status says about an artifact of this kind; the newest when there are several."""
    status = run.get("status", {})
    made: list[Json] = (status.get("result") or {}).get("artifacts") or [
        artifact for stage in status.get("stages", []) for artifact in stage.get("artifacts", [])
    ]
    fitting = [artifact for artifact in made if artifact["kind"] == kind]
    if not fitting:
        have = ", ".join(sorted({artifact["kind"] for artifact in made})) or "nothing"
        raise NotFoundError(
            f"{reference.name} has made no {kind}; it has made: {have}",
            f"it is {state_of(run) or 'not planned yet'}; `mark status {reference.argument}` shows how far it is",
        )
    return fitting[-1]


def copying_for(session: Session, run: Json, image: str | None) -> Copying:
    """The copy Pod that reads the run's workspace."""
    stages = (run.get("status", {}).get("plan") or {}).get("stages") or [{}]
    claim = run["spec"]["workspace"]["claimName"]
    return choose_copying(session, claim=claim, image=image or stages[-1].get("image"), read_only=True)


def read_artifact(session: Session, pod: str, made: Json) -> bytes:
    """An artifact that is one file; raises when it is not the one that the status names."""
    content, digest = read_file(session, pod, made["path"])
    if digest != made["digest"]:
        raise _changed(made, digest)
    return content


def _fetch(session: Session, pod: str, made: Json, place: Path) -> list[File]:
    with ExitStack() as stack:

        def begin(files: list[File]) -> Callable[[int], None]:
            _require_announced(made, files)
            return stack.enter_context(transfer_bar("copying", sum(file.size for file in files)))

        return fetch_files(
            session,
            pod,
            made["path"],
            place,
            begin=begin,
            check=lambda staged, files: check_folder(made, staged, files),
        )


def _require_announced(made: Json, files: list[File]) -> None:
    """A single file's digest is known before a byte of it has moved."""
    if [file.name for file in files] == [""] and files[0].digest != made["digest"]:
        raise _changed(made, files[0].digest)


def check_folder(made: Json, staged: Path, files: list[File]) -> None:
    """A folder's digest is the sha256 of its manifest, which names every other file with its sha256."""
    if not staged.is_dir():
        return
    have = {file.name: file.digest for file in files}
    digest = have.pop(MANIFEST, None)
    if digest is not None and digest != made["digest"]:
        raise _changed(made, digest)
    listed = _files_of(staged / MANIFEST)
    if listed is None:
        raise ClusterError(f"{made['path']}: has no readable {MANIFEST}")
    wrong = sorted(name for name in have.keys() | listed.keys() if have.get(name) != listed.get(name))
    if wrong:
        raise RefusedError(
            f"{made['path']}/{wrong[0]}: does not agree with {MANIFEST}",
            "it was changed after the run; nothing was copied",
        )


def _files_of(manifest: Path) -> Json | None:
    """The digests that a manifest names; None where there is no manifest that names any."""
    try:
        found = json.loads(manifest.read_text())
    except (OSError, ValueError):
        return None
    files = found.get("files") if isinstance(found, dict) else None
    return files if isinstance(files, dict) else None


def _changed(made: Json, digest: str) -> RefusedError:
    return RefusedError(
        f"{made['path']}: has the digest {digest[:12]}, but the run's status says {made['digest'][:12]}",
        "it was changed after the run; nothing was copied",
    )

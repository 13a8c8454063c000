"""Which image and user a copy Pod gets. It must create nothing."""

from mark_operator.cli.errors import InputError
from mark_operator.cli.operator_settings import trainer_image
from mark_operator.cli.session import Session, own_path
from mark_operator.cli.workspace.copy_pod import Copying

DEFAULT_USER = 1000


def choose_copying(session: Session, *, claim: str, image: str | None, read_only: bool = False) -> Copying:
    """The copy Pod for a claim: the given image, else that of the operator's Jobs, else that of a plan here."""
    known = trainer_image(session, None)
    user = known[1] if known else DEFAULT_USER
    chosen = image or (known[0] if known else _image_of_a_plan(session))
    if not chosen:
        raise InputError(
            "which image shall the copy Pod have? You may not read the operator's settings, and no run here has a plan",
            "name any image that the nodes have and that has python3, with --image or $MARK_IMAGE",
        )
    return Copying(claim=claim, image=chosen, user=user, read_only=read_only)


def _image_of_a_plan(session: Session) -> str | None:
    for run in session.items(own_path("TrainingRun", session.namespace)):
        for stage in (run.get("status", {}).get("plan") or {}).get("stages", []):
            return str(stage["image"])
    return None

"""Which images there are, what each is built from, and the name that follows from it."""

import hashlib
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from . import base_image, settings

IGNORED_FOLDERS = {"__pycache__"}


@dataclass(frozen=True)
class Image:
    """One image: its Containerfile and the files that it copies."""

    name: str
    containerfile: str
    sources: tuple[str, ...]
    flavour: str = ""

    def files(self) -> list[Path]:
        """Every file that goes into the image, relative to the repository."""
        found: list[Path] = []
        for source in (self.containerfile, *self.sources):
            path = settings.REPOSITORY / source
            found += [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
        relative = [path.relative_to(settings.REPOSITORY) for path in found]
        return sorted(path for path in relative if not IGNORED_FOLDERS.intersection(path.parts))

    def copy_to(self, folder: Path) -> None:
        """Copy the files as they are now: what is named and what is built is then the same."""
        for path in self.files():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(settings.REPOSITORY / path, folder / path)

    def reference(self, folder: Path | None = None) -> str:
        """The name for the files in a folder they were copied to; it is new when something that goes in is new."""
        if folder is None:
            with tempfile.TemporaryDirectory() as copied:
                self.copy_to(Path(copied))
                return self.reference(Path(copied))
        digest = hashlib.sha256(f"{base_image.REFERENCE}\0{self.flavour}\0".encode())
        for path in sorted(each for each in folder.rglob("*") if each.is_file()):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            digest.update(f"{path.relative_to(folder)}\0{content}\0".encode())
        suffix = f"-{self.flavour}" if self.flavour else ""
        return f"localhost/{self.name}:{digest.hexdigest()[:12]}{suffix}"

    def development_reference(self) -> str:
        """The name that always means the latest one built here."""
        return f"localhost/{self.name}:dev"


OPERATOR = Image(
    "mark-operator",
    "operator/Containerfile",
    ("operator/requirements.txt", "crds/mark_crds", "operator/mark_operator"),
)


# The GPU flavour of the same file is for clusters with GPUs: nobody needs it here.
TRAINER = Image(
    "mark-trainer",
    "trainer_image/Containerfile",
    ("trainer_image/requirements-cpu.txt", "crds/mark_crds", "trainer_image/mark_trainer"),
    flavour="cpu",
)
BY_NAME = {"operator": OPERATOR, "trainer": TRAINER}

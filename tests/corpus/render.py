"""Makes the test corpus: real licence texts, split by cluster into PDF documents and pre-training text.

    python tests/corpus/render.py --out build/corpus

A small base model is pre-trained on `pretraining/*.txt` and then fine-tuned and judged on `documents/*.pdf`; no cluster of
near-duplicates has texts in both, so the base has never seen what it is judged by. A second run finds nothing to do.
"""

import argparse
import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
TEXTS = HERE / "node_modules" / "spdx-license-list" / "spdx-full.json"
FORMAT_VERSION = 1

SHORTEST_TEXT_WORDS = 100
SHORTEST_DOCUMENT_WORDS = 450
LARGEST_DOCUMENT_CLUSTER_WORDS = 12_000
DOCUMENTS_OF_A_CLUSTER = 3
# Shares of these words that English prose exceeds, and the other languages of the list do not.
ENGLISH_WORDS = frozenset(["the", "of", "and", "to", "in", "or", "any", "this", "that"])
ENGLISH_SHARE = 0.15

# Texts whose own terms, or whose publisher's, allow verbatim copies: small enough to lie in the repository.
COMMITTED = (
    "AFL-3.0", "Artistic-2.0", "CC-BY-4.0", "CC-BY-SA-4.0", "CC0-1.0", "CDL-1.0", "CPL-1.0",
    "EPL-2.0", "LPPL-1.0", "LPPL-1.3c", "OSL-3.0", "QPL-1.0",
)  # fmt: skip
# Taken first from their cluster: well known, so that people recognise what the demo answers about.
PREFERRED = frozenset(COMMITTED) | {"Apache-2.0", "EUPL-1.2", "ODbL-1.0"}


@dataclass(frozen=True)
class Text:
    """One licence text."""

    name: str
    title: str
    body: str
    cluster: str

    @property
    def words(self) -> int:
        return len(self.body.split())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=REPOSITORY / "build" / "corpus", help="folder to make")
    parser.add_argument("--committed", action="store_true", help="write the PDFs of manifests/corpus instead")
    options = parser.parse_args()
    out: Path = REPOSITORY / "manifests" / "corpus" if options.committed else options.out
    recipe = _recipe()
    if not options.committed and _is_made(out, recipe):
        print(f"{out} is up to date")
        return 0
    _install_texts()
    texts = read_texts()
    documents, pretraining = split(texts)
    if options.committed:
        chosen = [text for text in documents if text.name in COMMITTED]
        assert len(chosen) == len(COMMITTED), "a committed text is no longer among the documents"
        _write_documents(out, chosen)
        return 0
    shutil.rmtree(out, ignore_errors=True)
    entries = _write_documents(out / "documents", documents) + _write_pretraining(out / "pretraining", pretraining)
    index = {"formatVersion": FORMAT_VERSION, "recipe": recipe, "entries": entries}
    (out / "index.json").write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    print(_summary(documents, pretraining))
    return 0


def read_texts() -> list[Text]:
    """The English texts of the list, each once, with their clusters; sorted by name."""
    from mark_trainer.near_duplicates import cluster

    entries: dict[str, Any] = json.loads(TEXTS.read_text(encoding="utf-8"))
    bodies: dict[str, str] = {}
    seen: set[str] = set()
    for name in sorted(entries):
        body = entries[name]["licenseText"].strip()
        words = re.findall(r"\w+", body.casefold())
        fingerprint = hashlib.sha256(" ".join(words).encode()).hexdigest()
        if len(words) >= SHORTEST_TEXT_WORDS and _is_english(words) and fingerprint not in seen:
            seen.add(fingerprint)
            bodies[name] = body
    clusters = cluster(bodies)
    return [Text(name, entries[name]["name"], body, clusters[name]) for name, body in bodies.items()]


def split(texts: list[Text]) -> tuple[list[Text], list[Text]]:
    """Documents and pre-training texts. A big family of licences has many words and is one cluster: it pre-trains."""
    clusters: defaultdict[str, list[Text]] = defaultdict(list)
    for text in texts:
        clusters[text.cluster].append(text)
    documents, pretraining = [], []
    for name in sorted(clusters):
        members = clusters[name]
        long = [text for text in members if text.words >= SHORTEST_DOCUMENT_WORDS]
        preferred = sorted(long, key=lambda text: (text.name not in PREFERRED, -text.words, text.name))
        small = sum(text.words for text in members) <= LARGEST_DOCUMENT_CLUSTER_WORDS
        if preferred and (small or preferred[0].name in PREFERRED):
            documents += preferred[:DOCUMENTS_OF_A_CLUSTER]
        else:
            pretraining += members
    return sorted(documents, key=lambda t: t.name), sorted(pretraining, key=lambda t: t.name)


def _write_documents(folder: Path, texts: list[Text]) -> list[dict[str, Any]]:
    from layout import Layout, write_pdf

    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for index, text in enumerate(texts):
        layout = Layout(
            columns=2 if index % 4 == 1 else 1,
            header=f"{text.title}    Page {{page}}" if index % 3 == 0 else "",
            footer="Draft of 12 March 2024 - page {page}" if index % 6 < 2 else "",
            font=index % 3,
            size=(9.0, 10.0, 11.0, 9.5, 12.0)[index % 5],
            letter_paper=index % 2 == 1,
            metadata_title=index % 5 != 0,
        )
        path = folder / f"{text.name}.pdf"
        write_pdf(path, text.title, text.body, layout)
        entries.append(_entry(path, "documents", text) | {"layout": asdict(layout)})
    return entries


def _write_pretraining(folder: Path, texts: list[Text]) -> list[dict[str, Any]]:
    folder.mkdir(parents=True)
    for text in texts:
        (folder / f"{text.name}.txt").write_text(f"{text.title}\n\n{text.body}\n", encoding="utf-8")
    return [_entry(folder / f"{text.name}.txt", "pretraining", text) for text in texts]


def _entry(path: Path, part: str, text: Text) -> dict[str, Any]:
    return {
        "path": f"{part}/{path.name}",
        "part": part,
        "title": text.title,
        "cluster": text.cluster,
        "words": text.words,
        "source": f"spdx-license-list {text.name}",
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }


def _is_english(words: list[str]) -> bool:
    return sum(word in ENGLISH_WORDS for word in words) >= ENGLISH_SHARE * len(words)


def _recipe() -> str:
    """Changes whenever the corpus would: the programs that make it and the pinned texts."""
    import reportlab

    files = [HERE / "render.py", HERE / "layout.py", HERE / "package-lock.json"]
    files.append(REPOSITORY / "trainer_image" / "mark_trainer" / "near_duplicates.py")
    total = hashlib.sha256(reportlab.Version.encode())
    for file in files:
        total.update(file.read_bytes())
    return total.hexdigest()


def _is_made(out: Path, recipe: str) -> bool:
    if not (out / "index.json").is_file():
        return False
    index = json.loads((out / "index.json").read_text(encoding="utf-8"))
    return index["recipe"] == recipe and all((out / entry["path"]).is_file() for entry in index["entries"])


def _install_texts() -> None:
    installed = HERE / "node_modules" / ".package-lock.json"
    lock = json.loads((HERE / "package-lock.json").read_text())["packages"]["node_modules/spdx-license-list"]
    if installed.is_file():
        found = json.loads(installed.read_text())["packages"].get("node_modules/spdx-license-list", {})
        if found.get("version") == lock["version"]:
            return
    subprocess.run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=HERE, check=True)


def _summary(documents: list[Text], pretraining: list[Text]) -> str:
    parts = {"documents": documents, "pretraining": pretraining}
    rows = [
        f"{name}: {len(texts)} texts in {len({t.cluster for t in texts})} clusters, {sum(t.words for t in texts)} words"
        for name, texts in parts.items()
    ]
    return "\n".join(rows)


if __name__ == "__main__":
    sys.exit(main())

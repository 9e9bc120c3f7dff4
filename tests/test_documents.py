"""The documents agree with each other and with the files that they name."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
WIDTH = 124
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def documents() -> list[str]:
    """Return the documents of the project: what git has, or would take."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    names = done.stdout.split() if done.returncode == 0 else [str(path.relative_to(ROOT)) for path in ROOT.glob("**/*.md")]
    return sorted(name for name in names if (ROOT / name).is_file() and ".venv" not in name)


DOCUMENTS = documents()


def anchors(text: str) -> set[str]:
    """Return what headings can be linked to, as GitHub names them."""
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_there_are_documents() -> None:
    assert {"README.md", "luxfuse/SEMANTICS.md", "luxfuse/docs/SETTINGS.md"} <= set(DOCUMENTS)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_to_what_there_is(document: str) -> None:
    text = (ROOT / document).read_text()
    for link in LINK.findall(text):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / document).parent / path if path else ROOT / document
        assert target.exists(), f"{document}: {link}"
        if anchor:
            assert anchor in anchors(target.read_text()), f"{document}: {link}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_lines_are_wrapped(document: str) -> None:
    """But for rows of tables, which cannot be."""
    lines = (ROOT / document).read_text().splitlines()
    assert [line for line in lines if len(line) > WIDTH and not line.startswith("|")] == []


PACKAGE = ROOT / "luxfuse"
ROOMS = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}


def source_of(place: Path) -> str:
    files = sorted(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]
    return "\n".join(file.read_text() for file in files if file.is_file())


def lacking(name: str) -> str:
    """Return what there is not of a ``name`` like `vfs.files.read` or `FileRecord.stored`."""
    first, *rest = name.split(".")
    if first not in ROOMS:
        rest = [first, *rest]
    place = PACKAGE / first if first in ROOMS else PACKAGE
    while rest and ((place / rest[0]).is_dir() or (place / f"{rest[0]}.py").is_file()):
        place /= rest.pop(0)
    source = source_of(place) + (source_of(ROOT / "tests/support") if place == PACKAGE else "")
    return next((word for word in rest if not re.search(rf"\b{word}\b", source)), "")


@pytest.mark.parametrize("document", ["luxfuse/ARCHITECTURE.md", "luxfuse/docs/CLUSTER.md", ".github/CONTRIBUTING.md"])
def test_modules_and_classes_that_are_named_are_there(document: str) -> None:
    words = re.findall(r"`([A-Za-z_]+(?:\.[A-Za-z_]+)*)(?:\(\))?`", (ROOT / document).read_text())
    modules = {word for word in words if word.split(".")[0] in ROOMS and "." in word and not word.endswith(".json")}
    classes = {word for word in words if re.match(r"[A-Z][a-z]+[A-Za-z]*(\.|$)", word) and not (ROOT / word).exists()}
    assert modules
    assert classes
    assert {name: word for name in sorted(modules | classes) if (word := lacking(name))} == {}

"""The documents agree with each other and with the files that they name."""

from __future__ import annotations

import ast
import errno
import functools
import os
import re
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest

from tests.support import manual

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
    """But for rows of tables, and headings, which cannot be."""
    lines = (ROOT / document).read_text().splitlines()
    assert [line for line in lines if len(line) > WIDTH and not line.startswith(("|", "#"))] == []


PACKAGE = ROOT / "luxfuse"
ROOMS = {path.stem for path in PACKAGE.iterdir() if (path / "__init__.py").exists() or path.suffix == ".py"}


@functools.cache
def sources_in(place: Path) -> list[str]:
    files = sorted(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]
    return [file.read_text() for file in files if file.is_file()]


def members(classes: list[ast.ClassDef]) -> set[str]:
    """Return what classes have of their own: methods, fields, and attributes that their methods set."""
    found = set()
    for node in (node for each in classes for node in ast.walk(each)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.add(node.attr)
    return found


@functools.cache
def words_in(place: Path) -> set[str]:
    return {word for source in sources_in(place) for word in re.findall(r"\w+", source)}


@functools.cache
def parsed() -> tuple[dict[str, list[ast.ClassDef]], set[str]]:
    """Return the classes of the package, and of what tests share, by name, and the texts of the package's code.

    Texts have NUL for what is filled in.
    """
    found, texts = defaultdict(list), set()
    for place in (PACKAGE, ROOT / "tests/support"):
        for node in (node for source in sources_in(place) for node in ast.walk(ast.parse(source))):
            if isinstance(node, ast.ClassDef):
                found[node.name].append(node)
            elif place != PACKAGE:
                continue
            elif isinstance(node, ast.JoinedStr):
                texts.add("".join(v.value if isinstance(v, ast.Constant) else "\0" for v in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.add(re.sub(r"%[-\d.]*[a-z]", "\0", node.value))
    return found, texts


def classes() -> dict[str, list[ast.ClassDef]]:
    return parsed()[0]


def has(name: str, member: str) -> bool:
    """Whether a class of that name, or one that it is made from, has a member."""
    named = classes().get(name, [])
    bases = {base.id for each in named for base in each.bases if isinstance(base, ast.Name)}
    return member in members(named) or any(has(base, member) for base in bases)


def lacking(name: str) -> str:
    """Return what there is not of a ``name`` like `vfs.files.read` or `FileRecord.stored`."""
    first, *rest = name.split(".")
    if first not in ROOMS:
        if first in classes():
            return next((member for member in rest[:1] if not has(first, member)), "")
        rest = [first, *rest]
    place = PACKAGE / first if first in ROOMS else PACKAGE
    while rest and ((place / rest[0]).is_dir() or (place / f"{rest[0]}.py").is_file()):
        place /= rest.pop(0)
    if place == PACKAGE:
        return "" if any(re.search(rf"^{first} = ", source, re.MULTILINE) for source in sources_in(place)) else first
    return next((word for word in rest if word not in words_in(place)), "")


@pytest.mark.parametrize("document", ["luxfuse/ARCHITECTURE.md", "luxfuse/docs/CLUSTER.md", ".github/CONTRIBUTING.md"])
def test_modules_and_classes_that_are_named_are_there(document: str) -> None:
    words = re.findall(r"`([A-Za-z_]\w*(?:\.\w+)*)(?:\(\))?`", (ROOT / document).read_text())
    modules = {word for word in words if word.split(".")[0] in ROOMS and "." in word and not word.endswith(".json")}
    named = {word for word in words if re.match(r"[A-Z][a-z]+[A-Za-z]*(\.|$)", word) and not (ROOT / word).exists()}
    assert modules
    assert named
    assert {name: word for name in sorted(modules | named) if (word := lacking(name))} == {}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_files_that_are_named_are_there(document: str) -> None:
    named = re.findall(r"`([\w./]+/\w+\.(?:py|c|md))`", (ROOT / document).read_text())
    places = (ROOT, PACKAGE, (ROOT / document).parent)
    assert [name for name in named if not any((place / name).is_file() for place in places)] == []


def test_the_map_of_vfs_has_every_module() -> None:
    text = (PACKAGE / "ARCHITECTURE.md").read_text()
    table = text.partition("### The modules of vfs/\n")[2].partition("\n#")[0]
    there = {path.stem for path in (PACKAGE / "vfs").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert there - {"__init__"} - set(re.findall(r"`(\w+)/?`", table)) == set()


def messages() -> set[str]:
    """Return the texts of the package's code, and the system's texts for errors."""
    return parsed()[1] | {os.strerror(number) for number in errno.errorcode}


def test_messages_that_can_be_looked_up_are_those_that_come() -> None:
    texts = messages()
    headings = re.findall(r"^### (.*)$", (PACKAGE / "docs/TROUBLESHOOTING.md").read_text(), re.MULTILINE)
    parts = {part for heading in headings for quoted in re.findall(r"`([^`]+)`", heading) for part in quoted.split("…")}
    looked_up = {part.strip(" :;,()") for part in parts if len(part) > 8}
    assert len(looked_up) > 50
    assert [part for part in sorted(looked_up) if not any(part in text for text in texts)] == []


def test_the_manual_page_has_every_command_as_its_help_has_it() -> None:
    assert manual.PAGE.read_text() == manual.page(), "write it anew: python -m tests.support.manual"
    if shutil.which("groff") is not None:
        command = ["groff", "-ww", "-man", "-Tutf8", "-z", str(manual.PAGE)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stderr) == (0, "")

"""Another luxfuse, for tests of one that goes on where this one serves: a tree of links, with some files changed."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

import luxfuse

PACKAGE = Path(luxfuse.__file__).parent


def other_version(directory: Path, version: str, changes: Mapping[str, tuple[str, str]]) -> str:
    """Return the interpreter of another luxfuse, installed in ``directory``; ``changes``: (text, new text) by file."""
    tree = directory / "tree" / "luxfuse"
    shutil.copytree(PACKAGE, tree, copy_function=os.symlink)
    for name, (before, after) in {"__init__.py": (luxfuse.__version__, version), **changes}.items():
        text = (PACKAGE / name).read_text()
        assert before in text, f"{name} has no {before!r}"
        (tree / name).unlink()
        (tree / name).write_text(text.replace(before, after))
    base = Path(sys.executable).resolve()
    packages = directory / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    packages.mkdir(parents=True)
    (packages / "other.pth").write_text(f"{tree.parent}\n{sysconfig.get_path('platlib')}\n")
    (directory / "pyvenv.cfg").write_text(f"home = {base.parent}\n")
    (directory / "bin").mkdir()
    (directory / "bin" / "python").symlink_to(base)
    return str(directory / "bin" / "python")

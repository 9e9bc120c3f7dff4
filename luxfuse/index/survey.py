"""Whether the indexes and journals of this machine can be used, looked at without using these."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import lmdb
import msgspec

from luxfuse.index import leftovers
from luxfuse.index.journal_file import FORMAT_VERSION as JOURNAL_VERSION
from luxfuse.index.soundness import ASIDE, examine
from luxfuse.index.store import DOUBTED
from luxfuse.index.store import FORMAT_VERSION as INDEX_VERSION
from luxfuse.index.transactions import Transaction
from luxfuse.index.uncommitted import U64, Table

_NOBODYS = leftovers.Origin(mountpoint="", source="", source_id="", cache="")


class Unsound(NamedTuple):
    """A directory that the next mount cannot use, or has set aside. ``holds_changes``: there may be some nowhere else."""

    path: Path
    text: str
    advice: str
    holds_changes: bool


def survey(state_dir: Path) -> Iterator[Unsound]:
    """Yield what is wrong with those that no daemon uses. Raises OSError if the directory cannot be read."""
    for kind, look in (("journal", _journal), ("index", _index)):
        try:
            paths = sorted((state_dir / kind).iterdir())
        except FileNotFoundError:
            continue
        for path in paths:
            if path.name.endswith(ASIDE):
                set_aside = time.strftime("%Y-%m-%d", time.localtime(path.stat().st_mtime))
                wait = "once nothing that was written is missed, " if kind == "journal" else ""
                yield Unsound(path, f"damaged, and set aside (last written {set_aside})", f"{wait}remove it", False)
            elif (path / "data.mdb").exists() and not leftovers.in_use(state_dir, path.name):
                problem = look(path)
                if problem is not None:
                    yield problem


def _journal(path: Path) -> Unsound | None:
    try:
        leftovers.read(path, _NOBODYS)
    except leftovers.OtherVersion as exc:
        text = f"has format {exc.found}, this luxfuse knows {JOURNAL_VERSION}"
        return Unsound(path, text, "use the luxfuse that wrote it: it may hold what was not uploaded yet", True)
    except (OSError, msgspec.MsgspecError, lmdb.Error) as exc:
        advice = f"mv {path} {path}{ASIDE}, and mount again: the copy in the cache directory says what was not uploaded yet"
        return Unsound(path, f"cannot be used ({exc})", advice, True)
    return None


def _index(path: Path) -> Unsound | None:
    aside = "nothing: the next mount sets it aside, and begins with a cold cache"
    if (path / DOUBTED).exists():
        return Unsound(path, "damaged, as was seen when it was last used", aside, False)
    try:
        with leftovers.looking(path, Table) as (txn, databases):
            found = txn.get(b"format", db=databases[Table.META])
            if found is not None and len(found) == U64.size and U64.unpack(found)[0] != INDEX_VERSION:
                text = f"has format {U64.unpack(found)[0]}, this luxfuse knows {INDEX_VERSION}"
                return Unsound(path, text, "use the luxfuse that wrote it, or remove it: the cache is cold then", False)
            examine(Transaction(txn, databases), thorough=False)
    except (OSError, ValueError, lmdb.Error) as exc:
        return Unsound(path, f"damaged ({exc})", aside, False)
    return None

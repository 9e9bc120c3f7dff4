"""What the credentials allow in the bucket, by trying: under names of its own, which are removed again."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice

from luxfuse.cli.checkup.findings import Finding, fail, ok, warn
from luxfuse.core.units import format_count
from luxfuse.errors import (
    AccessDenied,
    Archived,
    BucketMissing,
    LuxError,
    NotFound,
    ReadOnlyStore,
    StoreError,
    StoreUnavailable,
    VersionChanged,
)
from luxfuse.types import ABSENT, ObjectInfo
from luxfuse.understore.base import UnderStore
from luxfuse.understore.locations import family_of

PREFIX = ".luxfuse-doctor-"
DATA = b"written by luxfuse doctor; may be removed\n"
CHANGED = b"written again by luxfuse doctor; may be removed\n"
METADATA = {"luxfusedoctor": "1"}  # Azure takes no hyphen

PAGES, DIRECTORIES = 2, 16
"""How far an object is looked for that can be read: in so many pages of each directory, and so many directories."""

_NEEDED = {
    "s3": {
        "list": "s3:ListBucket", "get": "s3:GetObject", "put": "s3:PutObject", "delete": "s3:DeleteObject",
        "copy": "s3:GetObject and s3:PutObject", "multipart": "s3:PutObject and s3:AbortMultipartUpload",
    },
    "gs": {
        "list": "storage.objects.list", "get": "storage.objects.get", "put": "storage.objects.create and .delete",
        "delete": "storage.objects.delete", "copy": "storage.objects.create", "multipart": "storage.objects.create",
    },
    "az": dict.fromkeys(
        ("list", "get", "put", "delete", "copy", "multipart"), "the role Storage Blob Data Contributor (a SAS: racwdl)"
    ),
}  # fmt: skip
"""By family of stores, the permission that each step needs."""


class _Look:
    """Looks for an object with content. ``names``: all that were seen."""

    def __init__(self, store: UnderStore) -> None:
        self._store = store
        self._waiting: list[str] = []
        self.names = 0
        self.found: ObjectInfo | None = None

    def into(self, directory: str) -> None:
        """Look at the first pages of a directory; what is below it comes next. Raises `LuxError`."""
        below: list[str] = []
        for page in islice(self._store.list_directory(directory), PAGES):
            self.names += len(page.objects) + len(page.prefixes)
            below += page.prefixes[:DIRECTORIES]
            self.found = next((info for info in page.objects if info.size > 0 and not info.key.endswith("/")), None)
            if self.found is not None:
                return
        self._waiting += reversed(below[:DIRECTORIES])

    def below(self) -> None:
        """Look in the directories that were seen, and those in them, until there is one. Raises `LuxError`.

        One that may not be listed, as lost+found, tells nothing of the others: it is told of if there is none in those.
        """
        closed: AccessDenied | None = None
        for _ in range(DIRECTORIES):
            if self.found is None and self._waiting:
                try:
                    self.into(self._waiting.pop())
                except AccessDenied as exc:
                    closed = closed or exc
        if self.found is None and closed is not None:
            raise closed


class Permissions:
    """Tries one store after another request. ``read_only``: nothing is written."""

    def __init__(self, store: UnderStore, source: str, *, read_only: bool) -> None:
        self._store = store
        self._needed = _NEEDED.get(family_of(source) or "", {})
        self._read_only = read_only
        self._key = f"{PREFIX}{secrets.token_hex(8)}"
        self._written: list[str] = []
        self._uploads: list[str] = []

    def try_all(self) -> Iterator[Finding]:
        """Try everything, and clean up, also where it ends early."""
        refused = self._attempt("list", self._store.probe)
        if refused is not None:
            yield refused
            return
        yield from self._list()
        if self._read_only:
            yield ok("put", "not tried (--read-only, or the mount is)")
            return
        if not self._store.abilities.writable:
            yield ok("put", "this kind of store cannot be written to: the mount is read-only")
            return
        try:
            yield from self._write()
        finally:
            tried, left = bool(self._written), self._clean_up()
        if tried:
            yield left or ok("delete", "allowed; nothing is left of the trial")

    # -- steps

    def _attempt(self, name: str, action: Callable[[], object]) -> Finding | None:
        """Return a finding if ``action`` fails."""
        try:
            action()
        except AccessDenied as exc:
            needed = self._needed.get(name)
            return fail(name, str(exc), f"allow {needed} in the bucket's policy" if needed else "allow it to this user")
        except StoreUnavailable as exc:
            return fail(name, str(exc), "try again in a moment; if it stays, ask those who run the store")
        except BucketMissing as exc:
            return fail(name, str(exc), "make the bucket, or correct its name, or the endpoint")
        except LuxError as exc:
            return fail(name, str(exc), "see what the store's documents, or its log, say about this answer")
        return None

    def _list(self) -> Iterator[Finding]:
        look = _Look(self._store)
        refused = self._attempt("list", lambda: look.into(""))
        yield refused or ok("list", f"allowed ({format_count(look.names, 'name')} seen in the top directory)")
        if refused is None and self._read_only:
            yield self._read_any(look)

    def _read_any(self, look: _Look) -> Finding:
        """Read a byte of what is there, as nothing is to be written."""
        refused = self._attempt("list", look.below)
        if refused is not None:
            return warn("get", f"not tried: no object with content was found before this: {refused.text}", refused.advice)
        found = look.found
        if found is None:
            return ok("get", f"not tried: no object with content was found among {format_count(look.names, 'name')}")

        read_text = "a byte of an object was read"

        def read() -> None:
            nonlocal read_text
            try:
                self._store.read(found.key, 0, 1, found.version)
            except (NotFound, VersionChanged):  # somebody changes it just now: it was looked at all the same
                read_text = "an object was asked for that is just being changed"
            except Archived:
                read_text = "an object was asked for that is in an archive, and has to be restored before it is read"

        return self._attempt("get", read) or ok("get", f"allowed ({read_text})")

    def _write(self) -> Iterator[Finding]:
        key = self._key
        self._written.append(key)
        made: list[ObjectInfo] = []
        refused = self._attempt("put", lambda: made.append(self._store.put(key, DATA, METADATA)))
        if refused is not None:
            if self._absent(key):
                self._written.remove(key)
            yield fail("put", refused.text, f"{refused.advice}, or mount with --read-only")
            return
        yield ok("put", "allowed")
        yield self._get(key)
        yield self._conditions(key, made[0].version)
        yield self._copy(key)
        yield self._multipart(f"{key}-parts")

    def _absent(self, key: str) -> bool:
        try:
            self._store.head(key)
        except NotFound:
            return True
        except StoreError:
            return False
        return False

    def _get(self, key: str) -> Finding:
        found: list[bytes] = []
        kept: list[bool] = []

        def read() -> None:
            info = self._store.head(key)
            kept.append((info.metadata or {}).get("luxfusedoctor") == "1")
            found.append(bytes(self._store.read(key, 0, info.size, info.version)))

        refused = self._attempt("get", read)
        if refused is not None:
            return refused
        if found != [DATA]:
            return fail(
                "get", "what was read is not what was written", "something between here and the store changes content"
            )
        if self._store.abilities.metadata and not kept[0]:
            return warn(
                "get", "allowed, but the store lost the object's metadata",
                "mode, owner and times of files will not be kept; see the documents of the server",
            )  # fmt: skip
        return ok("get", "allowed; the content is what was written")

    def _conditions(self, key: str, version: str) -> Finding:
        """Try what all that is uploaded depends on; ``version``: of the object that is there."""
        if not self._store.abilities.conditional:
            return ok(_CONDITIONS, "this kind of store has none: the later of two writers of one file wins")
        try:
            wrong = self._wrong_conditions(key, version)
        except AccessDenied as exc:
            needed = self._needed.get("put", "it")
            return fail(_CONDITIONS, str(exc), f"allow {needed} with conditions in the bucket's policy")
        except LuxError as exc:
            return warn(_CONDITIONS, f"refused: {exc}", _UNSEEN)
        return wrong or ok(_CONDITIONS, "honoured: nobody's change is overwritten unseen")

    def _wrong_conditions(self, key: str, version: str) -> Finding | None:
        """Put as a new file is, as one that is as it was, and as one that has changed since. Raises `LuxError`."""
        if self._replaces(key, DATA, ABSENT):
            return warn(_CONDITIONS, "the server ignores that there is to be no object yet (If-None-Match)", _UNSEEN)
        if not self._replaces(key, CHANGED, version):
            return fail(
                _CONDITIONS, "the server refuses to replace an object that is as it was (If-Match)",
                "use a server that knows If-Match: no change of a file that it has would be uploaded",
            )  # fmt: skip
        if self._replaces(key, DATA, version):
            return warn(_CONDITIONS, "the server ignores in which version an object is to be (If-Match)", _UNSEEN)
        return None

    def _replaces(self, key: str, data: bytes, expect: str) -> bool:
        """Whether an object is replaced by a put that wants it to be in a version. Raises `LuxError`."""
        try:
            self._store.put(key, data, METADATA, expect=expect)
        except VersionChanged:
            return False
        return True

    def _copy(self, key: str) -> Finding:
        target = f"{key}-copy"
        self._written.append(target)
        return self._attempt("copy", lambda: self._store.copy(key, target)) or ok("copy", "allowed: files can be renamed")

    def _multipart(self, key: str) -> Finding:
        if not self._store.abilities.multipart:
            return ok("multipart", "this kind of store has none: large files go in one request")
        self._written.append(key)

        def upload() -> None:
            # One part may be short: it is the last.
            self._uploads.append(self._store.begin_upload(key, METADATA))
            part = self._store.upload_part(key, self._uploads[-1], 1, DATA)
            self._store.complete_upload(key, self._uploads[-1], [(1, part)])
            self._uploads.clear()

        return self._attempt("multipart", upload) or ok("multipart", "allowed: large files go in parts")

    def _clean_up(self) -> Finding | None:
        """Remove all that was written; returns a finding if something is left, or may be."""
        for upload in self._uploads:
            with suppress(LuxError):
                self._store.abort_upload(f"{self._key}-parts", upload)
        if not self._written:
            return None
        failures: list[str] = []

        def remove() -> None:
            failures.extend(str(error) for error in self._store.delete(self._written).values())

        refused = self._attempt("delete", remove)
        if refused is None and not failures:
            return None
        return fail(
            "delete", refused.text if refused is not None else failures[0],
            f"remove by hand what the trial left: {', '.join(self._written)}; "
            + (refused.advice if refused is not None else "then see why it is refused"),
        )  # fmt: skip


_CONDITIONS = "conditional put"
_UNSEEN = "let only one machine write each file, or use a server that knows If-Match and If-None-Match"


def check_permissions(store: UnderStore, source: str, *, read_only: bool) -> Iterator[Finding]:
    """Try what a mount would do. Where the store cannot be written to, that is no fault."""
    try:
        yield from Permissions(store, source, read_only=read_only).try_all()
    except ReadOnlyStore as exc:
        yield ok("put", str(exc))

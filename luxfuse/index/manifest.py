"""Manifests: the names of a whole source in one file, as the store listed them.

A manifest is text, compressed as gzip does, one JSON value a line:

    {"luxfuse": "manifest", "format": 1, "source": "s3://bucket", "source_id": "...", "made_s": 1790000000.0}
    {"directory": "", "asked_s": 1790000000.0}
    ["a", "d"]
    ["b.jpg", "f", 1234, "\"etag\"", 1790000000000000000]
    {"directory": "a", "asked_s": 1790000000.5}
    ["c", "f", 1, "\"etag\"", 1790000000000000000, [420, 1000, 1000, null, null, null, null, null]]
    {"directories": 2, "entries": 3, "sha256": "..."}

After each directory come all of its entries; a directory comes after the one that it is in. ``asked_s``: when the store was
asked for it, in seconds since the epoch. An entry has name, kind (``d`` directory, ``f`` file, ``l`` symlink), size,
version and time of the last change in nanoseconds, and what is known of its attributes, as `entries.Attributes` has them
(byte strings in base64); a directory may lack all but the first two. The last line has the SHA-256 of all before it.

So a file that ends early, or of which a byte is another one, is known as damaged before anything of it is used.
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import os
import secrets
import stat
import zlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from luxfuse.core.names import name_of
from luxfuse.durable import on_behalf_of, sync_directory
from luxfuse.errors import LuxError
from luxfuse.index.entries import Attributes, Found
from luxfuse.types import Kind

FORMAT = 1
LEVEL = 5
CHUNK_BYTES = 1 << 20
PART_ENTRIES = 20_000
"""Entries that are read at once."""
LINE_BYTES = 1 << 20
"""No line is longer: names have 255 bytes at most, attributes some thousand."""
_MOST = (1 << 63) - 1
_ID, _TIME = (0, (1 << 32) - 1), (-_MOST, _MOST)
_LIMITS = ((0, 0o7777), _ID, _ID, _TIME, _TIME, _TIME, _ID)
"""Of the numbers of `Attributes`."""
_KINDS = {Kind.DIRECTORY: "d", Kind.FILE: "f", Kind.SYMLINK: "l"}
_KINDS_BY_LETTER = {letter: kind for kind, letter in _KINDS.items()}
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.decode

Item = tuple[Found, Attributes | None]


class ManifestRefused(LuxError):
    """A manifest cannot be read, or is not one of this source. The text is one line."""


class Head(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The first line. ``source_id``: `luxfuse.config.Settings.source_id`; ``made_s``: when it was begun."""

    luxfuse: str = "manifest"
    format: int = FORMAT
    source: str
    source_id: str
    made_s: float


class Directory(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Begins a directory."""

    directory: str
    asked_s: float


class End(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The last line."""

    directories: int
    entries: int
    sha256: str


class Part(NamedTuple):
    """Entries of a directory, ``last``: all that are left of it. It was asked for at ``asked_s``."""

    directory: str
    asked_s: float
    items: list[Item]
    last: bool


class ManifestWriter:
    """Writes one, under another name until `finish`. Everything but `close` raises OSError, which names the manifest."""

    def __init__(self, path: Path, head: Head) -> None:
        self._path = path
        self._draft = path.with_name(f".luxfuse-{secrets.token_hex(8)}.part")
        with on_behalf_of(path):
            if path.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            fd = os.open(self._draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._raw = os.fdopen(fd, "wb")
        self._file = gzip.GzipFile("", "wb", LEVEL, self._raw, mtime=0)
        self._sum = hashlib.sha256()
        self.directories = self.entries = 0
        self._write([_encode(head)])

    def _write(self, lines: list[bytes]) -> None:
        text = b"\n".join(lines) + b"\n"
        self._sum.update(text)
        with on_behalf_of(self._path):
            self._file.write(text)

    def begin(self, directory: str, asked_s: float) -> None:
        """Begin a directory; its entries follow."""
        self.directories += 1
        self._write([_encode(Directory(directory, asked_s))])

    def add(self, items: Iterable[Item]) -> None:
        """Add entries of the directory that was begun last."""
        lines = [_line(found, attributes) for found, attributes in items if found.kind in _KINDS]
        if lines:
            self.entries += len(lines)
            self._write(lines)

    def finish(self) -> None:
        """Write the end, and give the file its name, durably."""
        end = End(self.directories, self.entries, self._sum.hexdigest())
        with on_behalf_of(self._path):
            self._file.write(_encode(end) + b"\n")
            self._file.close()
            self._raw.flush()
            os.fsync(self._raw.fileno())
            self._raw.close()
            self._draft.replace(self._path)
            sync_directory(self._path.parent)

    def close(self) -> None:
        """Give it up, unless it is finished; may be called again."""
        with suppress(OSError):  # what is not written yet goes as well
            self._raw.close()
        self._draft.unlink(missing_ok=True)


def _line(found: Found, attributes: Attributes | None) -> bytes:
    values: list[Any] = [found.name.decode(), _KINDS[found.kind]]
    if found.kind is not Kind.DIRECTORY or attributes is not None:
        values += [found.size, found.version, found.mtime_ns]
    if attributes is not None:
        values.append(attributes)
    return _encode(values)


class ManifestFile:
    """One manifest, opened once: what is read is what was checked. Everything but `close` raises `ManifestRefused`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._raw = open(path, "rb", buffering=0, opener=_opener)  # noqa: SIM115 (`close`)
        except OSError as exc:
            raise ManifestRefused(f"{path}: {exc.strerror or exc}") from None
        if not stat.S_ISREG(os.fstat(self._raw.fileno()).st_mode):
            self.close()
            raise ManifestRefused(f"{path}: is no regular file")
        self._began = self._stamp()

    def _stamp(self) -> tuple[int, int, int]:
        st = os.fstat(self._raw.fileno())
        return st.st_ino, st.st_size, st.st_mtime_ns

    @property
    def identity(self) -> bytes:
        """What tells a manifest from others."""
        return " ".join(map(str, (self.path, *self._began))).encode()

    def close(self) -> None:
        """Close it; may be called again."""
        self._raw.close()

    def check(self, source_id: str, source: str) -> Head:
        """Return the head if the manifest is whole and of the source. Raises `ManifestRefused` with one line.

        It reads all of the file: about a second for a million names.
        """
        head = None
        sum_, tail = hashlib.sha256(), b""
        for chunk in self._chunks():
            if head is None:
                head = _head(self.path, chunk.partition(b"\n")[0], source_id, source)
            tail += chunk
            cut = tail.rfind(b"\n", 0, -1) + 1  # of the last line it is not known yet whether it is the end
            sum_.update(tail[:cut])
            tail = tail[cut:]
        try:
            end = msgspec.json.decode(tail, type=End)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise ManifestRefused(
                f"{self.path}: the manifest ends early; make it again with: luxfuse index export"
            ) from None
        if head is None or end.sha256 != sum_.hexdigest():
            raise self._damaged()
        return head

    def _damaged(self, why: str = "") -> ManifestRefused:
        return ManifestRefused(f"{self.path}: the manifest is damaged{why}; make it again with: luxfuse index export")

    def _chunks(self) -> Iterator[bytes]:
        """Yield the text from its beginning on."""
        unended = 0
        try:
            self._raw.seek(0)
            with gzip.GzipFile(fileobj=self._raw) as file:
                while chunk := file.read(CHUNK_BYTES):
                    end = chunk.rfind(b"\n")
                    unended = len(chunk) - 1 - end if end >= 0 else unended + len(chunk)
                    if unended > LINE_BYTES:
                        raise ManifestRefused(
                            f"{self.path}: is no manifest, as a line of it has more than {LINE_BYTES} bytes"
                        )
                    yield chunk
        except (EOFError, zlib.error, gzip.BadGzipFile) as exc:
            raise self._damaged(f" ({exc})") from None
        except OSError as exc:
            raise ManifestRefused(f"{self.path}: {exc.strerror or exc}") from None
        if self._stamp() != self._began:
            raise ManifestRefused(f"{self.path}: the manifest was written to while it was read; try again")

    def read(self) -> Iterator[Part]:
        """Yield what is in a manifest that was checked, directory by directory."""
        directory: Directory | None = None
        items: list[Item] = []
        for line in self._lines():
            try:
                if line.startswith(b"["):
                    if directory is None:
                        raise ValueError("an entry is in no directory")
                    items.append(_item(_decode(line)))
                    if len(items) >= PART_ENTRIES:
                        yield Part(directory.directory, directory.asked_s, items, last=False)
                        items = []
                    continue
                if directory is not None:
                    yield Part(directory.directory, directory.asked_s, items, last=True)
                directory, items = None, []
                if line.startswith(b'{"directory"'):
                    directory = msgspec.json.decode(line, type=Directory)
            except (msgspec.DecodeError, ValueError, LookupError, TypeError) as exc:
                raise ManifestRefused(
                    f"{self.path}: a line of the manifest cannot be understood ({exc}); make it again"
                ) from None

    def _lines(self) -> Iterator[bytes]:
        rest = b""
        for chunk in self._chunks():
            lines = (rest + chunk).split(b"\n")
            rest = lines.pop()
            yield from lines


def _head(path: Path, line: bytes, source_id: str, source: str) -> Head:
    try:
        known = msgspec.json.decode(line, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError):
        known = {}
    if known.get("luxfuse") != "manifest":
        raise ManifestRefused(f"{path}: is no manifest; make one with: luxfuse index export")
    if known.get("format") != FORMAT:
        raise ManifestRefused(
            f"{path}: the manifest has format {known.get('format')!r}, this luxfuse knows {FORMAT}; make it again"
        )
    try:
        head = msgspec.convert(known, Head)
    except msgspec.ValidationError as exc:
        raise ManifestRefused(f"{path}: the manifest's first line: {exc}; make it again") from None
    if head.source_id != source_id:
        raise ManifestRefused(
            f"{path}: the manifest is of {head.source}, and this is {source}; both must be written alike, with the same "
            "endpoint"
        )
    return head


def _opener(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe is not waited for


def _item(values: list[Any]) -> Item:
    """Return an entry. Raises what `read` expects of one that the index or the kernel could not take."""
    name, kind = name_of(values[0]), _KINDS_BY_LETTER[values[1]]
    if name is None:
        raise ValueError(f"{values[0]!r:.80} is no file name")
    if len(values) < 5:
        return Found(name, kind), None
    size, version, mtime_ns = int(values[2]), str(values[3]), int(values[4])
    if not 0 <= size <= _MOST or abs(mtime_ns) > _MOST or any(odd in version for odd in "\r\n\0"):
        raise ValueError(f"{values[0]!r:.80} has a size, version or time that no file has")
    attributes = msgspec.convert(values[5], Attributes) if len(values) > 5 else None
    if attributes is not None and not _can_be(attributes):
        raise ValueError(f"{values[0]!r:.80} has attributes that no file has")
    return Found(name, kind, size, version, mtime_ns), attributes


def _can_be(found: Attributes) -> bool:
    numbers = (found.mode, found.uid, found.gid, found.mtime_ns, found.atime_ns, found.ctime_ns, found.rdev)
    within = zip(numbers, _LIMITS, strict=True)
    return all(number is None or least <= number <= most for number, (least, most) in within)

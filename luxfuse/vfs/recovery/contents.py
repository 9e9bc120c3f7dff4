"""The contents of the files of the journal: staging files, and small contents in the journal itself."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from luxfuse.cache.page_cache import PageCache
from luxfuse.cache.staged import StagedBytes
from luxfuse.index.journal import FileRecord, Journal
from luxfuse.tiers.directory import refuse_if_read_only
from luxfuse.tiers.staging import Staging
from luxfuse.types import Kind
from luxfuse.workers import Threads

IO_THREADS = 4


class JournalContents:
    """Opens the contents of files that are to be uploaded."""

    def __init__(self, journal: Journal, staging: Staging, cache: PageCache, *, intact: bool = False) -> None:
        """``intact``: the machine did not go down, so staging files are as programs left them, and never behind."""
        self._intact = intact
        self._journal = journal
        self._staging = staging
        self._cache = cache
        self._threads = Threads(IO_THREADS)

    def has_own(self, number: int, record: FileRecord) -> bool:
        """Whether a file has content here, be it empty: not only its attributes were changed."""
        if record.content or record.size or self._journal.inline(number) is not None:
            return True
        return _was_staged(record) and self._staging.path_of(number).exists()

    def is_there(self, number: int, record: FileRecord) -> bool:
        """Whether the staging file of a file is not what the store has; one that is goes."""
        if record.content:
            return True
        if self._staging.is_left(number):
            return False
        try:
            st = self._staging.path_of(number).stat()
        except FileNotFoundError:
            return False
        if _was_staged(record) and (st.st_mtime_ns, st.st_size) != (record.stamp, record.size):
            return True  # a program wrote to it on its own
        self._staging.discard(number)
        return False

    def is_torn(self, number: int, record: FileRecord) -> bool:
        """Whether a staging file is not what was closed or synced last, and what was is elsewhere, or nowhere any more.

        It was emptied since; or the machine went down before all of it was on the disk: before what was promised was, or
        what a program wrote after the store had the file. Raises OSError EROFS if it is, and cannot be taken away now.
        """
        try:
            st = self._staging.path_of(number).stat()
        except FileNotFoundError:
            return False
        if record.emptied or not _was_staged(record):
            return not self._is_untouched(number, record, st) and self._may_be_changed(number)
        if record.kind is not Kind.FILE or self._journal.inline(number) is not None:
            return False
        if record.content:
            return self._is_short(record, st) and self._may_be_changed(number)
        if self._at_risk and st.st_mtime_ns > record.stamp:
            return self._may_be_changed(number)
        if self._at_risk:
            self._staging.discard(number)  # of what the store has, not all of which may have been on the disk
        return False

    def is_gone(self, number: int, record: FileRecord) -> bool:
        """Whether content that is to be uploaded is neither in a staging file, as it was promised, nor in the journal."""
        if not record.content or self._journal.inline(number) is not None:
            return False
        try:
            st = self._staging.path_of(number).stat()
        except FileNotFoundError:
            return record.size > 0
        return self._is_short(record, st)

    @property
    def _at_risk(self) -> bool:
        """Whether staging files may lack what was not synced."""
        return self._journal.rebooted and not self._intact

    def _is_short(self, record: FileRecord, st: os.stat_result) -> bool:
        """Whether a staging file lacks part of what was promised, and was not cut by a program.

        It may have waited for the disk, from when the machine went down until now.
        """
        older = st.st_mtime_ns < record.stamp or (self._at_risk and st.st_mtime_ns == record.stamp)
        return older and st.st_size < record.size

    def _is_untouched(self, number: int, record: FileRecord, st: os.stat_result) -> bool:
        """Whether no program has had the staging file of an open for writing: that was not answered yet."""
        if not _was_staged(record):
            return self._intact  # it is noted before it is answered, and then the journal is exact
        inline = self._journal.inline(number)
        if inline is not None:
            return st.st_size == len(inline) and self._staging.path_of(number).read_bytes() == inline
        return not record.content and (st.st_mtime_ns, st.st_size) == (record.stamp, record.size)

    def _may_be_changed(self, number: int) -> bool:
        refuse_if_read_only(self._staging.path_of(number).parent)
        return True

    def open(self, number: int, record: FileRecord, *, is_open: bool) -> StagedBytes | None:
        """Open the content of a file, from the journal where the staging file has not got it. Blocks.

        ``is_open``: by programs, which may have written to it since it was noted.
        Raises OSError where it would have to be written on a disk that lets it not, and then it is as it was.
        """
        path, inline = self._staging.path_of(number), self._journal.inline(number)
        try:
            fd = _open(path)
            self._staging.taken_over(number, fd)
        except FileNotFoundError:
            if inline is None and record.size:
                return None
            fd = self._written_anew(number, record)
        else:
            if inline is not None and self._is_behind(os.fstat(fd), record, is_open=is_open):
                os.close(fd)
                fd = self._written_anew(number, record)
        try:
            return self._taken_up(fd, number, record)
        except BaseException:
            os.close(fd)
            raise

    def _is_behind(self, st: os.stat_result, record: FileRecord, *, is_open: bool) -> bool:
        """Whether a staging file is not all of what was promised, as the machine went down.

        That may be a while ago: a record that waited for the disk is met by the successor of a daemon, too.
        """
        if self._intact and is_open:
            return False
        cut = st.st_size < record.size and (not self._intact or st.st_mtime_ns == record.stamp)
        return cut or st.st_mtime_ns < record.stamp

    def _written_anew(self, number: int, record: FileRecord) -> int:
        self._may_be_changed(number)  # else it is open for reading only
        inline = self._journal.inline(number)
        return self._staging.write_anew(number, inline or b"", None if inline is None else record.stamp)

    def _taken_up(self, fd: int, number: int, record: FileRecord) -> StagedBytes:
        path, st = self._staging.path_of(number), os.fstat(fd)
        if self._journal.inline(number) is not None and st.st_mtime_ns != record.stamp:
            self._staging.sync(fd)  # it was written to since, and takes the place of what the journal has
        base_bytes = min(record.base_size, st.st_size)  # it may have been cut since that was noted
        if not base_bytes:
            return StagedBytes(fd, path, cache=self._cache, threads=self._threads)
        # Up to there: the page in which the object ends may have a hole behind that.
        present = {page for pages in self._staging.data_ranges(fd, base_bytes) for page in pages}
        base = self._cache.acquire(record.base_key, record.base_version, record.base_size)
        return StagedBytes(
            fd,
            path,
            cache=self._cache,
            threads=self._threads,
            base=base,
            base_bytes=base_bytes,
            present=present,
        )


def _open(path: Path) -> int:
    """Open a staging file; where the disk has become read-only, to be read and uploaded. Raises OSError."""
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as exc:
        if exc.errno != errno.EROFS:
            raise
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def _was_staged(record: FileRecord) -> bool:
    """Whether a file had content here when it was noted: else a staging file was just begun, and has none yet."""
    return record.content or record.size > 0 or record.stamp != 0

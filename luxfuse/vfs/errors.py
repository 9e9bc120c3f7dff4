"""Errors of file system calls: what each one means here, and the errno that the program sees."""

from __future__ import annotations

import errno

from luxfuse.errors import AccessDenied, LuxError, StoreError, StoreUnavailable


class Stale(LuxError):
    """The inode number stands for a version that its name no longer has: the kernel looks the name up again."""

    errno = errno.ESTALE


class NoSuchName(LuxError):
    """The name does not exist."""

    errno = errno.ENOENT


class NotADirectory(LuxError):
    """The inode is no directory."""

    errno = errno.ENOTDIR


class KernelBusy(LuxError):
    """The kernel still serves what it knew."""

    errno = errno.EBUSY


class Moved(LuxError):
    """The directory, or one above it, was renamed while it was listed under its old name."""


class NotRecorded(LuxError):
    """The index does not take what the store said: its disk is full or fails."""


class Exists(LuxError):
    """There is something of that name already."""

    errno = errno.EEXIST


class NotEmpty(LuxError):
    """The directory has entries."""

    errno = errno.ENOTEMPTY


class BadName(LuxError):
    """No object key can stand for the name."""

    errno = errno.EILSEQ


class ReservedName(LuxError):
    """The name has a meaning of its own in the bucket."""

    errno = errno.EINVAL


class KeyTooLong(LuxError):
    """The path makes a key that the store does not take."""

    errno = errno.ENAMETOOLONG


class NotTaken(LuxError):
    """The path makes a key with a character that the store does not take."""

    errno = errno.EINVAL


class TooManyAttributes(LuxError):
    """Object metadata has no room for the extended attributes."""

    errno = errno.ENOSPC


class NotPermitted(LuxError):
    """That cannot be done here."""

    errno = errno.EPERM


class BadFlags(LuxError):
    """Such a rename is not known."""

    errno = errno.EINVAL


class BadHandle(StoreError):
    """The file handle is not open."""

    errno = errno.EBADF


class IsADirectory(LuxError):
    """The inode is a directory."""

    errno = errno.EISDIR


class NoRoom(LuxError):
    """The cache is full of what is not in the under-store yet."""

    errno = errno.ENOSPC


class TooMany(LuxError):
    """So many files are not in the under-store yet that no more are taken."""

    errno = errno.ENFILE


class Busy(LuxError):
    """The file cannot be written to now."""

    errno = errno.EBUSY


class Conflict(StoreError):
    """Somebody else has written the object meanwhile, and the mount was told to fail then."""

    errno = errno.ESTALE


class Replaced(StoreError):
    """Somebody else has replaced or removed the object whose attributes were changed here: there is nothing to push."""

    errno = errno.ESTALE


class NoSuchAttribute(LuxError):
    """The extended attribute does not exist."""

    errno = errno.ENODATA


class NameTooLong(LuxError):
    """No name is that long."""

    errno = errno.ENAMETOOLONG


class NotSupported(LuxError):
    """That kind of attribute is not kept."""

    errno = errno.EOPNOTSUPP


class ReadOnly(LuxError):
    """Nothing may be changed there."""

    errno = errno.EROFS


class NotALink(LuxError):
    """The inode is no symlink."""

    errno = errno.EINVAL


class Unserved(LuxError):
    """The under-store that is attached here cannot be served now."""


class AttachPoint(LuxError):
    """The name is an attach point, or a directory on the way to one."""

    errno = errno.EBUSY


class OtherVolume(LuxError):
    """A rename from one under-store to another; programs then copy."""

    errno = errno.EXDEV


class ReadOnlyVolume(LuxError):
    """The volume was attached for reading only."""

    errno = errno.EROFS


def leaves_what_is_known(error: Exception) -> bool:
    """Whether an answer that could not be had leaves what is known as it is: the store does not answer, or credentials have
    expired, or the answer could not be recorded."""
    expired = isinstance(error, AccessDenied) and error.renewable
    return expired or isinstance(error, StoreUnavailable | NotRecorded)

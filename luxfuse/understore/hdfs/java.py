"""The exceptions of Hadoop's servers, which both of its protocols name by their Java class, as Python's own."""

from __future__ import annotations

import errno
import os

from luxfuse.errors import AccessDenied, StoreRejected, StoreUnavailable

_DENIED = ("AccessControlException", "SecurityException", "AuthorizationException", "AuthenticationException")
_TOKENS = ("InvalidToken", "SecretManager$InvalidToken")
_REFUSED = ("InvalidPathException", "IllegalArgumentException", "HadoopIllegalArgumentException",
            "FSLimitException$PathComponentTooLongException", "PathComponentTooLongException",
            "FSLimitException$MaxDirectoryItemsExceededException", "MaxDirectoryItemsExceededException",
            "UnsupportedOperationException")  # fmt: skip
_LATER = ("SafeModeException", "StandbyException", "RetriableException", "ObserverRetryOnActiveException",
          "LeaseExpiredException", "AlreadyBeingCreatedException")  # fmt: skip
_NUMBERS = {
    "FileNotFoundException": errno.ENOENT,
    "FileAlreadyExistsException": errno.EEXIST,
    "ParentNotDirectoryException": errno.ENOTDIR,
    "PathIsNotEmptyDirectoryException": errno.ENOTEMPTY,
    "NSQuotaExceededException": errno.EDQUOT,
    "DSQuotaExceededException": errno.EDQUOT,
    "QuotaByStorageTypeExceededException": errno.EDQUOT,
    "QuotaExceededException": errno.EDQUOT,
}


def exception_of(class_name: str) -> Exception:
    """Return what an exception of the class means here. Hadoop's messages hold paths and traces and are not repeated."""
    name = class_name.rpartition(".")[2]
    number = _NUMBERS.get(name)
    if number is not None:
        return OSError(number, os.strerror(number))
    if name in _DENIED:
        return PermissionError(errno.EACCES, name)
    if name in _TOKENS:
        return AccessDenied("the delegation token is not valid, or has expired", renewable=True)
    if name in _REFUSED:
        return StoreRejected(f"HDFS refuses this ({name.rpartition('$')[2]})")
    if name in _LATER:
        return StoreUnavailable(f"HDFS does not serve this now ({name})")
    return StoreUnavailable(f"HDFS failed ({name.rpartition('$')[2]})")

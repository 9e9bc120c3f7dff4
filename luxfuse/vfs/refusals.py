"""Names and changes that are refused before anything is asked of the store."""

from __future__ import annotations

import os

from luxfuse.core.names import NAME_MAX_BYTES
from luxfuse.core.rules import PathPolicies
from luxfuse.index.names import ROOT_INODE
from luxfuse.vfs.errors import NameTooLong, ReadOnly, Stale
from luxfuse.vfs.namespace import Namespace


class Refusals:
    """The rules of one mount."""

    def __init__(self, namespace: Namespace, policies: PathPolicies) -> None:
        self._namespace = namespace
        self._policies = policies

    def check_length(self, name: bytes) -> None:
        """Raise `NameTooLong` for a name that no directory can hold."""
        if len(name) > NAME_MAX_BYTES:
            raise NameTooLong(f"a name of {len(name)} bytes; {NAME_MAX_BYTES} are the most")

    def check_new(self, parent: int, name: bytes) -> None:
        """Raise `NameTooLong`, or `ReadOnly` as `check_name` does, for a name that is to be made."""
        self.check_length(name)
        self.check_name(parent, name)

    def check_name(self, parent: int, name: bytes) -> None:
        """Raise `ReadOnly` where a rule of the configuration forbids changes."""
        if not self._policies.rules:
            return
        path = f"{self._namespace.places.prefix(parent)}{os.fsdecode(name)}"
        if self._policies.of(path).read_only:
            raise ReadOnly(f"{name!r} is read-only by a rule of the configuration")

    def check_inode(self, inode: int) -> None:
        """Raise `ReadOnly` as `check_name` does, for the name that an inode has."""
        if self._policies.rules and inode != ROOT_INODE:
            try:
                self.check_name(*self._namespace.places.place(inode))
            except Stale:
                return  # it has no name any more

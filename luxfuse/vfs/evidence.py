"""Whether the store's objects are found to carry attributes: `core.evidence`, kept in the index from run to run."""

from __future__ import annotations

import logging

from luxfuse.core.evidence import Evidence
from luxfuse.index.entries import NOTHING_SAID, Attributes
from luxfuse.index.names import Names

log = logging.getLogger(__name__)


class AttributeEvidence:
    """The findings of one mount."""

    def __init__(self, names: Names) -> None:
        self._names = names
        in_vain, found = names.evidence
        self._evidence = Evidence(in_vain, found=found)

    def note(self, directory: int | None, attributes: Attributes) -> None:
        """Take note of the attributes that an object in a directory has; in None: of those that one was given here."""
        carries = attributes != NOTHING_SAID
        if not carries and self._evidence.decided:
            self._evidence.note(directory, carries=False)
            return
        found, expected = self._evidence.found, directory is not None and self._evidence.expects(directory)
        changed = self._evidence.note(directory, carries=carries)
        if self._evidence.found != found:  # each directory is judged by itself from now on
            self._names.told.revoke_all()
        elif directory is not None and self._evidence.expects(directory) != expected:
            self._names.told.revoke_below(directory)
        if changed:
            try:
                self._names.put_evidence(self._evidence.in_vain, self._evidence.found)
            except OSError as exc:  # the index takes no changes now: the next run finds it out anew
                log.info("whether objects carry attributes cannot be recorded: %s", exc)

    def expects(self, directory: int) -> bool | None:
        """Whether the objects of a directory are thought to carry attributes; None: some have to be asked for."""
        return self._evidence.expects(directory)

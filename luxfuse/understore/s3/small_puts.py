"""Small objects of S3 that are put several at once, past obstore, over the connections of `direct`.

Said as `S3Client` says them: with the mount's options about objects, a checksum, and the condition. Only the plainest
success counts, and that the server is busy, or does not answer; all else is put once more as usual, and that knows what the
answer means.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from luxfuse.core.vain import InVain
from luxfuse.errors import StoreError, StoreUnavailable
from luxfuse.types import ABSENT, ObjectInfo
from luxfuse.understore.checksums import Added, Checksums
from luxfuse.understore.failures import from_status
from luxfuse.understore.gets.client import CONNECTION_FAILURES, ETAG
from luxfuse.understore.locations import has_odd_segment
from luxfuse.understore.metadata import checked_metadata
from luxfuse.understore.object_options import NO_CHECKSUM, ObjectOptions
from luxfuse.understore.s3.direct import Asked, DirectGets, Told
from luxfuse.understore.s3.properties import for_new
from luxfuse.understore.s3.saying import say, understand
from luxfuse.understore.s3.transport import Body
from luxfuse.understore.small_puts import PutAnswer, SmallPut, Tell

_PUT = "put_object"
_ABOUT_OBJECTS = (404, 409, 412, 507)
"""Answers that say nothing about how it is asked."""


class DirectPuts:
    """Puts small objects of one bucket. Thread-safe."""

    def __init__(self, direct: DirectGets, prefix: str, objects: ObjectOptions) -> None:
        self._direct = direct
        self._prefix = prefix
        self._new = objects.new
        self._checksums = {
            True: Checksums(objects.checksum, required=objects.checksum_required),
            False: Checksums(NO_CHECKSUM, required=False),
        }
        self._in_vain = InVain()

    @property
    def given_up(self) -> bool:
        """Whether this server is not to be asked so for now."""
        return self._in_vain.gives_up_all(time.monotonic())

    def put(self, puts: Sequence[SmallPut], tell: Tell, *, conditional: bool, checked: bool) -> None:
        """See `PutsSmall.put_small`. ``conditional``, ``checked``: whether the server takes conditions, and checksums."""
        said = [(n, *found) for n, put in enumerate(puts) if (found := self._say(put, conditional, checked)) is not None]

        def told(answers: Sequence[tuple[int, Told]]) -> None:
            found = []
            for number, each in answers:
                n, _, added = said[number]
                found.append((n, self._outcome(puts[n], added, each)))
            tell(found)

        if said:
            self._direct.requests([asked for _, asked, _ in said], told)

    def _say(self, put: SmallPut, conditional: bool, checked: bool) -> tuple[Asked, Added] | None:
        """Return a request, and what of it is about checksums; None: another client has to make it."""
        if has_odd_segment(put.key) or self._in_vain.gives_up(put.key, time.monotonic()):
            return None
        condition: dict[str, str] = {}
        if put.expect is not None and conditional:
            if put.expect != ABSENT and ETAG.fullmatch(put.expect) is None:
                return None
            condition = {"IfNoneMatch": "*"} if put.expect == ABSENT else {"IfMatch": put.expect}
        try:
            metadata = checked_metadata(put.metadata, f"PUT {put.key!r}")
        except StoreError:
            return None
        said = say(_PUT, {
            "Bucket": "", "Key": self._prefix + put.key, "Body": Body(put.data), "Metadata": metadata, **self._new,
            **for_new(put.key, None), **condition,
        })  # fmt: skip
        if said is None:
            return None
        added = self._checksums[checked].headers(said.operation, said.body)
        return Asked(said.method, said.key, said.query, {**said.headers, **added.headers}, said.body, brief=True), added

    def _outcome(self, put: SmallPut, added: Added, told: Told) -> PutAnswer:
        what, seconds = f"PUT {put.key!r}", told.seconds
        if told.answer is None:
            text = CONNECTION_FAILURES.get(told.code)
            return PutAnswer(seconds, error=StoreUnavailable(f"{what}: {text}") if text else None)
        status, headers, body = told.answer
        if status >= 400 and status not in _ABOUT_OBJECTS:
            code = (understand(_PUT, status, headers, body)[1] or {}).get("Code", "")
            error = from_status(status, what, code=code, family="s3")
            if type(error) is StoreUnavailable:
                return PutAnswer(seconds, error=error)
        version = headers.get("etag", "")
        if status == 200 and ETAG.fullmatch(version) is not None and _is_undamaged(added, headers):
            self._in_vain.end()
            return PutAnswer(seconds, ObjectInfo(put.key, len(put.data), version, 0, dict(put.metadata)))
        if status not in _ABOUT_OBJECTS:
            self._in_vain.note(put.key, time.monotonic())
        return PutAnswer(seconds)


def _is_undamaged(added: Added, headers: dict[str, str]) -> bool:
    try:
        Checksums.compare("PutObject", added, headers)
    except StoreUnavailable:
        return False
    return True

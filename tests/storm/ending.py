"""How a storm must end: everything is where it was promised to be, and nothing is left over."""

from __future__ import annotations

import hashlib
import time
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.storm.report import StormMount

FORGOTTEN_S = 60.0
"""For how long cache files that a kill has cost may be in the index."""
UNMOUNTED_S = 240.0


class Ending:
    """The end of a storm on ``mount``, which says what is wrong.

    ``given``: what the bucket had in the beginning, by key. ``files``: digests of what the processes saw last, by name;
    ``debris``: names of which they say nothing; ``failed``: names with which a call has failed.
    """

    def __init__(self, mount: StormMount, bucket: Path, given: Mapping[str, bytes], events: Sequence[Mapping[str, Any]], *,
                 keeper: bool, uploaded: bool, kills: int) -> None:  # fmt: skip
        self._mount, self._bucket, self._given = mount, bucket, given
        self._keeper, self._uploaded, self._kills = keeper, uploaded, kills
        self._files = {name: digest for event in events for name, digest in event.get("files", {}).items()}
        self._debris = {name for event in events for name in event.get("debris", ())}
        self._failed = {event["name"] for event in events if event.get("error")}
        self.aside = 0

    def wrong(self) -> Iterator[str]:
        """Unmount, look at everything, and say what is wrong."""
        if not self._mount.mounted:
            yield "nothing is mounted at the end"
            return
        yield from self._checked()
        if said := self._unmounted():
            yield said
            return
        if self._uploaded:
            yield from self._in_the_bucket()
            yield from self._left_over()
        else:
            yield from self._only_here()
        yield from self._set_aside()

    def _checked(self) -> Iterator[str]:
        """What `luxfuse check` finds. After a kill, missing cache files are forgotten in the background (R8)."""
        give_up_at = time.monotonic() + FORGOTTEN_S
        while True:
            done = self._mount.cli("check", self._mount.path)
            problems = done.stdout.splitlines()[:-1] if done.returncode else []
            missing = [line for line in problems if line.endswith("its cache file is missing")]
            if not done.returncode:
                return
            if not self._kills or missing != problems or time.monotonic() > give_up_at:
                yield f"check: {done.stdout} {done.stderr}"
                return
            time.sleep(1)

    def _unmounted(self) -> str:
        done = self._mount.unmount(timeout_s=UNMOUNTED_S)
        return f"unmount: {done.stderr}" if done.returncode else ""

    def _objects(self) -> dict[str, Path]:
        """Files of the bucket by key."""
        return {str(path.relative_to(self._bucket)): path for path in self._bucket.rglob("*") if path.is_file()}

    # -- what is brought to the store

    def _in_the_bucket(self) -> Iterator[str]:
        found = self._objects()
        for name, digest in self._files.items():
            if name not in found:
                yield f"the bucket lacks {name}"
            elif _digest(found[name].read_bytes()) != digest:
                yield f"the bucket has other bytes of {name}"
        known = self._files.keys() | self._debris | {f"{name}.rclonelink" for name in self._debris}
        stray = sorted(name for name in found if _is_a_workers(name) and name not in known)
        if stray:
            yield f"the bucket has what nobody has: {stray[:20]}"

    def _left_over(self) -> Iterator[str]:
        left = [path.name for path in self._mount.cache.glob("*/staging/[0-9a-f]*")]
        if left:
            yield f"staging files are left: {left[:10]}"

    # -- what never is (W4)

    def _only_here(self) -> Iterator[str]:
        """The bucket is as it was, and the next mount shows what the processes saw last."""
        found = self._objects()
        if strange := sorted(found.keys() - self._given.keys()):
            yield f"brought to the bucket: {strange[:20]}"
        for key, data in self._given.items():
            if key not in found or found[key].read_bytes() != data:
                yield f"the bucket's {key} is not as it was"
        self._mount.mount()
        shown = {
            f"{above}/{name}" for above in sorted({name.partition("/")[0] for name in self._files})
            for name in self._mount.do("list", f"{self._mount.path}/{above}")
        }  # fmt: skip
        if lacking := sorted(self._files.keys() - shown):
            yield f"after a remount there is no {lacking[:20]}"
        if stray := sorted(name for name in shown - self._files.keys() - self._debris if _is_a_workers(name)):
            yield f"after a remount there is what nobody has: {stray[:20]}"
        for name in sorted(self._files.keys() & shown):
            if self._mount.read(name)[1] != self._files[name]:
                yield f"after a remount {name} has other bytes"
        yield from self._checked()
        if said := self._unmounted():
            yield said

    # -- what was kept aside

    def _set_aside(self) -> Iterator[str]:
        """Without a keeper a kill leaves files that were never closed (R3); with one, those whose close failed (R6).

        And one that was just begun, whose name the journal had not got yet: the open is made once more by the successor.
        """
        aside = [path.name for path in self._mount.state.glob("recovered/*/*")]
        self.aside = len(aside)
        known = [name for name in aside if not name.startswith("unknown-")]
        strange = [name for name in known if urllib.parse.unquote(name.rsplit(".", 2)[0]) not in self._failed]
        if self._keeper and strange:
            yield f"set aside, though no call about it has failed: {strange[:10]}"


def _is_a_workers(name: str) -> bool:
    """Whether it is a file in the directory of a process."""
    above, _, file = name.partition("/")
    return above.startswith("w") and file != "" and "/" not in file and not file.startswith(".")


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()

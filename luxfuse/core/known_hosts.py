"""Which keys of an SSH server are known, by files in the form of OpenSSH's known_hosts (sshd(8))."""

from __future__ import annotations

import base64
import binascii
import enum
import hashlib
import hmac
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

PORT = 22
_MARKERS = ("@revoked", "@cert-authority")


@dataclass(frozen=True, slots=True)
class KnownKey:
    """``place``: "FILE:LINE"."""

    kind: str
    key: bytes
    place: str


class Verdict(enum.Enum):
    """The word of the files on the key that a server shows."""

    KNOWN = enum.auto()
    UNKNOWN = enum.auto()
    CHANGED = enum.auto()
    REVOKED = enum.auto()


@dataclass(frozen=True, slots=True)
class HostKeys:
    """The entries of the files for one server."""

    known: tuple[KnownKey, ...]
    revoked: tuple[KnownKey, ...]

    def judge(self, key: bytes) -> Verdict:
        """Decide about the key that the server shows."""
        if any(each.key == key for each in self.revoked):
            return Verdict.REVOKED
        if any(each.key == key for each in self.known):
            return Verdict.KNOWN
        return Verdict.CHANGED if self.known else Verdict.UNKNOWN


def host_keys(host: str, port: int, files: Mapping[str, str]) -> HostKeys:
    """Return what ``files``, contents by path, say of the server ``host``.

    At another port than 22 the keys of "[host]:port" count; only where there are none, those of the host, as with OpenSSH.
    """
    host = host.lower()
    lines = [line for path, text in files.items() for line in _lines(path, text)]
    found = HostKeys((), ())
    for name in [f"[{host}]:{port}", host] if port != PORT else [host]:
        here = [(marker, key) for marker, patterns, key in lines if _matches(name, patterns)]
        known = tuple(key for marker, key in here if not marker)
        found = HostKeys(found.known or known, found.revoked + tuple(key for marker, key in here if marker == "@revoked"))
    return found


def name_of(host: str, port: int) -> str:
    """Return how the files call a server."""
    return host if port == PORT else f"[{host}]:{port}"


def fingerprint(key: bytes) -> str:
    """Return what OpenSSH's programs show of a key."""
    return f"SHA256:{base64.b64encode(hashlib.sha256(key).digest()).decode().rstrip('=')}"


def _lines(path: str, text: str) -> Iterator[tuple[str, str, KnownKey]]:
    """Yield (marker, patterns, key) of the lines that can be read; OpenSSH passes over others, too."""
    for number, line in enumerate(text.splitlines(), 1):
        fields = line.split()
        marker = fields.pop(0) if fields and fields[0].startswith("@") else ""
        if len(fields) < 3 or fields[0].startswith("#") or (marker and marker not in _MARKERS):
            continue
        try:
            key = base64.b64decode(fields[2], validate=True)
        except (binascii.Error, ValueError):
            continue
        yield marker, fields[0], KnownKey(fields[1], key, f"{path}:{number}")


def _matches(name: str, patterns: str) -> bool:
    """Whether a line's patterns, between commas, mean a server; one after ``!`` excepts what it matches."""
    if patterns.startswith("|"):
        return _is_hash_of(name, patterns)
    found = False
    for pattern in patterns.lower().split(","):
        excepted = pattern.startswith("!")
        expression = re.escape(pattern.removeprefix("!")).replace(r"\*", ".*").replace(r"\?", ".")
        if re.fullmatch(expression, name):
            if excepted:
                return False
            found = True
    return found


def _is_hash_of(name: str, hashed: str) -> bool:
    parts = hashed.split("|")
    if len(parts) != 4 or parts[1] != "1":
        return False
    try:
        salt, digest = (base64.b64decode(part, validate=True) for part in parts[2:])
    except (binascii.Error, ValueError):
        return False
    return hmac.compare_digest(hmac.new(salt, name.encode(), hashlib.sha1).digest(), digest)

"""The file with the secret of a cluster: comments, and one or two keys of 64 hexadecimal digits, one a line.

The first key is used, both are accepted; so a key is exchanged in three steps, each on all nodes, in any order among
them: ``old, new``; then ``new, old``; then ``new``. The content of a file is never repeated in a message.
"""

from __future__ import annotations

import os
import re
import secrets
from pathlib import Path

from luxfuse.errors import ConfigError
from luxfuse.private import read_private

KEY_BYTES = 32
MOST_KEYS = 2
_MOST_FILE_BYTES = 4096
_KEY = re.compile(rf"[0-9a-fA-F]{{{2 * KEY_BYTES}}}")
_COMMENT = "# luxfuse: the key of a cluster. With it one can join: keep it secret, copy it to each node, mode 0600.\n"


def write_new(path: str | Path) -> None:
    """Make a key and write it, for its owner alone, durably. Raises `ConfigError`, also if there is such a file."""
    text = f"{_COMMENT}{secrets.token_hex(KEY_BYTES)}\n"
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except FileExistsError:
        raise ConfigError(f"{path} exists, and is left as it is; name another file, or remove it first") from None
    except OSError as exc:
        raise ConfigError(f"{path}: {exc.strerror}; name a file in a directory that can be written to") from None
    try:
        with os.fdopen(fd, "w", encoding="ascii") as f:
            os.fchmod(fd, 0o600)
            f.write(text)
            f.flush()
            os.fsync(fd)
    except OSError as exc:
        Path(path).unlink(missing_ok=True)
        raise ConfigError(f"{path}: {exc.strerror}; free space, or name another file") from None


def read_keys(path: str | Path) -> tuple[bytes, ...]:
    """Return the keys of a file, the one to use first. Raises `ConfigError` with one line that says what is wrong."""
    where = f"--cluster-key-file {path}"
    content = read_private(path, where, _MOST_FILE_BYTES, "; make one: luxfuse cluster init --key-file FILE")
    return _parse(content, where)


def _parse(content: bytes, where: str) -> tuple[bytes, ...]:
    if len(content) > _MOST_FILE_BYTES:
        raise ConfigError(f"{where}: is longer than {_MOST_FILE_BYTES} bytes: no key file")
    keys: list[bytes] = []
    for number, raw in enumerate(content.decode("latin-1").splitlines(), 1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        if _KEY.fullmatch(line) is None:
            raise ConfigError(f"{where}, line {number}: is no key: {2 * KEY_BYTES} hexadecimal digits were expected")
        keys.append(bytes.fromhex(line))
    if not keys:
        raise ConfigError(f"{where}: holds no key; make one: luxfuse cluster init --key-file FILE")
    if len(keys) > MOST_KEYS or len(set(keys)) != len(keys):
        raise ConfigError(f"{where}: write one key, or two different ones: the first is used, both are accepted")
    return tuple(keys)

"""The values of storage options, which users write as text, as clients want them."""

from __future__ import annotations

import json
from typing import Any

from luxfuse.core.units import NO, YES
from luxfuse.errors import ConfigError

_BOOLEAN = frozenset(["anon", "use_ssl", "requester_pays", "allow_invalid_certificates"])
_NUMBERS = frozenset(["port", "timeout", "max_concurrency", "blocksize", "block_size", "default_block_size"])


def convert(name: str, value: str) -> Any:
    """Give booleans, numbers and JSON objects their type; keys made of digits stay text."""
    plain = value.strip().lower()
    if name in _NUMBERS and plain.isdigit():
        return int(plain)
    if plain in ("true", "false") or name in _BOOLEAN:
        if plain not in YES + NO:
            raise ConfigError(f"storage option {name}: write true or false")
        return plain in YES
    if name.endswith("kwargs"):
        try:
            found = json.loads(value)
        except json.JSONDecodeError:
            found = None
        if not isinstance(found, dict):
            raise ConfigError(f"storage option {name}: is not JSON, or no object")
        return found
    return value

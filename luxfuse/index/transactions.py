"""Transactions of the index, as functions in other threads get them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from luxfuse.index.uncommitted import Table


class Transaction:
    """A transaction in a thread, as given to the function of `IndexStore.run`, or of `view`, which only reads."""

    def __init__(self, txn: Any, databases: dict[Table, Any]) -> None:
        self._txn = txn
        self._databases = databases

    def get(self, table: Table, key: bytes) -> bytes | None:
        """Return a value or None."""
        value: bytes | None = self._txn.get(key, db=self._databases[table])
        return value

    def put(self, table: Table, key: bytes, value: bytes) -> None:
        """Set a value."""
        self._txn.put(key, value, db=self._databases[table])

    def delete(self, table: Table, key: bytes) -> None:
        """Remove a key; it need not exist."""
        self._txn.delete(key, db=self._databases[table])

    def clear(self, table: Table) -> None:
        """Empty a table."""
        self._txn.drop(self._databases[table], delete=False)

    def put_many(self, table: Table, items: list[tuple[bytes, bytes]]) -> None:
        """Set many values; fastest when sorted by key."""
        if items:
            with self._txn.cursor(db=self._databases[table]) as cursor:
                cursor.putmulti(items)

    def count_from(self, table: Table, prefix: bytes) -> int:
        """Return the number of keys that begin with ``prefix``."""
        count = 0
        with self._txn.cursor(db=self._databases[table]) as cursor:
            if cursor.set_range(prefix):
                for key in cursor.iternext(keys=True, values=False):
                    if not key.startswith(prefix):
                        break
                    count += 1
        return count

    def count(self, table: Table) -> int:
        """Return the number of keys of a table."""
        return int(self._txn.stat(self._databases[table])["entries"])

    def items(self, table: Table, start: bytes, prefix: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """Yield (key, value) in key order from ``start`` on, while keys begin with ``prefix``."""
        with self._txn.cursor(db=self._databases[table]) as cursor:
            yield from scan(cursor, start, prefix)


def scan(cursor: Any, start: bytes, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield (key, value) from ``start`` on while keys begin with ``prefix``."""
    if not (cursor.set_range(start) if start else cursor.first()):
        return
    for key, value in cursor.iternext(keys=True, values=True):
        if not key.startswith(prefix):
            return
        yield key, value

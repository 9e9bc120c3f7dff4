from collections.abc import Sequence

from luxfuse.types import Buffer

GET_ABANDONED: int
GET_DONE: int
GET_ANSWERED: int
GET_FAILED: int
MOST_BYTES: int
MOST_PART_BYTES: int

_File = tuple[str, str, int, str | None, bool]
_Result = (
    tuple[int, int, int, float]
    | tuple[int, int, int, float, bytes, int, dict[str, str], tuple[int, ...], int, int, int, int, bool]
)

_Credentials = tuple[str, str, str | None] | tuple[str | None, tuple[str, ...]] | None
_Head = tuple[int, int, int, float] | tuple[int, int, int, float, int, str, int, dict[str, str]]
_Any = tuple[int, int, int, float] | tuple[int, int, int, float, bytes, bytes]
_List = tuple[int, int, int, float] | tuple[int, int, int, float, bytes]

_Part = tuple[int, int, int, float] | tuple[int, int, int, float, "Body", int, int, dict[str, str]]

def release() -> None: ...

class Body:
    checksums: tuple[int, ...]
    def __buffer__(self, flags: int, /) -> memoryview: ...

class Pool:
    def __new__(
        cls,
        url: str,
        path: str,
        host: str,
        region: str,
        condition: str,
        version: str,
        metadata: str,
        agent: str,
        bundle: str,
        connect_ms: int,
        timeout_ms: int,
        silence_s: int,
        most: int,
    ) -> Pool: ...
    def fetch(self, files: Sequence[_File], credentials: _Credentials, abandoned: bytearray) -> list[_Result]: ...
    def read(self, key: str, version: str, start: int, size: int, credentials: _Credentials) -> _Part: ...
    def head(self, key: str, credentials: _Credentials) -> _Head: ...
    def request(
        self,
        method: str,
        key: str,
        query: str | None,
        headers: tuple[str, ...],
        hash: str,
        body: Buffer,
        credentials: _Credentials,
    ) -> _Any: ...
    def list(self, query: str, credentials: _Credentials) -> _List: ...

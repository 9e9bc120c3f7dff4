from collections.abc import Callable, Sequence

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
_Asked = tuple[str, str, str | None, tuple[str, ...], str | None, bool, Buffer]
_List = tuple[int, int, int, float] | tuple[int, int, int, float, bytes]

_Part = tuple[int, int, int, float] | tuple[int, int, int, float, "Body", int, int, dict[str, str]]

def allow(descriptors: int, /) -> None: ...
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
    def requests(
        self, asked: Sequence[_Asked], credentials: _Credentials, tell: Callable[[list[tuple[int, _Any]]], object]
    ) -> None: ...
    def list(self, query: str, credentials: _Credentials) -> _List: ...

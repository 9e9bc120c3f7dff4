"""LIST answers read by patterns: what botocore makes of them, or nothing."""

from __future__ import annotations

import pytest

from luxfuse.types import ObjectInfo
from luxfuse.understore.s3.pages import part_of

HEAD = (
    '<?xml version="1.0" encoding="UTF-8"?>\n<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
    "<Name>b</Name><Prefix>p/d/</Prefix><KeyCount>2</KeyCount><MaxKeys>1000</MaxKeys><Delimiter>/</Delimiter>"
)
OBJECT = (
    "<Contents><Key>p/d/{key}</Key><LastModified>2026-01-31T23:59:59.123Z</LastModified><ETag>{tag}</ETag>"
    "<ChecksumAlgorithm>CRC64NVME</ChecksumAlgorithm><ChecksumType>FULL_OBJECT</ChecksumType><Size>{size}</Size>"
    "<StorageClass>STANDARD</StorageClass></Contents>"
)
URL = "<EncodingType>url</EncodingType>"
LAST = "<IsTruncated>false</IsTruncated>"


def answer(*parts: str, end: str = LAST) -> bytes:
    return f"{HEAD}{end}{''.join(parts)}</ListBucketResult>".encode()


def one(key: str, tag: str = "&quot;abc&quot;", size: int = 7) -> str:
    return OBJECT.format(key=key, tag=tag, size=size)


def test_objects_prefixes_and_the_place_to_go_on() -> None:
    more = "<IsTruncated>true</IsTruncated><NextContinuationToken>1b/+=</NextContinuationToken>"
    prefix = "<CommonPrefixes><Prefix>p/d/s%2Bub+x/</Prefix></CommonPrefixes>"
    part = part_of(answer(URL, one(""), one("a+b%2Bc%26%0A"), one("é", "&#34;x&#34;"), prefix, end=more), "p/d/", 2)
    assert part is not None
    mtime_ns = 1_769_903_999_123_000_000
    assert part.page.objects == [
        ObjectInfo("d/a b+c&\n", 7, '"abc"', mtime_ns),
        ObjectInfo("d/é", 7, '"x"', mtime_ns),
    ]
    assert part.page.prefixes == ["d/s+ub x/"]
    assert (part.token, part.exists) == ("1b/+=", True)


def test_nothing_and_the_marker_alone_differ() -> None:
    empty = part_of(answer(), "p/d/", 2)
    marker = part_of(answer(one("", size=0)), "p/d/", 2)
    assert empty is not None
    assert not empty.exists
    assert marker is not None
    assert marker.exists
    assert not marker.page.objects


def test_without_an_encoding_keys_are_as_they_are() -> None:
    part = part_of(answer(one("a+b%20")), "p/d/", 2)
    assert part is not None
    assert [info.key for info in part.page.objects] == ["d/a+b%20"]


@pytest.mark.parametrize(
    "body",
    [
        b"<html>a page</html>",
        b"\xff" + answer(),
        answer(one("a&amp;b")),
        answer(one("a").replace("<Key>", "<Key><!-- x -->")),
        answer(one("a"), one("b").replace("<Size>7</Size>", "")),
        answer("<CommonPrefixes><Other/><Prefix>p/d/x/</Prefix></CommonPrefixes>"),
        answer(one("a", tag="")),
        answer(one("a").replace("2026-01-31T23:59:59.123Z", "yesterday, at noon, 24 c")),
        answer(end=""),
        answer(end="<IsTruncated>true</IsTruncated>"),
    ],
)
def test_anything_unusual_is_left_to_botocore(body: bytes) -> None:
    assert part_of(body, "p/d/", 2) is None

"""LIST requests, and their answers, read by patterns: botocore's parser takes a hundred times as long for a thousand keys.

The patterns know what servers write as a rule. Any other answer is left to botocore.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from urllib.parse import quote, unquote_plus

from luxfuse.types import ListPage, ObjectInfo
from luxfuse.understore.base import ListedPart
from luxfuse.understore.times import to_ns

EXPRESS = "--x-s3"
"""How the names of directory buckets end, which are signed for in another way."""

_OBJECTS = re.compile(
    r"<Contents>\s*<Key>([^<]*)</Key>\s*<LastModified>([^<]*)</LastModified>\s*<ETag>\s*([^<]*?)\s*</ETag>"
    r"(?:\s*<Checksum\w+>[^<]*</Checksum\w+>)*\s*<Size>(\d+)</Size>"
)
_PREFIXES = re.compile(r"<CommonPrefixes>\s*<Prefix>([^<]*)</Prefix>\s*</CommonPrefixes>")
_TRUNCATED = re.compile(r"<IsTruncated>\s*(true|false)\s*</IsTruncated>")
_TOKEN = re.compile(r"<NextContinuationToken>([^<]+)</NextContinuationToken>")
_MILLISECONDS = len("2026-01-31T00:00:00.000Z")
_NAMES = {
    "Prefix": "prefix",
    "Delimiter": "delimiter",
    "StartAfter": "start-after",
    "ContinuationToken": "continuation-token",
}


def listing_of(own: str, after: str, token: str) -> dict[str, str]:
    """Return, in the names of boto, what asks for a part of the directory with the whole prefix ``own``.

    It begins where ``token`` says, or after the whole key ``after``, or at the beginning.
    """
    where = {"ContinuationToken": token} if token else {"StartAfter": after} if after else {}
    return {"Prefix": own, "Delimiter": "/", **where}


def query_of(asked: Mapping[str, str]) -> str:
    """Return the query of a LIST request as it is signed: encoded, in the order of names."""
    query = {"list-type": "2", "encoding-type": "url", **{_NAMES[name]: value for name, value in asked.items()}}
    return "&".join(f"{name}={quote(query[name], safe='-_.~')}" for name in sorted(query))


def part_of(body: bytes, own: str, skip: int) -> ListedPart | None:
    """Return what an answer lists of the directory with the whole prefix ``own``; None if it has to be read otherwise.

    ``skip``: so many characters of each key come before the keys of the under-store.
    """
    try:
        text = body.decode()
    except UnicodeDecodeError:
        return None
    text = text.replace("&quot;", '"').replace("&#34;", '"')
    truncated, token = _TRUNCATED.search(text), _TOKEN.search(text)
    odd = "&" in text or "<!" in text or "<ListBucketResult" not in text[:400]
    odd = odd or not text.rstrip().endswith("</ListBucketResult>")  # cut short, where its length was not told
    if odd or truncated is None or (truncated[1] == "true") != (token is not None):
        return None
    objects, prefixes = _OBJECTS.findall(text), _PREFIXES.findall(text)
    if len(objects) != text.count("<Contents>") or len(prefixes) != text.count("<CommonPrefixes>"):
        return None
    if "<EncodingType>url</EncodingType>" in text:
        prefixes = [unquote_plus(prefix) for prefix in prefixes]
        objects = [(unquote_plus(o[0]), *o[1:]) if "%" in o[0] or "+" in o[0] else o for o in objects]
    page = ListPage(
        [ObjectInfo(key[skip:], int(size), tag, _ns(time)) for key, time, tag, size in objects if key != own],
        [prefix[skip:] for prefix in prefixes],
    )
    if not all(info.version and info.mtime_ns for info in page.objects):
        return None
    return ListedPart(page, token[1] if token else "", bool(objects or prefixes))


def _ns(time: str) -> int:
    if len(time) != _MILLISECONDS or time[-1] != "Z":
        return to_ns(time)
    try:
        return round(datetime.fromisoformat(time).timestamp() * 1000) * 10**6
    except ValueError:
        return 0

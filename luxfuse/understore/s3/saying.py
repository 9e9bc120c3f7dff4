"""Requests of S3 in the names of boto, as they go over HTTP, and the answers to them; without botocore.

Only what luxfuse asks for is known here: `say` returns None for anything else, and `understand` for an answer that is none
of S3's; both are then botocore's matter. Names and places of all parameters are those of the Amazon S3 API reference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from urllib.parse import quote
from xml.etree import ElementTree as ET
from xml.sax.saxutils import escape

from luxfuse.types import Buffer
from luxfuse.understore.s3.answers import ROOT
from luxfuse.understore.s3.transport import Body
from luxfuse.understore.times import to_ns

Parts = dict[str, Any]

_XMLNS = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
_HEADERS = {
    "ACL": "x-amz-acl",
    "CacheControl": "cache-control",
    "ContentDisposition": "content-disposition",
    "ContentEncoding": "content-encoding",
    "ContentLanguage": "content-language",
    "ContentType": "content-type",
    "CopySourceIfMatch": "x-amz-copy-source-if-match",
    "CopySourceRange": "x-amz-copy-source-range",
    "Expires": "expires",
    "GrantFullControl": "x-amz-grant-full-control",
    "GrantRead": "x-amz-grant-read",
    "GrantReadACP": "x-amz-grant-read-acp",
    "GrantWriteACP": "x-amz-grant-write-acp",
    "IfMatch": "if-match",
    "IfNoneMatch": "if-none-match",
    "MetadataDirective": "x-amz-metadata-directive",
    "SSEKMSKeyId": "x-amz-server-side-encryption-aws-kms-key-id",
    "ServerSideEncryption": "x-amz-server-side-encryption",
    "StorageClass": "x-amz-storage-class",
    "Tagging": "x-amz-tagging",
    "WebsiteRedirectLocation": "x-amz-website-redirect-location",
}
_TOLD = {
    "cache-control": "CacheControl",
    "content-disposition": "ContentDisposition",
    "content-encoding": "ContentEncoding",
    "content-language": "ContentLanguage",
    "content-type": "ContentType",
    "etag": "ETag",
    "expires": "Expires",
    "last-modified": "LastModified",
    "x-amz-server-side-encryption": "ServerSideEncryption",
    "x-amz-server-side-encryption-aws-kms-key-id": "SSEKMSKeyId",
    "x-amz-storage-class": "StorageClass",
    "x-amz-website-redirect-location": "WebsiteRedirectLocation",
}
_META = "x-amz-meta-"


class Said(NamedTuple):
    """A request: ``query`` encoded and in the order of names, or None; the headers' names in lower case."""

    method: str
    key: str
    query: str | None
    headers: dict[str, str]
    body: Buffer
    operation: str
    """Its name in S3's API."""


class _Kind(NamedTuple):
    operation: str
    method: str
    query: str | None
    read: Callable[[Mapping[str, str], bytes], Parts]


def say(method: str, arguments: Mapping[str, Any]) -> Said | None:
    """Return the request that is ``method`` of botocore's client with ``arguments``; None: it cannot be said here."""
    kind = _KINDS.get(method)
    if kind is None:
        return None
    rest = dict(arguments)
    del rest["Bucket"]
    key, query = rest.pop("Key", ""), kind.query
    if query is not None:
        upload = quote(str(rest.pop("UploadId", "")), safe="-_.~")
        query = query.format(number=rest.pop("PartNumber", ""), upload=upload, most=rest.pop("MaxParts", ""))
    body: Buffer = b""
    if isinstance(given := rest.pop("Body", None), Body):
        body = given.view
    elif (parts := rest.pop("MultipartUpload", None)) is not None:
        body = _parts_xml(parts["Parts"])
    elif (delete := rest.pop("Delete", None)) is not None:
        body = _delete_xml(delete["Objects"])
    headers = _headers(rest)
    if headers is None or not all(map(_is_plain, headers.values())):
        return None
    return Said(kind.method, key, query, headers, body, kind.operation)


def _headers(given: Parts) -> dict[str, str] | None:
    headers = {_META + name: str(value) for name, value in given.pop("Metadata", {}).items()}
    if (source := given.pop("CopySource", None)) is not None:
        headers["x-amz-copy-source"] = quote(f"{source['Bucket']}/{source['Key']}", safe="/-_.~")
    if given.pop("BucketKeyEnabled", False):
        headers["x-amz-server-side-encryption-bucket-key-enabled"] = "true"
    for name, value in given.items():
        if (header := _HEADERS.get(name)) is None or not isinstance(value, str):
            return None
        headers[header] = value
    return headers


def _is_plain(value: str) -> bool:
    """Whether a value is signed as it stands: otherwise clients differ in how they write it."""
    return value.isascii() and value.isprintable() and value == " ".join(value.split()) != ""


def _parts_xml(parts: list[Parts]) -> bytes:
    inner = "".join(
        f"<Part><ETag>{escape(p['ETag'])}</ETag><PartNumber>{p['PartNumber']}</PartNumber></Part>" for p in parts
    )
    return f"<CompleteMultipartUpload {_XMLNS}>{inner}</CompleteMultipartUpload>".encode()


def _delete_xml(objects: list[Parts]) -> bytes:
    inner = "".join(f"<Object><Key>{escape(each['Key'])}</Key></Object>" for each in objects)
    return f"<Delete {_XMLNS}>{inner}<Quiet>true</Quiet></Delete>".encode()


# -- answers


def understand(method: str, status: int, headers: Mapping[str, str], body: bytes) -> tuple[Parts, Parts | None]:
    """Return the parts of an answer, in boto's names, and the error that it tells; None: it tells of success."""
    about = {"ResponseMetadata": {"HTTPStatusCode": status, "HTTPHeaders": headers}}
    if status >= 300:
        return about, _error(body)
    try:
        parts = _KINDS[method].read(headers, body)
    except _Told as exc:  # with a copy and the end of an upload, success may turn out to be none after its head
        return {"ResponseMetadata": {"HTTPStatusCode": 500, "HTTPHeaders": headers}}, exc.parts
    except (ET.ParseError, ValueError):
        return {"ResponseMetadata": {"HTTPStatusCode": 500, "HTTPHeaders": headers}}, {}
    return {**about, **parts}, None


class _Told(Exception):
    """The body of an answer tells of an error."""

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self.parts = parts


def _error(body: bytes) -> Parts:
    try:
        root = ET.fromstring(body)  # noqa: S314 (expat bounds the growth of entities)
    except ET.ParseError:
        return {}
    return _plain_parts(root) if _name(root) == "Error" else {}


def _name(element: ET.Element) -> str:
    return element.tag.rpartition("}")[2]


def _plain_parts(element: ET.Element) -> Parts:
    return {_name(child): child.text or "" for child in element}


def _root(body: bytes) -> ET.Element:
    root = ET.fromstring(body)  # noqa: S314
    if _name(root) == "Error":
        raise _Told(_plain_parts(root))
    return root


def _nothing(_headers: Mapping[str, str], _body: bytes) -> Parts:
    return {}


def _from_head(headers: Mapping[str, str], _body: bytes) -> Parts:
    return {"ETag": headers["etag"]} if "etag" in headers else {}


def _from_body(_headers: Mapping[str, str], body: bytes) -> Parts:
    return _plain_parts(_root(body))


def _copied(_headers: Mapping[str, str], body: bytes) -> Parts:
    root = _root(body)
    return {_name(root): _plain_parts(root)}


def _deleted(_headers: Mapping[str, str], body: bytes) -> Parts:
    root = _root(body)
    return {ROOT: _name(root), "Errors": [_plain_parts(child) for child in root if _name(child) == "Error"]}


def _described(headers: Mapping[str, str], _body: bytes) -> Parts:
    parts: Parts = {_TOLD[name]: value for name, value in headers.items() if name in _TOLD}
    parts["Metadata"] = {name[len(_META) :]: value for name, value in headers.items() if name.startswith(_META)}
    if "Expires" in parts and not to_ns(parts["Expires"]):  # no date: it cannot be said again by every client
        del parts["Expires"]
    if headers.get("x-amz-server-side-encryption-bucket-key-enabled") == "true":
        parts["BucketKeyEnabled"] = True
    if "content-length" in headers:
        parts["ContentLength"] = int(headers["content-length"])
    return parts


def _owners(_headers: Mapping[str, str], body: bytes) -> Parts:
    return {"OwnershipControls": {"Rules": [_plain_parts(child) for child in _root(body) if _name(child) == "Rule"]}}


def _acl(_headers: Mapping[str, str], body: bytes) -> Parts:
    found: Parts = {"Owner": {}, "Grants": []}
    for child in _root(body):
        if _name(child) == "Owner":
            found["Owner"] = _plain_parts(child)
        for grant in child if _name(child) == "AccessControlList" else ():
            parts = _plain_parts(grant)
            grantee = next((_plain_parts(each) for each in grant if _name(each) == "Grantee"), {})
            found["Grants"].append({**parts, "Grantee": grantee})
    return found


def _tags(_headers: Mapping[str, str], body: bytes) -> Parts:
    return {"TagSet": [_plain_parts(tag) for each in _root(body) if _name(each) == "TagSet" for tag in each]}


_PART = "partNumber={number}&uploadId={upload}"
_KINDS = {
    "abort_multipart_upload": _Kind("AbortMultipartUpload", "DELETE", "uploadId={upload}", _nothing),
    "complete_multipart_upload": _Kind("CompleteMultipartUpload", "POST", "uploadId={upload}", _from_body),
    "copy_object": _Kind("CopyObject", "PUT", None, _copied),
    "create_multipart_upload": _Kind("CreateMultipartUpload", "POST", "uploads=", _from_body),
    "delete_object": _Kind("DeleteObject", "DELETE", None, _nothing),
    "delete_objects": _Kind("DeleteObjects", "POST", "delete=", _deleted),
    "get_bucket_acl": _Kind("GetBucketAcl", "GET", "acl=", _acl),
    "get_bucket_ownership_controls": _Kind("GetBucketOwnershipControls", "GET", "ownershipControls=", _owners),
    "get_object_acl": _Kind("GetObjectAcl", "GET", "acl=", _acl),
    "get_object_tagging": _Kind("GetObjectTagging", "GET", "tagging=", _tags),
    "head_object": _Kind("HeadObject", "HEAD", None, _described),
    "list_parts": _Kind("ListParts", "GET", "max-parts={most}&uploadId={upload}", _nothing),
    "put_object": _Kind("PutObject", "PUT", None, _from_head),
    "upload_part": _Kind("UploadPart", "PUT", _PART, _from_head),
    "upload_part_copy": _Kind("UploadPartCopy", "PUT", _PART, _copied),
}

"""How objects are to be stored: class, encryption, ACL, checksums, and in whose name requests are made.

One reading of these options for all clients of a store, so that none of them forgets one.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from luxfuse.core.settings import ACLS, OF_OBJECTS
from luxfuse.core.units import NO, YES
from luxfuse.errors import ConfigError
from luxfuse.private import read_private

KEEP_ACL = "keep"
NO_CHECKSUM = "none"
DEFAULT_CHECKSUM = "CRC64NVME"

CHECKSUMS = (DEFAULT_CHECKSUM, "CRC32C", "CRC32", NO_CHECKSUM)
ENCRYPTIONS = ("AES256", "aws:kms", "aws:kms:dsse")
TIERS = ("Hot", "Cool", "Cold")
"""Azure's, but the archive, from which nothing can be read."""

S3_NAMES = frozenset({*OF_OBJECTS, "sse_customer_key"})
"""The options, as users write them."""
NAMES: dict[str, frozenset[str]] = {"s3": S3_NAMES, "az": frozenset({"storage_class"})}
"""Those that a family of stores knows."""
SYNONYMS = {"sse_customer_key_base64": "sse_customer_key", "request_payer": "requester_pays"}

_VARIABLES = {
    "server_side_encryption": "AWS_SERVER_SIDE_ENCRYPTION",
    "sse_kms_key_id": "AWS_SSE_KMS_KEY_ID",
    "sse_customer_key": "AWS_SSE_CUSTOMER_KEY_BASE64",
    "requester_pays": "AWS_REQUEST_PAYER",
}
"""Variables that obstore reads by itself: without this it alone would heed them."""
_KEY_BYTES = 32
_MOST_KEY_FILE_BYTES = 256
_CLASS = re.compile(r"[A-Za-z0-9_-]{1,64}")
_ACCOUNT = re.compile(r"\d{12}")
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_TRUE = (*YES, "requester")
_FALSE = (*NO, "")


@dataclass(frozen=True, slots=True)
class ObjectOptions:
    """The options of a store. ``acl`` is a canned one, or `KEEP_ACL`: objects that are replaced keep theirs.

    ``encryption``: one of `ENCRYPTIONS`, None leaves it to the bucket. ``customer_key``: 32 bytes, for SSE-C.
    ``storage_class``: of new objects. ``checksum``: one of `CHECKSUMS`; ``checksum_required``: nothing is written
    without it, also where the server does not know it.
    """

    storage_class: str | None = None
    encryption: str | None = None
    kms_key_id: str | None = None
    customer_key: bytes | None = field(default=None, repr=False)
    acl: str = KEEP_ACL
    checksum: str = DEFAULT_CHECKSUM
    checksum_required: bool = False
    requester_pays: bool = False
    bucket_owner: str | None = None

    @property
    def always(self) -> dict[str, Any]:
        """Return botocore's parameters of every request."""
        return _set(RequestPayer="requester" if self.requester_pays else None, ExpectedBucketOwner=self.bucket_owner)

    @property
    def encrypted(self) -> dict[str, Any]:
        """Return botocore's parameters of requests that create an object, about encryption with a key of the store."""
        return _set(ServerSideEncryption=self.encryption, SSEKMSKeyId=self.kms_key_id)

    @property
    def keyed(self) -> dict[str, Any]:
        """Return botocore's parameters of requests that read or write content, with the customer's key."""
        return _set(SSECustomerAlgorithm="AES256", SSECustomerKey=self.customer_key) if self.customer_key else {}

    @property
    def keyed_source(self) -> dict[str, Any]:
        """Return the same for the source of a copy."""
        return {f"CopySource{name}": value for name, value in self.keyed.items()}

    @property
    def new(self) -> dict[str, Any]:
        """Return botocore's parameters of requests that create an object, but for the customer's key."""
        return _set(StorageClass=self.storage_class, ACL=self.canned_acl) | self.encrypted

    @property
    def canned_acl(self) -> str | None:
        """Return the ACL of everything that is written, if one is set."""
        return None if self.acl == KEEP_ACL else self.acl


NO_OPTIONS = ObjectOptions()
"""Where nothing is set."""


def _set(**arguments: Any) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if value}


def take_object_options(
    family: str, options: Mapping[str, str], endpoint_url: str | None = None
) -> tuple[ObjectOptions, dict[str, str]]:
    """Return the options about objects and the rest. Raises `ConfigError` for values that cannot be or contradict."""
    known = NAMES.get(family, frozenset())
    given: dict[str, str] = {}
    rest: dict[str, str] = {}
    for written, value in options.items():
        name = SYNONYMS.get(written, written)
        if name not in known:
            rest[written] = value
        elif given.setdefault(name, value) != value:
            raise ConfigError(f"storage option {written}: contradicts {name}")
    if family == "az":
        return ObjectOptions(storage_class=_choice(given, "storage_class", TIERS)), rest
    if family != "s3":
        return ObjectOptions(), rest
    if not given.keys() & {"sse_customer_key", "sse_customer_key_file", "server_side_encryption", "sse_kms_key_id"}:
        given |= _from_environment(("server_side_encryption", "sse_kms_key_id", "sse_customer_key"))
    given = _from_environment(("requester_pays",)) | given
    return _s3_options(given, _is_exposed(rest, endpoint_url)), rest


def _from_environment(names: tuple[str, ...]) -> dict[str, str]:
    return {name: value for name in names if (value := os.environ.get(_VARIABLES[name]))}


def _s3_options(given: Mapping[str, str], exposed: bool) -> ObjectOptions:
    key = _customer_key(given)
    if key is not None and exposed:
        raise ConfigError("sse_customer_key: the endpoint is plain HTTP, on which the key can be read; use https://")
    return ObjectOptions(
        storage_class=_matching(given, "storage_class", _CLASS, "a storage class such as STANDARD_IA"),
        encryption=(encryption := _encryption(given, key)),
        kms_key_id=_kms_key_id(given, encryption),
        customer_key=key,
        acl=_choice(given, "acl", ACLS) or KEEP_ACL,
        checksum=_choice(given, "checksum_algorithm", CHECKSUMS) or DEFAULT_CHECKSUM,
        checksum_required="checksum_algorithm" in given,
        requester_pays=boolean("requester_pays", given.get("requester_pays", "")),
        bucket_owner=_matching(given, "expected_bucket_owner", _ACCOUNT, "an account of 12 digits"),
    )


def _encryption(given: Mapping[str, str], key: bytes | None) -> str | None:
    written = given.get("server_side_encryption")
    if written is not None and written.lower() == "sse-c":
        if key is None:
            raise ConfigError("server_side_encryption sse-c: needs sse_customer_key_file, or sse_customer_key in the "
                              "configuration file")  # fmt: skip
        return None
    encryption = _choice(given, "server_side_encryption", ENCRYPTIONS)
    if encryption and key is not None:
        raise ConfigError(f"sse_customer_key: contradicts server_side_encryption {encryption}; set one of them")
    return encryption


def _kms_key_id(given: Mapping[str, str], encryption: str | None) -> str | None:
    key_id = given.get("sse_kms_key_id")
    if key_id is None:
        return None
    if not encryption or not encryption.startswith("aws:kms"):
        raise ConfigError("sse_kms_key_id: needs server_side_encryption aws:kms or aws:kms:dsse")
    if not (key_id and key_id.isascii() and key_id.isprintable() and " " not in key_id):
        raise ConfigError("sse_kms_key_id: write the id, ARN or alias of a key")
    return key_id


def _customer_key(given: Mapping[str, str]) -> bytes | None:
    path, text = given.get("sse_customer_key_file"), given.get("sse_customer_key")
    if path is not None and text is not None:
        raise ConfigError("sse_customer_key_file: contradicts sse_customer_key; set one of them")
    if path is not None:
        return _key_from(path)
    return None if text is None else _decoded(text, "sse_customer_key")


def _key_from(path: str) -> bytes:
    where = f"sse_customer_key_file {path!r}"
    content = read_private(path, where, _MOST_KEY_FILE_BYTES)
    return content if len(content) == _KEY_BYTES else _decoded(content.decode("latin-1"), where)


def _decoded(text: str, what: str) -> bytes:
    try:
        key = base64.b64decode(text.strip(), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != _KEY_BYTES:
        raise ConfigError(f"{what}: must be 32 bytes in base64; make one with: openssl rand -base64 32")
    return key


def _is_exposed(options: Mapping[str, str], endpoint_url: str | None) -> bool:
    """Whether requests go over a network without TLS. With ``allow_http`` that is wanted."""
    endpoint = (
        endpoint_url or options.get("endpoint_url") or options.get("endpoint")
        or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    )  # fmt: skip
    if boolean("allow_http", options.get("allow_http", "")):
        return False
    if not endpoint:
        return not boolean("use_ssl", options.get("use_ssl", "true"))
    return endpoint.startswith("http://") and urlsplit(endpoint).hostname not in _LOOPBACK


def boolean(name: str, value: str) -> bool:
    """Return the value of a switch. Raises `ConfigError` for other words."""
    plain = str(value).strip().lower()
    if plain not in _TRUE + _FALSE:
        raise ConfigError(f"storage option {name}: write true or false")
    return plain in _TRUE


def _choice(given: Mapping[str, str], name: str, allowed: tuple[str, ...]) -> str | None:
    written = given.get(name)
    if written is None:
        return None
    found = next((word for word in allowed if word.lower() == written.strip().lower()), None)
    if found is None:
        raise ConfigError(f"{name}: {written!r} is none of {', '.join(allowed)}")
    return found


def _matching(given: Mapping[str, str], name: str, pattern: re.Pattern[str], meaning: str) -> str | None:
    written = given.get(name)
    if written is not None and not pattern.fullmatch(written):
        raise ConfigError(f"{name}: {written!r} is not {meaning}")
    return written

"""The properties of an object of S3: read with one HEAD, and more requests only where there is more to know.

Tags cost a request where the object has any, and the ACL one where the bucket has ACLs. A copy takes tags, metadata and
headers along by itself, but neither storage class nor encryption nor ACL; a new object takes nothing along.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

from luxfuse.core.vain import Pause
from luxfuse.errors import AccessDenied, NotFound, StoreRejected
from luxfuse.types import ObjectInfo
from luxfuse.understore.object_options import ObjectOptions
from luxfuse.understore.properties import HEADERS, Properties, type_for

log = logging.getLogger(__name__)

Call = Callable[..., dict[str, Any]]

_ARCHIVES = ("GLACIER", "DEEP_ARCHIVE")
"""Nobody could read an object that is written there."""
_GRANTS = {"FULL_CONTROL": "GrantFullControl", "READ": "GrantRead", "READ_ACP": "GrantReadACP",
           "WRITE_ACP": "GrantWriteACP"}  # fmt: skip


class Examiner:
    """Reads properties of the objects of one bucket; ``call`` makes a request of a method of botocore's client."""

    def __init__(self, call: Call, options: ObjectOptions) -> None:
        self._call = call
        self._options = options
        self._acls: bool | None = None
        """Whether the bucket has ACLs; None: it has not said."""
        self._acls_refused = Pause()
        """While it is on, no ACLs are asked for: one that is refused may be so for a while, or for one object."""
        self._acls_not_set = Pause()
        """The same where they can be read, and not be set."""
        self._copies_tags: bool | None = None
        """Whether copies that get other metadata have the tags of their source; None: not seen yet."""
        self._warned = False

    def properties(self, key: str, info: ObjectInfo, found: Mapping[str, Any], *, whole: bool) -> Properties:
        """Return the properties of the object with the full ``key``, which a HEAD ``found``; ``whole``: with the tags."""
        own = {
            "encryption": self._encryption(found),
            "others": {name: found[name] for name in ("Expires", "WebsiteRedirectLocation") if found.get(name)},
            "grants": self._grants(key),
        }
        headers = {name: found[name.replace("-", "")] for name in HEADERS if found.get(name.replace("-", ""))}
        storage_class = found.get("StorageClass") or "STANDARD"
        if storage_class in _ARCHIVES or storage_class == (self._options.storage_class or "STANDARD"):
            storage_class = None
        return Properties(
            info, found.get("ContentType"), headers, storage_class, self._tags(key, found) if whole else {},
            {name: value for name, value in own.items() if value},
        )  # fmt: skip

    def _encryption(self, found: Mapping[str, Any]) -> dict[str, Any]:
        """Return the parameters of a KMS key; AES256 is the default of every object."""
        kind = str(found.get("ServerSideEncryption") or "")
        if self._options.encryption or self._options.customer_key or not kind.startswith("aws:kms"):
            return {}
        names = ("ServerSideEncryption", "SSEKMSKeyId", "BucketKeyEnabled")
        return {name: found[name] for name in names if found.get(name)}

    def _tags(self, key: str, found: Mapping[str, Any]) -> dict[str, str]:
        headers = found.get("ResponseMetadata", {}).get("HTTPHeaders", {})
        if not int(headers.get("x-amz-tagging-count") or 0):
            return {}
        answer = self._call("get_object_tagging", f"GET {key!r} tagging", Key=key)
        return {tag["Key"]: tag["Value"] for tag in answer.get("TagSet", ())}

    def restore_tags(self, key: str, tags: Mapping[str, str]) -> None:
        """Give a copy that got other metadata its tags again, where the server (Ceph's is one) drops them then."""
        if self._copies_tags is None:
            answer = self._call("get_object_tagging", f"GET {key!r} tagging", Key=key)
            self._copies_tags = {tag["Key"]: tag["Value"] for tag in answer.get("TagSet", ())} == tags
        if self._copies_tags:
            return
        tagging = {"TagSet": [{"Key": name, "Value": value} for name, value in tags.items()]}
        try:
            self._call("put_object_tagging", f"PUT {key!r} tagging", Key=key, Tagging=tagging)
        except (AccessDenied, StoreRejected):
            self.note_refused(["Tagging"])

    def _grants(self, key: str) -> dict[str, str]:
        """Return the grants beside the owner's; nothing if there are none, or if they cannot be read."""
        if self._options.canned_acl is not None or any(
            pause.is_on(time.monotonic()) for pause in (self._acls_refused, self._acls_not_set)
        ):
            return {}
        try:
            if self._acls is None:
                self._acls = self._are_acls_used()
            if not self._acls:
                return {}
            answer = self._call("get_object_acl", f"GET {key!r} acl", Key=key)
        except (AccessDenied, StoreRejected) as exc:
            self._acls_refused.note(time.monotonic())
            log.info("ACLs of objects cannot be read, so edited ones get the bucket's: %s", exc)
            return {}
        self._acls_refused.end()
        return grants_of(answer)

    def _are_acls_used(self) -> bool:
        """Ask about the bucket: a server that does not know ACLs might answer for an object with its content.

        Raises `AccessDenied` and `StoreRejected` where nothing can be known.
        """
        what = "GET of who owns objects"
        try:
            answer = self._call("get_bucket_ownership_controls", what)
        except (NotFound, AccessDenied):
            return True  # nothing is said, as was usual before there were such rules, or it is not for us
        except StoreRejected:
            answer = {}
        if rules := answer.get("OwnershipControls", {}).get("Rules", ()):
            return all(rule.get("ObjectOwnership") != "BucketOwnerEnforced" for rule in rules)
        try:
            return bool(self._call("get_bucket_acl", "GET of the bucket's acl").get("Grants"))
        except NotFound:
            return False

    def note_refused(self, names: Sequence[str]) -> None:
        """The store took an object only without these parameters."""
        begins = any(name.startswith("Grant") for name in names) and self._acls_not_set.note(time.monotonic())
        if begins or not self._warned:
            level = logging.INFO if self._warned else logging.WARNING
            self._warned = True
            log.log(level, "the store refuses to set ACLs or tags: objects that have some lose them when they are edited")

    def note_set(self, names: Sequence[str]) -> None:
        """The store took an object with these parameters."""
        if any(name.startswith("Grant") for name in names):
            self._acls_not_set.end()


def grants_of(acl: Mapping[str, Any]) -> dict[str, str]:
    """Return botocore's parameters that make an ACL again; none if it is the owner's alone."""
    owner = acl.get("Owner", {}).get("ID")
    granted: dict[str, list[str]] = {}
    for grant in acl.get("Grants", ()):
        grantee, permission = grant.get("Grantee", {}), grant.get("Permission")
        who = f'uri="{grantee["URI"]}"' if grantee.get("URI") else f'id="{grantee.get("ID", "")}"'
        if permission in _GRANTS and (grantee.get("URI") or grantee.get("ID")):
            granted.setdefault(_GRANTS[permission], []).append(who)
    if granted == {"GrantFullControl": [f'id="{owner}"']}:
        return {}
    return {name: ", ".join(who) for name, who in granted.items()}


def for_new(key: str, keep: Properties | None) -> dict[str, Any]:
    """Return botocore's parameters of an object that is written to ``key`` (without the prefix) in place of another."""
    if keep is None:
        return {"ContentType": type_for(key, None)}
    tags = {"Tagging": urlencode(keep.tags)} if keep.tags else {}
    return {**described(key, keep), **tags, **beside(keep)}


def described(key: str, keep: Properties) -> dict[str, Any]:
    """Return botocore's parameters of the properties that a copy has by itself, unless it gets other metadata."""
    headers = {name.replace("-", ""): value for name, value in keep.headers.items()}
    expires = {name: value for name, value in keep.own.get("others", {}).items() if name == "Expires"}
    return {**headers, **expires, "ContentType": type_for(key, keep)}


def beside(keep: Properties) -> dict[str, Any]:
    """Return botocore's parameters of the properties that a copy does not have by itself."""
    others = {name: value for name, value in keep.own.get("others", {}).items() if name != "Expires"}
    kept = {**others, **keep.own.get("encryption", {}), **keep.own.get("grants", {})}
    return kept | {"StorageClass": keep.storage_class} if keep.storage_class else kept

"""The access that all clients of one S3 under-store share: endpoint, region, credentials, trusted certificates, proxy.

obstore, botocore and s3fs each have rules of their own for where these come from. Here they are decided once.
"""

from __future__ import annotations

import json
import logging
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from luxfuse.core.units import NO, YES
from luxfuse.core.urls import endpoint_fault
from luxfuse.errors import ConfigError, NoCredentials
from luxfuse.understore.failures import CREDENTIAL_PLACES, safe_url
from luxfuse.understore.reach import CONNECT_TIMEOUT_S, READ_TIMEOUT_S, Reach
from luxfuse.understore.reach import OPTIONS as REACH_OPTIONS
from luxfuse.understore.s3.credentials import Frozen, S3Credentials, place_of
from luxfuse.understore.s3.programs import bound_programs
from luxfuse.understore.trust import trust_for
from luxfuse.understore.variables import variables

DEFAULT_REGION = "us-east-1"
REGION_TIMEOUT_S = 3.0

_NAMES = {
    "key": ("key", "access_key_id", "aws_access_key_id", "username"),
    "secret": ("secret", "secret_access_key", "aws_secret_access_key", "password"),
    "token": ("token", "session_token", "aws_session_token"),
    "region": ("region", "region_name", "aws_region"),
    "endpoint": ("endpoint", "endpoint_url"),
    "anon": ("anon", "skip_signature"),
}
OPTIONS = frozenset({
    "profile", "role_arn", "role_session_name", "web_identity_token_file", "metadata_endpoint", "imdsv1_fallback",
    "default_region", *REACH_OPTIONS,
    *(name for names in _NAMES.values() for name in names),
})  # fmt: skip
"""The storage options that are decided here, and given to no client as they are."""


class S3Access:
    """How ``bucket`` is reached with ``options``. The region is not asked for until somebody needs it."""

    def __init__(self, bucket: str, options: Mapping[str, str], endpoint_url: str | None = None) -> None:
        """Raises `ConfigError` for unusable options, `NoCredentials` or `StoreUnavailable` without credentials."""
        self._bucket = bucket
        self._options = options = _folded(options)
        self._lock = threading.Lock()
        self._botocore: Any = None
        self._variables = variables()
        self.endpoint = (
            endpoint_url or self._option("endpoint")
            or self._variables.get("AWS_ENDPOINT_URL_S3") or self._variables.get("AWS_ENDPOINT_URL") or None
        )  # fmt: skip
        if self.endpoint and (fault := endpoint_fault(self.endpoint)):
            raise ConfigError(f"endpoint {safe_url(self.endpoint)!r}: {fault}; correct the storage option endpoint_url, or "
                              "AWS_ENDPOINT_URL")  # fmt: skip
        self.anonymous = _switch(self._option("anon"), "anon") or (
            not self._option("key") and self._variables.get("AWS_SKIP_SIGNATURE", "").lower() in YES
        )
        self.trust = trust_for(options, self._variables, aws=self._ca_bundle())
        self._region = self._option("region") or self._options.get("default_region") or self._region_of_tools()
        if self.profile or self._variables.get("AWS_PROFILE") or self._variables.get("AWS_DEFAULT_PROFILE"):
            # Every client would fail on a profile that there is not.
            self._region = self._region or self._session().get_config_variable("region")
        self.credentials = None if self.anonymous else self._find_credentials()

    def _option(self, name: str) -> str | None:
        return next((self._options[each] for each in _NAMES[name] if self._options.get(each)), None)

    # --- endpoint and region ---

    @property
    def region(self) -> str:
        """The region to sign for; asks the bucket if nobody has named one."""
        with self._lock:
            if self._region is None:
                asked = None if self.endpoint else self.find_region()
                self._region = asked or DEFAULT_REGION
            return self._region

    def _region_of_tools(self) -> str | None:
        return self._variables.get("AWS_REGION") or self._variables.get("AWS_DEFAULT_REGION")

    def find_region(self) -> str | None:
        """Ask the endpoint, without credentials, where the bucket is; None if it does not say."""
        url = f"{self.endpoint or 'https://s3.amazonaws.com'}/{quote(self._bucket)}"
        return _region_header(url, Reach.of((url,), self._options, self._variables, self.trust))

    @property
    def url(self) -> str:
        """The endpoint, for the choice of a proxy."""
        return self.endpoint or f"https://{self._bucket}.s3.{self.region}.amazonaws.com"

    def reach(self) -> Reach:
        """Return how requests get to the endpoint. Raises `ConfigError`."""
        return Reach.of((self.url,), self._options, self._variables, self.trust)

    def _ca_bundle(self) -> str | None:
        if bundle := self._variables.get("AWS_CA_BUNDLE"):
            return bundle
        path = Path(self._variables.get("AWS_CONFIG_FILE") or "~/.aws/config").expanduser()
        try:
            if "ca_bundle" not in path.read_text(errors="replace"):
                return None
        except OSError:
            return None
        bundle = self._session().get_config_variable("ca_bundle")
        return str(bundle) if bundle else None

    # --- credentials ---

    @property
    def profile(self) -> str | None:
        """The profile that the options name."""
        return self._options.get("profile")

    def prepare(self) -> object:
        """Have credentials at hand before a request needs them, in a thread that may wait. Raises `StoreError`."""
        return self.credentials.current() if self.credentials is not None else None

    @property
    def origin(self) -> str | None:
        """Where the credentials come from, in words."""
        return self.credentials.origin if self.credentials is not None else None

    def _find_credentials(self) -> S3Credentials:
        key, secret = self._option("key"), self._option("secret")
        if bool(key) != bool(secret):
            raise ConfigError("storage options: key and secret are needed together")
        role = self._options.get("role_arn")
        if key and secret and not role:
            return S3Credentials.fixed(key, secret, self._option("token"), "the storage options key and secret")
        environ = self._variables
        if not role and not self._options.get("profile"):
            key, secret = environ.get("AWS_ACCESS_KEY_ID"), environ.get("AWS_SECRET_ACCESS_KEY")
            if key and secret:
                return S3Credentials.fixed(key, secret, environ.get("AWS_SESSION_TOKEN"), place_of("env", None))
        return self._from_botocore()

    def _session(self, profile: str | None = None) -> Any:
        """Return the session of the AWS tools' own library, made when it is first needed."""
        if self._botocore is None:
            try:
                import botocore.config  # type: ignore[import-untyped]
                import botocore.exceptions  # type: ignore[import-untyped]
                import botocore.session  # type: ignore[import-untyped]
            except ImportError:
                raise ConfigError("credentials in ~/.aws need botocore; install it with: pip install s3fs") from None
            try:
                bound_programs()
                session = botocore.session.Session(profile=self._options.get("profile"))
                session.get_config_variable("region")  # reads the files
            except botocore.exceptions.BotoCoreError as exc:
                raise NoCredentials(_one_line(exc)) from None
            self._botocore = session
        return self._botocore

    def _from_botocore(self) -> S3Credentials:
        """Find credentials where the AWS tools do (files, programs, SSO, container and instance roles, STS).

        Waits for the first of them. Raises `NoCredentials` or `StoreUnavailable`.
        """
        session = self._session()
        # It would log the whole traceback of an error that is told in one line.
        logging.getLogger("botocore.credentials").setLevel(logging.ERROR)
        from botocore.config import Config

        # The certificates of the STS are checked in any case.
        trust = self.trust if self.trust.verify else trust_for({}, self._variables, aws=self._ca_bundle())
        session.set_config_variable("ca_bundle", trust.bundle)
        self._region = self._region or session.get_config_variable("region")
        session.set_config_variable("region", self._region or DEFAULT_REGION)
        if endpoint := self._options.get("metadata_endpoint"):
            session.set_config_variable("ec2_metadata_service_endpoint", endpoint)
        if self._options.get("imdsv1_fallback", "true").lower() in NO:
            session.set_config_variable("ec2_metadata_v1_disabled", True)
        sts = self._variables.get("AWS_ENDPOINT_URL_STS") or "https://sts.amazonaws.com"
        reach = Reach.of((sts,), self._options, self._variables, trust)
        # By itself it waits for a minute, five times; meanwhile nobody asks again.
        patience = {
            "connect_timeout": CONNECT_TIMEOUT_S,
            "read_timeout": READ_TIMEOUT_S,
            "retries": {"total_max_attempts": 2},
        }
        session.set_default_client_config(Config(**patience, **reach.botocore_config()))
        found: list[Any] = []

        def fetch() -> tuple[Frozen, datetime | None]:
            if not found:  # a program may be run, or a service asked, already to find them
                first = self._assumed_role(session) if self._options.get("role_arn") else session.get_credentials()
                if first is None:
                    raise NoCredentials(f"no credentials found in: {CREDENTIAL_PLACES['s3']}")
                credentials.origin = place_of(first.method, session.profile)
                found.append(first)
            frozen = found[0].get_frozen_credentials()
            expires_at = getattr(found[0], "_expiry_time", None)  # botocore tells it in no other way
            return Frozen(*frozen[:3]), expires_at

        credentials = S3Credentials(fetch, "where the AWS tools find them")
        credentials.current()
        return credentials

    def _assumed_role(self, session: Any) -> Any:
        """Return credentials of the role that the options name."""
        from botocore import credentials as aws
        from botocore.utils import FileWebIdentityTokenLoader  # type: ignore[import-untyped]

        role = self._options["role_arn"]
        name = self._options.get("role_session_name")
        named = {"RoleSessionName": name} if name else {}
        if file := self._options.get("web_identity_token_file"):
            fetcher = aws.AssumeRoleWithWebIdentityCredentialFetcher(
                session.create_client, FileWebIdentityTokenLoader(file), role, extra_args=named
            )
            return aws.DeferredRefreshableCredentials(fetcher.fetch_credentials, "assume-role-with-web-identity")
        key, secret = self._option("key"), self._option("secret")
        source = aws.Credentials(key, secret, self._option("token")) if key else session.get_credentials()
        if source is None:
            raise NoCredentials("no credentials found to assume the role with, in: "
                                f"{CREDENTIAL_PLACES['s3']}")  # fmt: skip
        fetcher = aws.AssumeRoleCredentialFetcher(session.create_client, source, role, extra_args=named)
        return aws.DeferredRefreshableCredentials(fetcher.fetch_credentials, "assume-role")


class _Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def _region_header(url: str, reach: Reach) -> str | None:
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler(reach.proxies()),
        urllib.request.HTTPSHandler(context=reach.trust.ssl_context()),
        _Stay,
    )
    try:
        with opener.open(urllib.request.Request(url, method="HEAD"), timeout=REGION_TIMEOUT_S) as answer:  # noqa: S310
            headers = answer.headers
    except urllib.error.HTTPError as exc:
        headers = exc.headers
        exc.close()
    except (OSError, ValueError):
        return None
    return str(headers["x-amz-bucket-region"]) if headers["x-amz-bucket-region"] else None


def _folded(options: Mapping[str, str]) -> Mapping[str, str]:
    """Return ``options`` with those of ``client_kwargs``, which are for s3fs."""
    try:
        client = json.loads(options.get("client_kwargs", "{}"))
    except json.JSONDecodeError:
        raise ConfigError("storage option client_kwargs: is not JSON") from None
    names = ("verify", "region_name")
    return {**{name: str(client[name]) for name in names if isinstance(client, dict) and name in client}, **options}


def _switch(value: str | None, name: str) -> bool:
    word = (value or "false").strip().lower()
    if word not in YES + NO:
        raise ConfigError(f"storage option {name}: write true or false")
    return word in YES


def _one_line(exc: Exception) -> str:
    return str(exc).splitlines()[0] if str(exc) else type(exc).__name__

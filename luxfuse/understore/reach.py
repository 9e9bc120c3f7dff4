"""The way to a service, in the form of each client: the certificates that are believed, and the proxy in between."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from luxfuse.core.proxies import PROXY_VARIABLES, proxy_for
from luxfuse.core.units import NO, YES
from luxfuse.core.urls import url_fault
from luxfuse.errors import ConfigError
from luxfuse.understore.failures import safe_url
from luxfuse.understore.trust import Authorities, trust_for

CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 10.0
"""How long a client waits for the server to say anything, if its request may last as long."""

TRUST_OPTIONS = frozenset({"verify", "allow_invalid_certificates"})
OPTIONS = TRUST_OPTIONS | {"proxy_url"}
"""The storage options that are read here."""


def said(options: Mapping[str, str]) -> list[str]:
    """Return the names of those with other values than the defaults."""
    plain = {"verify": ("", *YES), "allow_invalid_certificates": ("", *NO), "proxy_url": ("",)}
    return [name for name in sorted(OPTIONS) if options.get(name, "").strip().lower() not in plain[name]]


@dataclass(frozen=True, slots=True)
class Reach:
    """``proxy``: for requests to ``url`` and to the other services that belong to it, but for the hosts in ``direct``."""

    url: str
    trust: Authorities
    proxy: str | None
    direct: tuple[str, ...]

    @classmethod
    def of(
        cls, urls: Sequence[str], options: Mapping[str, str], variables: Mapping[str, str], trust: Authorities | None = None
    ) -> Reach:
        """Decide for the service at ``urls[0]`` and those beside it. Raises `ConfigError`."""
        for url in urls:
            if fault := url_fault(url):
                raise ConfigError(f"{safe_url(url)!r}: {fault}; correct it where it was set")
        proxies = [proxy_for(url, variables, options.get("proxy_url")) for url in urls]
        proxy = next((each for each in proxies if each), None)
        direct = tuple(urlsplit(url).hostname or "" for url, each in zip(urls, proxies, strict=True) if not each)
        return cls(urls[0], trust or trust_for(options, variables), proxy, direct)

    def proxies(self) -> dict[str, str]:
        """Return the proxy for the first service by scheme, as urllib, requests and botocore take it."""
        scheme, host = urlsplit(self.url).scheme, urlsplit(self.url).hostname or ""
        return {scheme: self.proxy} if self.proxy and host not in self.direct else {}

    def botocore_config(self) -> dict[str, Any]:
        """Return the options of `botocore.config.Config`, so that it looks at no variables."""
        settings: dict[str, Any] = {"proxies": self.proxies()}
        if self.proxy and self.proxy.startswith("https://") and self.trust.bundle is not None:
            settings["proxies_config"] = {"proxy_ca_bundle": self.trust.bundle}
        return settings

    def client_options(self) -> dict[str, Any]:
        """Return obstore's ``client_options``, which it needs beside `variables`."""
        options: dict[str, Any] = {}
        if self.trust.bundle is None:
            options["allow_invalid_certificates"] = True
        if self.proxy:
            options["proxy_url"] = self.proxy
            if self.direct:
                options["proxy_excludes"] = ",".join(self.direct)
            if self.proxy.startswith("https://") and self.trust.bundle is not None:
                options["proxy_ca_certificate"] = Path(self.trust.bundle).read_bytes()
        return options

    def variables(self) -> dict[str, str | None]:
        """Return the variables to build obstore's client with: it takes proxies from them by rules of its own."""
        return {**dict.fromkeys(PROXY_VARIABLES), **self.trust.obstore_variables()}

"""The arguments of the file systems on HTTP: fsspec's own, on aiohttp, and that of webdav4, on httpx."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luxfuse.core.urls import endpoint_fault
from luxfuse.errors import ConfigError
from luxfuse.understore.failures import safe_url
from luxfuse.understore.reach import CONNECT_TIMEOUT_S, READ_TIMEOUT_S, Reach
from luxfuse.understore.variables import variables


def http_arguments(source: str, arguments: dict[str, Any], timeout_s: float, reaching: Mapping[str, str]) -> dict[str, Any]:
    """Return the arguments of fsspec's HTTP file system, with those that are ``reaching`` in its form."""
    import aiohttp

    client = arguments.setdefault("client_kwargs", {})
    client.setdefault(
        "timeout",
        aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONNECT_TIMEOUT_S, sock_read=READ_TIMEOUT_S),
    )
    arguments["get_client"] = _client_maker(Reach.of((source,), reaching, variables()))
    arguments.setdefault("encoded", True)
    arguments.setdefault("simple_links", False)
    return arguments


def _client_maker(reach: Reach) -> Any:
    async def get_client(*, loop: Any, **named: Any) -> Any:
        import aiohttp

        connector = aiohttp.TCPConnector(ssl=reach.trust.ssl_context())
        proxy = next(iter(reach.proxies().values()), None)
        return aiohttp.ClientSession(loop=loop, connector=connector, proxy=proxy, **named)

    return get_client


def webdav_arguments(
    source: str, arguments: dict[str, Any], endpoint_url: str | None, timeout_s: float, reaching: Mapping[str, str]
) -> dict[str, Any]:
    """Return the arguments of the file system of webdav4. Raises `ConfigError` if they name no server."""
    base_url = arguments.setdefault("base_url", endpoint_url)
    if not base_url or endpoint_fault(str(base_url)):
        raise ConfigError(f"source {safe_url(source)!r}: does not say the server; add --endpoint-url https://HOST/PATH, "
                          "or the storage option base_url")  # fmt: skip
    if "username" in arguments:
        arguments["auth"] = (arguments.pop("username"), arguments.pop("password", ""))
    reach = Reach.of((str(base_url),), reaching, variables())
    arguments |= {"verify": reach.trust.ssl_context(), "trust_env": False}
    arguments.setdefault("proxy", next(iter(reach.proxies().values()), None))
    arguments.setdefault("timeout", min(READ_TIMEOUT_S, timeout_s))
    return arguments

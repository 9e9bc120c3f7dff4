"""Sources on HDFS, and the storage options of both protocols as their clients take them."""

from __future__ import annotations

import getpass
import os
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

from luxfuse.errors import ConfigError
from luxfuse.understore.failures import safe_url
from luxfuse.understore.generic.known import unknown_option
from luxfuse.understore.generic.values import convert
from luxfuse.understore.hdfs.driver import HdfsDriver
from luxfuse.understore.hdfs.native import Native
from luxfuse.understore.hdfs.web import Web
from luxfuse.understore.reach import CONNECT_TIMEOUT_S, OPTIONS, READ_TIMEOUT_S, Reach
from luxfuse.understore.variables import variables

WEB = "webhdfs://"

_NAMED = frozenset({"kerberos_principal", "kerberos_keytab", "kerberos_cache", "config_dir"})
_OF_WEB = frozenset({"user", "password", "token", "proxy_to", "kerberos", "kerb_kwargs", "data_proxy", "use_https",
                     "session_cert"})  # fmt: skip
MOST_CONNECTIONS = 256
"""Kept to one host; requests closes those beyond, and warns of each."""

_PORTS = {False: 9870, True: 9871}


def open_hdfs(source: str, endpoint_url: str | None, options: Mapping[str, str], timeout_s: float) -> HdfsDriver:
    """Open a source on HDFS. Raises `ConfigError`."""
    if endpoint_url:
        raise ConfigError(f"--endpoint-url: {safe_url(source)!r} has no endpoint to choose")
    root = source.partition("://")[2].partition("/")[2].strip("/")
    tree = _web(source, options, timeout_s) if source.startswith(WEB) else _native(source, options, timeout_s)
    return HdfsDriver(tree, f"/{root}", request_timeout_s=timeout_s)


def _native(source: str, options: Mapping[str, str], timeout_s: float) -> Native:
    url = "://".join((source.partition("://")[0], source.partition("://")[2].partition("/")[0]))
    if "@" in url:
        raise ConfigError(f"source {safe_url(source)!r}: no user can be named in it; set HADOOP_USER_NAME, or the storage "
                          "option kerberos_principal")  # fmt: skip
    for name in sorted(options):
        if name not in _NAMED and "." not in name:  # all settings of Hadoop have one
            raise unknown_option(source, name, _NAMED | {"any setting of Hadoop"})
    named = {name: value for name, value in options.items() if name in _NAMED}
    settings = {"dfs.client.socket-timeout": str(round(1000 * min(READ_TIMEOUT_S, timeout_s)))}
    settings |= {name: value for name, value in options.items() if name not in _NAMED}
    try:
        return Native(url, settings, named, timeout_s)
    except ImportError:
        raise ConfigError(f"source {safe_url(source)!r}: needs the package hdfs-native; install it with: pip install "
                          "'luxfuse[hdfs]'") from None  # fmt: skip
    except (ValueError, RuntimeError, OSError) as exc:
        raise ConfigError(
            f"source {safe_url(source)!r}: cannot be opened ({type(exc).__name__}); name a name node as "
            "hdfs://HOST:8020/PATH, or a name service of the Hadoop configuration in HADOOP_CONF_DIR"
        ) from None


def _web(source: str, options: Mapping[str, str], timeout_s: float) -> Web:
    for name in sorted(options):
        if name not in _OF_WEB | OPTIONS:
            raise unknown_option(source, name, _OF_WEB | OPTIONS)
    given: dict[str, Any] = {name: convert(name, value) for name, value in options.items() if name in _OF_WEB}
    if "data_proxy" in given:
        given["data_proxy"] = convert("data_proxy_kwargs", options["data_proxy"])
    parts = urlsplit(source)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    secure = given.setdefault("use_https", False)
    port = parts.port or _PORTS[bool(secure)]
    if parts.username:
        given.setdefault("user", unquote(parts.username))
    if not {"user", "password", "token", "kerberos"} & given.keys():
        given["user"] = os.environ.get("HADOOP_USER_NAME") or getpass.getuser()  # as Hadoop's own client does
    reach = Reach.of((f"{'https' if secure else 'http'}://{host}:{port}",), options, variables())
    try:
        from fsspec.implementations.webhdfs import WebHDFS
        from requests.adapters import HTTPAdapter

        filesystem = WebHDFS(host, port=port, skip_instance_cache=True, **given)
    except ImportError as exc:
        package = "requests-kerberos" if exc.name == "requests_kerberos" else "luxfuse[hdfs]"
        raise ConfigError(f"source {safe_url(source)!r}: a package is missing; install it with: pip install "
                          f"'{package}'") from None  # fmt: skip
    except ValueError:
        raise ConfigError(f"source {safe_url(source)!r}: of the storage options user, password, token and kerberos some do "
                          "not go together") from None  # fmt: skip
    for scheme in ("http://", "https://"):
        filesystem.session.mount(scheme, HTTPAdapter(pool_maxsize=MOST_CONNECTIONS))
    filesystem.session.trust_env = False
    filesystem.session.verify, filesystem.session.proxies = reach.trust.verify, reach.proxies()
    return Web(filesystem, (CONNECT_TIMEOUT_S, min(READ_TIMEOUT_S, timeout_s)))

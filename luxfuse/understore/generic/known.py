"""Which storage options a file system of fsspec understands, read off its signatures: others are refused.

Most of them take any keyword, and drop what they do not know.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from luxfuse.errors import ConfigError

_EVERYWHERE = frozenset({"listings_expiry_time", "max_paths", "batch_size"})
_NOT_OURS = frozenset({"self", "asynchronous", "loop", "session", "fs", "client", "method", "str_or_url", "data",
                       "json", "params", "skip_instance_cache", "use_listings_cache"})  # fmt: skip
_STRICT = ("fsspec.", "s3fs.", "adlfs.", "gcsfs.")
"""Modules of classes that drop unknown arguments, or fail with a TypeError; others may hand it on to a client."""
_HANDED_ON: dict[str, tuple[str, ...]] = {
    "sftp": ("paramiko:SSHClient.connect",),
    "ssh": ("paramiko:SSHClient.connect",),
    "http": ("aiohttp:ClientSession._request",),
    "https": ("aiohttp:ClientSession._request",),
    "webdav": ("webdav4.client:Client", "httpx:Client"),
}
_BY_NAME: dict[str, frozenset[str]] = {
    "s3": frozenset({"profile"}),
    "az": frozenset({
        "authority", "managed_identity_client_id", "workload_identity_client_id", "exclude_environment_credential",
        "exclude_managed_identity_credential", "exclude_cli_credential", "exclude_workload_identity_credential",
        "exclude_developer_cli_credential", "exclude_powershell_credential", "exclude_shared_token_cache_credential",
        "exclude_visual_studio_code_credential", "exclude_interactive_browser_credential", "process_timeout",
        "require_envvar", "shared_cache_username", "shared_cache_tenant_id", "visual_studio_code_tenant_id",
        "workload_identity_tenant_id",
    }),
}  # fmt: skip
"""By family: the arguments of a class that has no signature to read."""


def refuse_unknown(source: str, family: str, options: Iterable[str], ours: Iterable[str], protocol: str) -> None:
    """Raise `ConfigError` for the first of ``options`` that nobody would heed. ``ours``: names that we translate."""
    known = _known(protocol, family)
    if known is None:
        return
    known = known | frozenset(ours)
    for name in sorted(options):
        if name not in known:
            raise unknown_option(source, name, known)


def unknown_option(source: str, name: str, known: Iterable[str]) -> ConfigError:
    """Return the error for an option that is not among the ``known`` ones."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, 1)
    others = f"it knows {', '.join(known)}" if known else "it has none"
    hint = f"did you mean {near[0]}?" if near else others
    kind = f"{source.partition('://')[0]}://" if "://" in source else "a local directory"
    return ConfigError(f"storage option {name}: {kind} does not know it; {hint}")


def refuse_unknown_inside(name: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise `ConfigError` for the first name in the JSON object of option ``name`` that is not among the ``known`` ones."""
    known = frozenset(known)
    for inner in sorted(given):
        if inner not in known:
            near = difflib.get_close_matches(inner, known, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ConfigError(f"storage option {name}: {inner!r} is not known there{hint}")


def _known(protocol: str, family: str) -> frozenset[str] | None:
    """Return the names that a file system heeds; None if that cannot be told, or there is no such file system."""
    try:
        import fsspec

        cls = fsspec.get_filesystem_class(protocol.partition("::")[0])
    except (ImportError, ValueError):
        return None  # which is told better where it is opened
    names: set[str] = set()
    for base in cls.__mro__:
        if base.__module__ in ("builtins", "fsspec.spec", "fsspec.asyn", "fsspec.archive") or "__init__" not in vars(base):
            continue
        found, open_ended = _parameters(base.__init__)
        names |= found
        if not open_ended:
            break
        if not base.__module__.startswith(_STRICT) and protocol not in _HANDED_ON:
            return None
    if not family:
        names |= _EVERYWHERE
    for target in _HANDED_ON.get(protocol, ()):
        names |= _parameters(_resolve(target))[0]
    return frozenset(names - _NOT_OURS) | _BY_NAME.get(family, frozenset())


def _resolve(target: str) -> Callable[..., Any]:
    module, _, path = target.partition(":")
    found: Any = importlib.import_module(module)
    for part in path.split("."):
        found = getattr(found, part)
    return found.__init__ if inspect.isclass(found) else found


def _parameters(function: Callable[..., Any]) -> tuple[set[str], bool]:
    parameters: Mapping[str, inspect.Parameter] = inspect.signature(function).parameters
    named = {name for name, p in parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    return named, any(p.kind is p.VAR_KEYWORD for p in parameters.values())

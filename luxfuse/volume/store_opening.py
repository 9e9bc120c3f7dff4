"""The beginning with the store of a volume: its driver is opened, and it proves that it is there."""

from __future__ import annotations

import os

import trio

from luxfuse.config import Settings
from luxfuse.configuration.building import read_again
from luxfuse.core.proxies import proxy_for
from luxfuse.errors import (
    AccessDenied,
    BucketMissing,
    ConfigError,
    DeadlinePassed,
    LuxError,
    MountError,
    NoCredentials,
    NotFound,
    StoreUnavailable,
)
from luxfuse.understore.base import UnderStore
from luxfuse.understore.factory import open_driver
from luxfuse.understore.failures import safe_url
from luxfuse.understore.protocols import scheme_fault
from luxfuse.understore.renewing import with_secrets
from luxfuse.understore.retrying import Store
from luxfuse.understore.unopened import abilities_of, open_or_wait
from luxfuse.understore.variables import variables

PROBE_DEADLINE_S = 10.0
SUCCESSOR_PATIENCE_S = 2.0
"""Programs wait while a successor opens its driver."""


async def open_store(settings: Settings, *, successor: bool) -> UnderStore:
    """Open the driver; where there is something to serve without it, it may be opened later. Raises `LuxError`.

    ``successor``: a daemon before this one has served with the same settings.
    """
    s = settings

    def opened(options: dict[str, str]) -> UnderStore:
        return open_driver(
            s.source,
            endpoint_url=s.endpoint_url,
            storage_options=options,
            driver=s.driver,
            request_timeout_s=s.request_timeout_s,
            reread=None if s.config_file is None else lambda: _secrets_again(s),
            direct_gets=s.max_requests if s.dataplane else 0,
        )

    def open_now() -> UnderStore:
        if successor:
            return open_or_wait(lambda: opened(_options_now(s)), abilities_of(s.source), SUCCESSOR_PATIENCE_S, _any)
        if may_be_known(s):
            return open_or_wait(lambda: opened(_options_now(s)), abilities_of(s.source), PROBE_DEADLINE_S, is_passing)
        return opened(s.driver_options)

    return await trio.to_thread.run_sync(open_now)


def may_be_known(settings: Settings) -> bool:
    """Whether a cache directory of the source is there from an earlier mount."""
    # `Path.is_dir` raises where this user may not look.
    return any(os.access(f"{setting.path}/{settings.source_id}/.", os.F_OK) for setting in settings.cache_dirs)


def is_passing(error: LuxError) -> bool:
    """Whether an error says nothing of the store but that it does not answer now, or cannot be asked."""
    return type(error) in (StoreUnavailable, DeadlinePassed, NoCredentials)


def _any(_error: LuxError) -> bool:
    return True


def _secrets_again(settings: Settings) -> dict[str, str]:
    """Return the options of the driver with the secrets that the configuration file has now. Raises `ConfigError`."""
    new = read_again(settings)
    if new.source != settings.source:  # an attached under-store, whose options are not in the file
        return settings.driver_options
    return with_secrets(settings.driver_options, new.driver_options)


def _options_now(settings: Settings) -> dict[str, str]:
    try:
        return settings.driver_options if settings.config_file is None else _secrets_again(settings)
    except ConfigError:
        return settings.driver_options  # those of before may do


async def prove(store: Store, settings: Settings) -> MountError | None:
    """Have the store prove that it is there; returns the error if it does not answer now. Raises `MountError`."""
    source = safe_url(settings.source)
    with trio.move_on_after(PROBE_DEADLINE_S - 1) as scope:
        try:
            await store.probe()
        except NoCredentials as exc:
            return MountError(f"{source}: {exc}")
        except BucketMissing as exc:
            raise MountError(f"{source}: {exc}; create the bucket or correct its name") from None
        except NotFound as exc:
            raise MountError(f"{source}: {exc}") from None
        except AccessDenied as exc:
            raise MountError(f"{source}: {exc}") from None
        except LuxError as exc:
            failed = MountError(f"{source}: {exc}{await _scheme_fault(settings)}")
            if is_passing(exc):
                return failed
            raise failed from None
    if scope.cancelled_caught:
        where = safe_url(settings.endpoint_url) if settings.endpoint_url else "its endpoint"
        fault = await _scheme_fault(settings)
        if (error := store.counters.last_failure) is not None:
            return MountError(f"{source}: {error}; so each time within 10 s: check {where}{fault}")
        return MountError(f"{source}: {where} did not answer within 10 s; check the address and the network{fault}")
    return None


async def _scheme_fault(settings: Settings) -> str:
    """Return what is wrong with http or https in the URL of the endpoint, to be appended; "" where nothing is known."""
    url = settings.endpoint_url or settings.source
    if not url.startswith(("http://", "https://")):
        return ""
    if proxy_for(url, variables(), settings.driver_options.get("proxy_url")):
        return ""
    fault = await trio.to_thread.run_sync(scheme_fault, url, abandon_on_cancel=True)
    return f"; {fault}" if fault else ""

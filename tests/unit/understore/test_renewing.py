"""Credentials that expire are renewed in time; rotated ones are read again; what is refused says why."""

from __future__ import annotations

import dataclasses
import errno
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from luxfuse.errors import AccessDenied, ConfigError, StoreUnavailable, WrongRegion
from luxfuse.understore import renewing
from luxfuse.understore.base import UnderStore
from luxfuse.understore.factory import open_driver
from luxfuse.understore.s3 import access as s3_access
from luxfuse.understore.s3 import credentials as s3_credentials
from luxfuse.understore.s3 import programs
from luxfuse.understore.s3.credentials import Frozen, S3Credentials
from tests.support import issuers
from tests.support.front import Answer, front, s3_error
from tests.support.issuers import CONTAINER_TOKEN, TO_RENEWAL_S, WEB_IDENTITY, Clock, Issuers, ValidTokens, token_of
from tests.support.mounted import wait_for
from tests.support.servers_store import moto_url  # noqa: F401
from tests.support.store_targets import s3_client

DRIVERS = ("obstore", "fsspec")
NUDGE_S = 10.0
KINDS = ("instance", "container", "assumed", "web", "pod", "program")


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A home without credentials, and no variables of the machine's own."""
    for name in os.environ:
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    (tmp_path / ".aws").mkdir()
    return tmp_path


@pytest.fixture
def bucket(moto_url: str) -> str:  # noqa: F811
    s3_client(moto_url).create_bucket(Bucket="renewing")
    return moto_url


def opened(endpoint: str, driver: str, options: dict[str, str] | None = None, **named: Any) -> UnderStore:
    return open_driver("s3://renewing", endpoint_url=endpoint, storage_options=options, driver=driver, **named)  # type: ignore[arg-type]


def prepare(kind: str, all_kinds: Issuers, monkeypatch: pytest.MonkeyPatch, home: Path) -> dict[str, str]:
    """Make the AWS tools find credentials of ``kind``; returns storage options."""
    monkeypatch.delenv("AWS_EC2_METADATA_DISABLED", raising=False)
    monkeypatch.delenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", raising=False)
    monkeypatch.delenv("AWS_ROLE_ARN", raising=False)
    token = home / "token"
    token.write_text(WEB_IDENTITY)
    if kind == "instance":
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", all_kinds.url)
    elif kind == "container":
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{all_kinds.url}/container")
        monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN", CONTAINER_TOKEN)
    elif kind == "assumed":
        return {"profile": "assumed"}
    elif kind == "web":
        return {"role_arn": "arn:aws:iam::123456789012:role/r", "web_identity_token_file": str(token)}
    elif kind == "pod":  # as Kubernetes on AWS sets it
        monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/pod")
        monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(token))
    else:
        return {"profile": "program"}
    return {}


def write_profiles(home: Path, all_kinds: Issuers, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / ".aws/config").write_text(
        "[profile base]\naws_access_key_id = AKIABASE\naws_secret_access_key = secret\n"
        "[profile assumed]\nrole_arn = arn:aws:iam::123456789012:role/r\nsource_profile = base\n"
        f"[profile program]\ncredential_process = {all_kinds.program(home)}\n"
    )
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", all_kinds.url)
    monkeypatch.setenv("AWS_METADATA_SERVICE_TIMEOUT", "10")  # a machine that is busy
    # It would take what expires within minutes to hold for longer.
    monkeypatch.setattr("botocore.utils.InstanceMetadataFetcher._evaluate_expiration", lambda self, found: None)


def test_every_kind_of_temporary_credentials_is_renewed_under_load(bucket, home, monkeypatch):
    clock = Clock(home / "now")
    clock.rule(monkeypatch)
    tokens = ValidTokens(clock)
    with ExitStack() as stack:
        all_kinds = stack.enter_context(issuers.issuers(clock))
        endpoint = stack.enter_context(front(bucket, tokens))
        write_profiles(home, all_kinds, monkeypatch)
        stores = {}
        for kind in KINDS:
            options = prepare(kind, all_kinds, monkeypatch, home)
            for driver in DRIVERS:
                stores[kind, driver] = opened(endpoint, driver, options)
                stack.callback(stores[kind, driver].close)

        def issued(kind: str) -> int:
            return len((home / "runs").read_text().splitlines()) if kind == "program" else all_kinds.issued[kind]

        failures: list[str] = []
        enough = threading.Event()
        wanted, nudged_s = {token_of(clock)}, [time.monotonic()]

        def load(kind: str, driver: str) -> None:
            store, key = stores[kind, driver], f"{driver}-{kind}"
            while not enough.is_set() and not failures:
                try:
                    info = store.put(key, b"content", {})
                    store.head(key)
                    store.read(key, 0, 7, info.version)
                    store.copy(key, key + "-copy", version=info.version)
                except Exception as exc:
                    failures.append(f"{kind}: {exc}")
                time.sleep(0.05)

        def used() -> bool:
            """Whether no request that is under way has older credentials: each thread makes one after the other."""
            found = {tokens.last.get(f"/renewing/{driver}-{kind}") for kind, driver in stores}
            if not failures and not found <= wanted and time.monotonic() > nudged_s[0] + NUDGE_S and len(wanted) < 4:
                nudged_s[0] = time.monotonic()
                clock.move(s3_credentials.CHECK_S + 1)  # what had no answer, or one of before, is asked again by this clock
                wanted.add(token_of(clock))
            return bool(failures) or found <= wanted

        def moved(seconds: float) -> None:
            clock.move(seconds)
            wanted.clear()
            wanted.add(token_of(clock))
            nudged_s[0] = time.monotonic()

        threads = [threading.Thread(target=load, args=each) for each in stores]
        for thread in threads:
            thread.start()
        try:
            wait_for("the first are used", used)
            for _ in range(2):
                moved(TO_RENEWAL_S)
                wait_for("all are renewed, while the old ones hold", used)
        finally:
            enough.set()
            for thread in threads:
                thread.join()
    assert failures == []
    least = 3 * len(DRIVERS)
    assert {kind: n for kind in KINDS if not least <= (n := issued(kind)) <= least + 2} == {}, "not for each request"


def write_keys(home: Path, key: str, token: str = "") -> None:
    more = f"aws_session_token = {token}\n" if token else ""
    (home / ".aws/credentials").write_text(f"[default]\naws_access_key_id = {key}\naws_secret_access_key = s\n{more}")


class Keys:
    """A check that accepts one key."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.code = "InvalidAccessKeyId"
        self.refused = 0

    def __call__(self, request: Any) -> Answer | None:
        if f"Credential={self.key}/" in request.headers.get("Authorization", ""):
            return None
        self.refused += 1
        status = 403 if self.code == "InvalidAccessKeyId" else 400
        return Answer(status) if request.command == "HEAD" else s3_error(status, self.code)


@pytest.fixture
def keys() -> Keys:
    return Keys("AKIAONE")


@pytest.fixture
def picky(bucket: str, keys: Keys) -> Iterator[str]:
    with front(bucket, keys) as url:
        yield url


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("first", ["head", "delete"])
@pytest.mark.parametrize("code", ["InvalidAccessKeyId", "ExpiredToken"])
def test_a_rotated_credentials_file_is_read_after_a_refusal(picky, keys, driver, first, code, home):
    write_keys(home, "AKIAONE", "token")
    store = opened(picky, driver)
    info = store.put("a", b"1", {})
    assert store.head("a").version == info.version
    write_keys(home, "AKIATWO", "token")
    keys.key, keys.code = "AKIATWO", code
    listing = store.list_directory("")
    if first == "head":
        assert store.head("a").version == info.version
    else:
        assert store.delete(["a"]) == {}
    store.put("b", b"2", {})
    store.copy("b", "c")
    assert any(page.objects for page in listing)
    assert keys.refused <= 2
    store.close()


@pytest.mark.parametrize("driver", DRIVERS)
def test_what_has_expired_is_no_io_error_and_says_so(picky, keys, driver, home):
    write_keys(home, "AKIAONE", "token")
    store = opened(picky, driver)
    store.probe()
    keys.key, keys.code = "AKIATWO", "ExpiredToken"
    for call in (lambda: store.head("a"), lambda: store.read("a", 0, 1, '"x"'), lambda: store.delete(["a"]),
                 lambda: store.put("a", b"", {}), lambda: store.copy("a", "b"), store.probe):  # fmt: skip
        for _ in range(3):
            with pytest.raises(AccessDenied, match=r"credentials have expired; .*the shared credentials file") as caught:
                call()
            assert caught.value.errno == errno.EACCES
            assert "\n" not in str(caught.value)
    assert keys.refused <= 20, "one request for each call, and one to find out why HEAD was refused"
    write_keys(home, "AKIATWO")
    store._looked_s = -renewing.PAUSE_S  # type: ignore[attr-defined]
    store.put("a", b"", {})
    store.close()


def test_threads_that_are_refused_at_once_read_again_once(picky, keys, home, monkeypatch):
    write_keys(home, "AKIAONE")
    store = opened(picky, "obstore")
    store.put("a", b"content", {})
    write_keys(home, "AKIATWO")
    keys.key = "AKIATWO"
    replaced = []
    replace = renewing.RenewingDriver._replace
    monkeypatch.setattr(
        renewing.RenewingDriver, "_replace", lambda self, *a, **k: replaced.append(1) or replace(self, *a, **k)
    )
    version, failures = store_version(store), []

    def read() -> None:
        try:
            for _ in range(5):
                store.read("a", 0, 7, version)
        except Exception as exc:
            failures.append(exc)

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(replaced) == 1
    store.close()


def store_version(store: UnderStore) -> str:
    return store.head("a").version


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize(
    ("options", "origin"),
    [
        ({"sas_token": "?sv=1&se=2024-05-01T00%3A00%3A00Z&sig=hidden"},
         r"option sas_token, whose signature expired at 2024-05-01T00:00:00\+00:00$"),
        ({"connection_string": "AccountName=acc;BlobEndpoint=URL;SharedAccessSignature=sv=1&se=2024-05-01&sig=hidden"},
         r"option connection_string, whose signature expired at 2024-05-01T00:00:00\+00:00$"),
        ({"account_key": "aGlkZGVu"}, r"option account_key$"),
    ],
)  # fmt: skip
def test_azure_says_which_credentials_are_refused_and_reads_others(driver, options, origin):
    def check(request: Any) -> Answer | None:
        if "new-signature" in request.path:
            listing = b"<?xml version='1.0'?><EnumerationResults><Blobs/><NextMarker/></EnumerationResults>"
            return Answer(200, listing, {"Content-Type": "application/xml"})
        body = b"<?xml version='1.0'?><Error><Code>AuthenticationFailed</Code><Message>no</Message></Error>"
        return Answer(403, body, {"x-ms-error-code": "AuthenticationFailed", "Content-Type": "application/xml"})

    with front("http://127.0.0.1:9", check) as url:
        written = {"account_name": "acc", **{name: value.replace("URL", url) for name, value in options.items()}}
        store: Any = open_driver(
            "az://c", endpoint_url=None if "connection_string" in options else url, storage_options=dict(written),
            driver=driver, reread=lambda: dict(written), request_timeout_s=5.0,
        )  # fmt: skip
        wanted = rf"AuthenticationFailed.*those in use are from the storage {origin}"
        with pytest.raises(AccessDenied, match=wanted) as caught:
            store.probe()
        assert "hidden" not in str(caught.value)
        written = {"account_name": "acc", "sas_token": "sv=1&se=2124-05-01&sig=new-signature", "endpoint": url}
        store._looked_s = -renewing.PAUSE_S
        store.probe()
        store.close()


def test_a_profile_that_there_is_not_is_said_at_once(monkeypatch):
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(AccessDenied, match=r"profile \(nobody\) could not be found"):
        opened("http://127.0.0.1:9", "obstore", {"key": "a", "secret": "b"})


def test_secrets_are_read_again_where_they_were_written(picky, keys):
    written = {"key": "AKIAONE", "secret": "s"}
    store = opened(picky, "obstore", dict(written), reread=lambda: dict(written))
    store.probe()
    keys.key = written["key"] = "AKIATWO"
    store.put("a", b"", {})
    store.close()


@pytest.mark.expected_logs("credentials cannot be read again: --config f: bad")
def test_options_that_cannot_be_read_again_leave_the_refusal(picky, keys):
    def reread() -> dict[str, str]:
        raise ConfigError("--config f: bad")

    store = opened(picky, "obstore", {"key": "AKIAONE", "secret": "s"}, reread=reread)
    keys.key = "AKIATWO"
    with pytest.raises(AccessDenied, match=r"InvalidAccessKeyId.*those in use are from the storage options key and secret"):
        store.probe()
    store.close()


def test_new_secrets_are_tried_before_they_are_used(picky, keys):
    store: Any = opened(picky, "obstore", {"key": "AKIAONE", "secret": "s"})
    with pytest.raises(AccessDenied):
        store.renew({"key": "AKIATHREE", "secret": "s"})
    store.put("a", b"", {})
    assert not store.renew()
    keys.key = "AKIATWO"
    assert store.renew({"key": "AKIATWO", "secret": "s"})
    store.put("a", b"", {})
    assert keys.refused == 1
    store.close()


def test_credentials_are_renewed_behind_while_the_old_ones_hold():
    go, fetched = threading.Event(), []

    def fetch() -> tuple[Frozen, Any]:
        import datetime

        if fetched:
            go.wait(120)
        fetched.append(1)
        return Frozen(f"key{len(fetched)}", "s", None), datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=1)

    source: Any = S3Credentials(fetch, "here")
    assert source.current().access_key == "key1"
    source._lease = dataclasses.replace(source._lease, renew_s=0.0)  # they are to be renewed, and hold
    assert source.current().access_key == "key1"  # without waiting
    go.set()
    wait_for("they are renewed", lambda: source.current().access_key == "key2")


@pytest.mark.parametrize(
    ("failure", "error"),
    [(OSError("hidden text"), AccessDenied), (type("ConnectTimeoutError", (Exception,), {})("hidden"), StoreUnavailable)],
)
def test_credentials_that_cannot_be_had_say_from_where_and_are_not_asked_for_at_once_again(failure, error):
    asked = []

    def fetch() -> tuple[Frozen, None]:
        asked.append(1)
        raise failure

    source = S3Credentials(fetch, "credential_process, profile p")
    for _ in range(3):
        with pytest.raises(error, match=r"from credential_process, profile p \((OSError|ConnectTimeoutError)\)") as caught:
            source.current()
        assert "hidden" not in str(caught.value)
    assert len(asked) == 1


def test_sources_that_hang_are_not_asked_again_without_end(monkeypatch):
    monkeypatch.setattr(s3_credentials, "_fetches", threading.BoundedSemaphore(1))
    monkeypatch.setattr(s3_credentials, "FETCH_LIMIT_S", 0.05)
    go = threading.Event()
    for text in ("no credentials came within", "earlier attempts still hang"):
        source = S3Credentials(lambda: (go.wait(120), None), "the program")  # type: ignore[arg-type,return-value]
        with pytest.raises(StoreUnavailable, match=text):
            source.current()
    go.set()


def test_a_source_that_hangs_is_given_up(monkeypatch):
    monkeypatch.setattr(s3_credentials, "FETCH_LIMIT_S", 0.1)
    go = threading.Event()
    source = S3Credentials(lambda: (go.wait(120), None), "the program")  # type: ignore[arg-type,return-value]
    with pytest.raises(StoreUnavailable, match=r"no credentials came within 0\.1 s from the program"):
        source.current()
    go.set()


def test_an_sts_that_is_silent_is_not_waited_for_in_vain(home, monkeypatch):
    monkeypatch.setattr(s3_access, "READ_TIMEOUT_S", 0.2)
    monkeypatch.setattr(s3_credentials, "FETCH_LIMIT_S", 120.0)  # the library takes a while to load
    write_keys(home, "AKIABASE")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(StoreUnavailable, match=r"the role that the profile assumes.*ReadTimeoutError"):
            opened("http://127.0.0.1:9", "obstore", {"role_arn": "arn:aws:iam::123456789012:role/r"})


def test_a_region_that_cannot_be_used_now_is_tried_again(monkeypatch, expected_logs, caplog):
    """The driver is opened anew for it, which may need credentials that cannot be had for a moment."""
    expected_logs.append("region eu-west-9 cannot be used")
    now_s, reached, fails = time.monotonic(), [], True
    monkeypatch.setattr(time, "monotonic", lambda: now_s)

    class Elsewhere:
        def __init__(self, region: str | None) -> None:
            self.region = region

        def has_prefix(self, prefix: str) -> bool:
            if self.region is None:
                raise WrongRegion("the bucket is in another region", "eu-west-9")
            return True

        def close(self) -> None:
            pass

    def reach(options: Any) -> Any:
        reached.append(options.get("region"))
        if fails and reached[-1]:
            raise StoreUnavailable("no credentials could be had")

    driver = renewing.RenewingDriver(reach, lambda options, _access: Elsewhere(options.get("region")), {})  # type: ignore[arg-type, return-value]
    for _ in range(3):
        with pytest.raises(WrongRegion):
            driver.has_prefix("d/")
    assert reached == [None, "eu-west-9"], "opened with each request"
    for tried in range(3, 12):
        now_s += renewing.PAUSE_S
        with pytest.raises(WrongRegion):
            driver.has_prefix("d/")
        assert len(reached) == tried, "not tried again though the pause is over"
    assert len([record for record in caplog.records if record.levelname == "WARNING"]) == 1
    now_s += renewing.PAUSE_S
    fails = False
    assert driver.has_prefix("d/")
    driver.close()


@pytest.mark.parametrize("profile", ["program", "assumed"])
def test_a_program_that_hangs_is_ended_and_run_again(home, monkeypatch, profile):
    """Else the thread that waits for it would keep all requests waiting for ever, though its network is back."""
    monkeypatch.setattr(programs, "LIMIT_S", 0.2)
    program, started = home / "program", home / "started"
    (home / ".aws/config").write_text(
        f"[profile program]\ncredential_process = {program}\n"
        "[profile assumed]\nrole_arn = arn:aws:iam::123456789012:role/r\nsource_profile = program\n"
    )
    program.write_text(f"#!/bin/sh\nsleep 1000 &\necho $! > {started}.new\nmv {started}.new {started}\nwait\n")
    program.chmod(0o700)
    with pytest.raises(StoreUnavailable, match=r"the program that gives credentials took longer than 0\.2 s"):
        opened("http://127.0.0.1:9", "obstore", {"profile": profile})
    if started.exists():  # on a busy machine it may not have come so far
        wait_for("what it has started has ended", lambda: not is_alive(int(started.read_text())))
    monkeypatch.setattr(programs, "LIMIT_S", 120.0)
    program.write_text('#!/bin/sh\necho "{\\"Version\\": 1, \\"AccessKeyId\\": \\"A\\", \\"SecretAccessKey\\": \\"s\\"}"\n')
    if profile == "program":
        opened("http://127.0.0.1:9", "obstore", {"profile": profile}).close()


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"  # nobody may be there to wait for it


def test_that_no_thread_can_be_started_now_says_nothing_of_later(monkeypatch):
    frozen = Frozen("key", "s", None)
    source = S3Credentials(lambda: (frozen, None), "here")
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", no_more_threads)
        for _ in range(2 * s3_credentials.MOST_FETCHES):
            with pytest.raises(StoreUnavailable, match="can't start new thread"):
                source.current()
    assert source.current() == frozen


def no_more_threads(_thread: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")

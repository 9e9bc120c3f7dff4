"""Content of Azure and Google by C (`understore.gets`): the same as by the drivers' other clients."""

from __future__ import annotations

import gzip
import os
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote

import pytest

from luxfuse import __version__
from luxfuse.errors import NotFound, StoreError, StoreUnavailable, VersionChanged
from luxfuse.understore.azure import gets as azure
from luxfuse.understore.base import UnderStore
from luxfuse.understore.factory import open_driver
from luxfuse.understore.gcs import gets as google
from luxfuse.understore.gets.client import AS_USUAL, IS_BUILT, Door, Elsewhere, Gets
from luxfuse.understore.locations import parse_location
from luxfuse.understore.obstore.options import azure_settings
from luxfuse.understore.small_files import Answer as SmallAnswer
from luxfuse.understore.small_files import SmallFiles, WantedFile
from tests.support.front import Answer, certificate_authority, front
from tests.support.odd_gets import OddGets, body_of
from tests.support.servers_files import make_fake_gcs, serving
from tests.support.servers_store import AZURITE_ACCOUNT, AZURITE_KEY, azurite_url  # noqa: F401
from tests.support.strict_google import GoogleBucket, account, strict_google

pytestmark = pytest.mark.skipif(not IS_BUILT, reason="built without libcurl")
CONTENT = bytes(range(256)) * 400
AGENT = f"luxfuse/{__version__}"


@dataclass
class Place:
    """A bucket behind a front that notes requests; ``answer`` may answer one itself."""

    source: str
    upstream: str
    options: dict[str, str]
    put: Callable[..., Any]
    url: str = ""
    seen: list[Any] = field(default_factory=list)
    answer: Callable[[Any], Answer | None] = lambda request: None

    def check(self, request: Any) -> Answer | None:
        self.seen.append(request)
        return self.answer(request)

    def open(self, in_c: bool = True, **more: str) -> UnderStore:
        return open_driver(
            self.source, endpoint_url=self.url, storage_options={**self.options, **more}, direct_gets=8 if in_c else 0
        )

    def by_c(self) -> list[Any]:
        """The requests that C has made since this was called last."""
        found = [request for request in self.seen if request.headers.get("User-Agent") == AGENT]
        self.seen.clear()
        return found


@pytest.fixture
def azure_place(azurite_url: str) -> Iterator[Place]:  # noqa: F811
    from azure.storage.blob import BlobServiceClient, ContentSettings

    service = BlobServiceClient(azurite_url, credential=AZURITE_KEY)
    container = service.create_container(f"c-{secrets.token_hex(6)}")

    def put(key: str, data: bytes, **properties: str) -> None:
        settings = ContentSettings(content_encoding=properties.get("contentEncoding"))
        container.upload_blob(key, data, overwrite=True, metadata={"Mode": "33188"}, content_settings=settings)

    options = {"account_name": AZURITE_ACCOUNT, "account_key": AZURITE_KEY}
    place = Place(f"az://{container.container_name}", azurite_url, options, put)
    with front(azurite_url, place.check) as url:
        place.url = f"{url}/{AZURITE_ACCOUNT}"
        yield place
    service.close()


@pytest.fixture(scope="module")
def strict_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(make_fake_gcs(tmp_path_factory.mktemp("gcs"))) as server, strict_google(server.url) as (url, _):
        yield url


@pytest.fixture
def google_place(strict_url: str, tmp_path: Path) -> Iterator[Place]:
    bucket = GoogleBucket(strict_url)

    def put(key: str, data: bytes, **properties: str) -> None:
        bucket.put(key, data, metadata={"mode": "33188"}, **properties)

    place = Place(f"gs://{bucket.name}", strict_url, {"token": account(tmp_path, strict_url)}, put)
    with front(strict_url, place.check) as url:
        place.url = url
        yield place
    bucket.close()


@pytest.fixture(params=["azure_place", "google_place"])
def place(request: pytest.FixtureRequest) -> Place:
    return cast(Place, request.getfixturevalue(request.param))


def fetched(driver: UnderStore, *files: WantedFile) -> list[SmallAnswer]:
    return cast(SmallFiles, driver).fetch_small(files, bytearray(1))


def wanted(driver: UnderStore, key: str, path: Path | None = None) -> WantedFile:
    info = driver.head(key)
    return WantedFile(key, info.version, info.size, None if path is None else str(path), False)


KEYS = ["f", "d/e/f", "a b+c&d=e?f#g%20h~i'(j)*!k@:,;$", "ä/ö/日本"]


def test_content_and_descriptions_are_those_of_the_other_client(place: Place, tmp_path: Path) -> None:
    in_c, other = place.open(), place.open(in_c=False)
    assert cast(SmallFiles, in_c).fetches_small
    for key in KEYS:
        place.put(key, CONTENT)
        file = wanted(in_c, key, tmp_path / "file")
        place.by_c()
        (answer,) = fetched(in_c, file)
        assert answer.arrived is not None
        told: list[Any] = []
        reads = [(0, 1), (7, 70_000), (len(CONTENT) - 5, len(CONTENT)), (0, len(CONTENT))]
        data = [bytes(in_c.read(key, *span, file.version, on_described=told.append)) for span in reads]
        assert len(place.by_c()) == 1 + len(reads), "not all by C"
        assert data == [CONTENT[start:end] for start, end in reads]
        assert answer.arrived.data == (tmp_path / "file").read_bytes() == CONTENT
        expected: list[Any] = []
        other.read(key, 0, 1, file.version, on_described=expected.append)
        assert told == expected * len(reads)
        assert [answer.arrived.info] == (expected or [None])
        assert not place.by_c()
    in_c.close()
    other.close()


def test_what_is_stored_compressed_comes_as_it_is(place: Place) -> None:
    packed = gzip.compress(CONTENT)
    place.put("f", packed, contentEncoding="gzip")
    driver = place.open()
    file = wanted(driver, "f")
    assert file.size == len(packed)
    (answer,) = fetched(driver, file)
    assert answer.arrived is not None
    assert answer.arrived.data == packed
    assert driver.read("f", 5, 30, file.version) == packed[5:30]
    driver.close()


def test_another_version_and_none(place: Place, tmp_path: Path) -> None:
    place.put("f", CONTENT)
    driver = place.open()
    file = wanted(driver, "f", tmp_path / "file")
    place.put("f", CONTENT[::-1])
    assert fetched(driver, file, file._replace(key="none"))[0][1:] == (None, None)
    for asked in (2, 2):  # by `fetch_small`, and not again; then by `read`
        with pytest.raises(VersionChanged):
            driver.read("f", 0, 10, file.version)
        with pytest.raises(NotFound):
            driver.read("none", 0, 10, file.version)
        assert len(place.by_c()) == asked
    assert not (tmp_path / "file").exists()
    driver.close()


def test_a_busy_store_and_one_that_sends_elsewhere(place: Place) -> None:
    place.put("f", CONTENT)
    driver = place.open()
    file = wanted(driver, "f")
    place.answer = lambda request: Answer(503, b"") if request.headers.get("User-Agent") == AGENT else None
    assert isinstance(fetched(driver, file)[0].error, StoreUnavailable)
    with pytest.raises(StoreUnavailable):
        driver.read("f", 0, 10, file.version)
    elsewhere = Answer(307, b"", {"Location": f"{place.url}/elsewhere"})
    place.answer = lambda request: elsewhere if request.headers.get("User-Agent") == AGENT else None
    place.by_c()
    assert fetched(driver, file)[0][1:] == (None, None)
    assert driver.read("f", 0, 10, file.version) == CONTENT[:10]
    assert not any("elsewhere" in request.path for request in place.seen)
    assert cast(SmallFiles, driver).fetches_small
    for key in "ghi":
        fetched(driver, file._replace(key=key))
    assert not cast(SmallFiles, driver).fetches_small
    driver.close()


def test_only_the_named_authority_is_believed(place: Place, tmp_path: Path) -> None:
    place.put("f", CONTENT)
    right, other = (certificate_authority(tmp_path, name) for name in ("right", "other"))
    driver = place.open()
    file = wanted(driver, "f")
    driver.close()
    if place.source.startswith("gs"):
        place.options = {"token": "anon"}  # tokens come by HTTP here
    with front(place.upstream, place.check, right.server) as url:
        place.url = f"{url}/{AZURITE_ACCOUNT}" if place.source.startswith("az") else url
        for authority, believed in ((right, True), (other, False)):
            driver = place.open(verify=authority.bundle)
            place.by_c()
            (answer,) = fetched(driver, file)
            assert (answer.arrived is not None, len(place.by_c())) == (believed, believed)
            driver.close()


@pytest.mark.parametrize(("kind", "said"), [("slow", "503"), ("cut", "connection broke"), ("silent", "connection broke")])
def test_failures_without_an_answer_are_told(tmp_path: Path, kind: str, said: str) -> None:
    with OddGets() as server:
        dialect = azure.DIALECT
        bundle = str(tmp_path / "none")
        gets = Gets(dialect, f"http://{server.host}/c", "", Door(), bundle=bundle, timeout_s=60, most=4)
        files = [WantedFile(f"{name}-7-3000", '"v7"', 3000, str(tmp_path / name), False) for name in (kind, "good")]
        broken, good = gets.fetch(files, bytearray(1))
        assert isinstance(broken.error, StoreUnavailable)
        assert said in str(broken.error)
        assert good.arrived is not None
        assert good.arrived.data == body_of(7, 3000)
        assert not (tmp_path / kind).exists()


# --- Azure: what opens a container ---


def test_a_signature_that_was_given_and_none(azure_place: Place) -> None:
    azure_place.put("f", CONTENT)
    driver = azure_place.open()
    file = wanted(driver, "f")
    driver.close()
    sent = azure.DoorOfKey(AZURITE_ACCOUNT, AZURITE_KEY, parse_location(azure_place.source).bucket)()
    for given in (f"?{sent.query}", f"{unquote(sent.query or '')}\n"):
        azure_place.options = {"account_name": AZURITE_ACCOUNT, "sas_token": given}
        driver = azure_place.open()
        azure_place.by_c()
        assert fetched(driver, file)[0].arrived is not None
        (request,) = azure_place.by_c()
        assert request.path.endswith(f"/f?{sent.query}")
        driver.close()
    azure_place.options = {"account_name": AZURITE_ACCOUNT, "anon": "true"}
    driver = azure_place.open()
    assert fetched(driver, file)[0][1:] == (None, None), "read by nobody in particular"
    (request,) = azure_place.by_c()
    assert "?" not in request.path
    assert "Authorization" not in request.headers
    driver.close()


def test_an_account_that_allows_no_signatures_is_left_to_obstore(azure_place: Place) -> None:
    azure_place.put("f", CONTENT)
    driver = azure_place.open()
    file = wanted(driver, "f")
    azure_place.answer = lambda request: Answer(403, b"") if "sig=" in request.path else None
    azure_place.by_c()
    assert driver.read("f", 0, 10, file.version) == CONTENT[:10]
    assert len(azure_place.by_c()) == 1
    assert driver.read("f", 0, 10, file.version) == CONTENT[:10]
    assert fetched(driver, file) == [AS_USUAL]
    assert not azure_place.by_c(), "C asks once more, in vain"
    assert not cast(SmallFiles, driver).fetches_small
    driver.close()


def test_signatures_are_renewed_before_they_end(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 1_700_000_000.0
    monkeypatch.setattr(time, "time", lambda: now_s)
    door = azure.DoorOfKey("a", "a2V5", "c")
    first = door()
    now_s += azure.SIGNED_FOR_S - azure.EARLY_S - 1
    assert door() is first
    now_s += 2
    assert door() != first


def test_tokens_are_renewed(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s, asked = 1_700_000_000.0, 0
    monkeypatch.setattr(time, "time", lambda: now_s)
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    fails = False

    def ask() -> tuple[str, float]:
        nonlocal asked
        asked += 1
        if fails:
            raise OSError("no identity is here")
        return f"t{asked}", now_s + 3600

    door = azure.DoorOfToken(ask)
    assert door().headers[-1] == door().headers[-1] == "Authorization: Bearer t1"
    now_s += 3600 - azure.EARLY_S
    assert door().headers[-1] == "Authorization: Bearer t1"
    assert door._over.wait(60)
    assert door().headers[-1] == "Authorization: Bearer t2"
    door.refused()
    door.refused()
    assert door().headers[-1] == "Authorization: Bearer t3"
    door.refused()
    assert door().headers[-1] == "Authorization: Bearer t3", "another one for each refusal"
    now_s += azure.PAUSE_S
    door.refused()
    fails = True
    for _ in range(3):
        with pytest.raises(Elsewhere):
            door()
    assert asked == 4, "asked for again at once"
    now_s += azure.PAUSE_S
    fails = False
    assert door().headers[-1] == "Authorization: Bearer t5"


def test_a_token_that_has_expired_is_left_to_obstore_and_replaced(
    azure_place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The front stands for a service that takes tokens, which Azurite does not by HTTP."""
    azure_place.put("f", CONTENT)
    driver = azure_place.open()
    file = wanted(driver, "f")
    bucket = parse_location(azure_place.source).bucket
    tokens = ["good", "expired"]
    sent = azure.DoorOfKey(AZURITE_ACCOUNT, AZURITE_KEY, bucket)()

    def answer(request: Any) -> Answer | None:
        if request.headers["Authorization"] != "Bearer good":
            return Answer(401, b"")
        del request.headers["Authorization"]
        request.path += f"?{sent.query}"
        return None

    azure_place.answer = answer
    door = azure.DoorOfToken(lambda: (tokens.pop(), 1e12))
    gets = Gets(azure.DIALECT, f"{azure_place.url}/{bucket}", "", door, bundle="/none", timeout_s=60, most=4)
    assert gets.fetch([file], bytearray(1))[0][1:] == (None, None)
    assert gets.fetch([file], bytearray(1))[0].arrived is not None
    driver.close()


BY_SECRET = {"client_id": "i", "client_secret": "s", "tenant_id": "t"}


@pytest.mark.parametrize(
    ("options", "variables", "kind"),
    [
        ({"account_key": "a2V5"}, {}, azure.DoorOfKey),
        ({"sas_token": "sig=x"}, {}, azure.Given),
        ({"sas_token": "sig=x"}, {"AZURE_STORAGE_ACCOUNT_KEY": "a2V5"}, azure.DoorOfKey),
        ({"connection_string": "AccountName=a;AccountKey=a2V5"}, {}, azure.DoorOfKey),
        ({"anon": "true", "account_key": "a2V5"}, {}, azure.Given),
        (BY_SECRET, {}, azure.DoorOfToken),
        ({"sas_token": "sig=x", **BY_SECRET}, {}, azure.DoorOfToken),
        ({}, {}, azure.DoorOfToken),
        ({"use_emulator": "true"}, {}, None),
        ({}, {"AZURE_STORAGE_TOKEN": "t"}, None),
        ({"verify": "false"}, {}, None),
        ({"proxy_url": "http://proxy:1"}, {}, None),
        ({"account_key": "a2V5"}, {"HTTPS_PROXY": "http://proxy:1"}, None),
        ({"endpoint": "https://h/p%20q"}, {}, None),
    ],
)
def test_what_opens_a_container(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, str], variables: dict[str, str], kind: type[Door] | None
) -> None:
    pytest.importorskip("azure.identity")
    for name in [*os.environ]:
        if name.startswith(("AZURE_", "HTTP", "IDENTITY_", "MSI_")):
            monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    location = parse_location("az://c")
    settings, reach = azure_settings(location, None, {"account_name": "a", **options})
    gets = azure.open_gets(location, settings, variables, reach, 10, 4)
    assert (None if gets is None else type(gets.door)) is kind


def test_google_is_read_by_nobody_in_particular_and_with_its_tokens(google_place: Place) -> None:
    google_place.put("f", CONTENT)
    for options, authorization in ((google_place.options, "Bearer t"), ({"token": "anon"}, None)):
        google_place.options = options
        driver = google_place.open()
        file = wanted(driver, "f")
        google_place.by_c()
        assert fetched(driver, file)[0].arrived is not None
        (request,) = google_place.by_c()
        assert request.headers.get("Authorization") == authorization
        assert request.headers["x-goog-if-generation-match"] == file.version
        driver.close()


def test_google_is_not_read_where_each_request_has_to_say_more(google_place: Place) -> None:
    driver = google_place.open(requester_pays="true")
    assert not cast(SmallFiles, driver).fetches_small
    driver.close()
    assert google.DIALECT.versions.fullmatch("0") is None
    with pytest.raises(StoreError):
        driver.read("f", 0, 10, '"etag"')

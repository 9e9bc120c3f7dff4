"""How all clients of a bucket reach it: trusted certificates, proxies, the right region."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import socket
import socketserver
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from luxfuse.errors import ConfigError, NotTrusted, StoreError, WrongRegion
from luxfuse.understore.base import UnderStore
from luxfuse.understore.factory import open_driver
from tests.support.front import Answer, Authority, certificate_authority, front, proxy, s3_error
from tests.support.servers_store import moto_url  # noqa: F401
from tests.support.store_targets import s3_client

KEYS = {"key": "AKIAEXAMPLE", "secret": "s3cr3t/Key+Value=="}
DRIVERS = ("obstore", "fsspec")
REACH = ("verify", "proxy_url", "allow_invalid_certificates")
FIVE_MIB = bytes(5 << 20)


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variables of the machine's own, and no files of the AWS tools."""
    import os

    for name in os.environ:
        if name.startswith(("AWS_", "SSL_CERT_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture
def bucket(moto_url: str) -> str:  # noqa: F811
    s3_client(moto_url).create_bucket(Bucket="reaching")
    return moto_url


@pytest.fixture(scope="module")
def authorities(tmp_path_factory: pytest.TempPathFactory) -> tuple[Authority, Authority]:
    """One that has signed the server's certificate, and an unrelated one."""
    directory = tmp_path_factory.mktemp("ca")
    return certificate_authority(directory, "right"), certificate_authority(directory, "unrelated")


@pytest.fixture
def secure(bucket: str, authorities: tuple[Authority, Authority]) -> Iterator[str]:
    with front(bucket, certificate=authorities[0].server) as url:
        yield url


def opened(endpoint: str, driver: str, **options: str) -> UnderStore:
    return open_driver("s3://reaching/d", endpoint_url=endpoint, storage_options={**KEYS, **options}, driver=driver,  # type: ignore[arg-type]
                       request_timeout_s=30.0)  # fmt: skip


def use(store: UnderStore) -> None:
    """Make every kind of request, so that each client is used."""
    store.probe()
    info = store.put("a", b"content", {})
    assert store.head("a").version == info.version
    assert bytes(store.read("a", 0, 7, info.version)) == b"content"
    store.put("sub/", b"", {})
    assert [name for page in store.list_directory("") for name in page.prefixes] == ["sub/"]
    store.copy("a", "b", version=info.version)
    upload = store.begin_upload("large", {})
    store.complete_upload("large", upload, [(1, store.upload_part("large", upload, 1, FIVE_MIB))])
    assert store.delete(["a"]) == {}
    assert store.delete(["b", "sub/", "large"]) == {}
    assert not [page.objects for page in store.list_all("") if page.objects]


def refused_by_all(store: UnderStore) -> None:
    """Whatever the client: none may get through."""
    for call in (store.probe, lambda: store.head("a"), lambda: store.put("a", b"x", {}), lambda: store.delete(["a"]),
                 lambda: store.copy("a", "b"), lambda: store.begin_upload("a", {})):  # fmt: skip
        with pytest.raises(NotTrusted, match="certificate is not trusted; name the authority"):
            call()
    store.close()


@pytest.mark.parametrize(
    ("driver", "place"),
    [
        ("obstore", "verify"), ("obstore", "AWS_CA_BUNDLE"), ("obstore", "SSL_CERT_FILE"), ("obstore", "SSL_CERT_DIR"),
        ("obstore", "profile"), ("obstore", "system"), ("fsspec", "verify"), ("fsspec", "SSL_CERT_FILE"),
    ],
)  # fmt: skip
def test_one_bundle_for_every_client(secure, authorities, driver, place, monkeypatch, tmp_path):
    right, unrelated = authorities
    options = {}
    if place == "verify":
        options = {"verify": right.bundle}
        monkeypatch.setenv("AWS_CA_BUNDLE", unrelated.bundle)
        monkeypatch.setenv("SSL_CERT_FILE", unrelated.bundle)
    elif place == "AWS_CA_BUNDLE":
        monkeypatch.setenv("AWS_CA_BUNDLE", right.bundle)
        monkeypatch.setenv("SSL_CERT_FILE", unrelated.bundle)
    elif place == "SSL_CERT_FILE":
        monkeypatch.setenv("SSL_CERT_FILE", right.bundle)
    elif place == "SSL_CERT_DIR":
        monkeypatch.setenv("SSL_CERT_DIR", str(Path(right.bundle).parent))
    elif place == "profile":
        (tmp_path / ".aws").mkdir()
        (tmp_path / ".aws/config").write_text(f"[default]\nca_bundle = {right.bundle}\n")
    else:
        # What the machine itself trusts cannot be changed by a test; obstore reads it through these variables, too.
        monkeypatch.setattr("luxfuse.understore.trust._SYSTEM", ("/nowhere", right.bundle))
        monkeypatch.setattr(
            "luxfuse.understore.trust.Authorities.obstore_variables", lambda self: {"SSL_CERT_FILE": self.bundle}
        )
    store = opened(secure, driver, **options)
    use(store)
    store.close()


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("place", ["nothing", "verify", "AWS_CA_BUNDLE", "SSL_CERT_FILE"])
def test_an_unrelated_bundle_lets_no_client_in(secure, authorities, driver, place, monkeypatch):
    right, unrelated = authorities
    options = {}
    if place == "verify":
        options = {"verify": unrelated.bundle}
        monkeypatch.setenv("SSL_CERT_FILE", right.bundle)  # a bundle that is named stands alone
        monkeypatch.setenv("AWS_CA_BUNDLE", right.bundle)
    elif place == "AWS_CA_BUNDLE":
        monkeypatch.setenv("AWS_CA_BUNDLE", unrelated.bundle)
        monkeypatch.setenv("SSL_CERT_FILE", right.bundle)
    elif place == "SSL_CERT_FILE":
        monkeypatch.setenv("SSL_CERT_FILE", unrelated.bundle)
    refused_by_all(opened(secure, driver, **options))


@pytest.mark.parametrize(
    ("driver", "options"), [("obstore", {"verify": "No"}), ("fsspec", {"allow_invalid_certificates": "true"})]
)
@pytest.mark.expected_logs("certificates are not verified")
def test_switching_verification_off_is_said(secure, driver, options, caplog):
    store = opened(secure, driver, **options)
    use(store)
    store.close()
    assert len(re.findall("certificates are not verified", caplog.text)) == 1


@pytest.mark.parametrize("driver", DRIVERS)
def test_an_empty_name_of_a_bundle_is_refused(driver):
    for written in ("", " "):
        with pytest.raises(ConfigError, match="storage option verify is empty"):
            opened("https://127.0.0.1:9", driver, verify=written)


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize(
    ("content", "text"), [(None, "No such file"), (b"", "no certificates in PEM"), (b"hello", "no certificates in PEM")]
)
@pytest.mark.parametrize("place", ["storage option verify", "AWS_CA_BUNDLE", "SSL_CERT_FILE"])
def test_a_bundle_that_is_none_is_refused_in_one_line(driver, content, text, place, monkeypatch, tmp_path):
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_bytes(content)
    options = {"verify": str(path)} if "verify" in place else {}
    if not options:
        monkeypatch.setenv(place, str(path))
    with pytest.raises(ConfigError, match=rf"^{place}: {path}: .*{text}.*") as caught:
        opened("https://127.0.0.1:9", driver, **options)
    assert "\n" not in str(caught.value)


def test_contradicting_options_are_refused():
    with pytest.raises(ConfigError, match="contradict"):
        opened("https://127.0.0.1:9", "auto", verify="/ca.pem", allow_invalid_certificates="true")


@pytest.mark.parametrize(("driver", "place"), [("obstore", "proxy_url"), ("obstore", "ALL_PROXY"), ("fsspec", "proxy_url")])
def test_every_request_goes_through_the_proxy(bucket, driver, place, monkeypatch):
    with proxy("user", "pass") as through:
        options = {"proxy_url": through.url} if place == "proxy_url" else {}
        if not options:
            monkeypatch.setenv(place, through.url)
        with front(bucket) as url:  # one that nothing else knows
            store = opened(url, driver, **options)
            use(store)
            store.close()
        methods = {line.split()[0] for line in through.seen}
        assert methods == {"GET", "HEAD", "PUT", "POST", "DELETE"}
        assert all(url in line for line in through.seen)


@pytest.mark.parametrize("driver", DRIVERS)
def test_requests_behind_tls_go_through_the_proxy(secure, authorities, driver, monkeypatch):
    with proxy("user", "pass") as through:
        monkeypatch.setenv("HTTPS_PROXY", through.url)
        store = opened(secure, driver, verify=authorities[0].bundle)
        use(store)
        store.close()
        assert set(through.seen) == {f"CONNECT {secure.removeprefix('https://')}"}


@pytest.mark.parametrize(
    ("driver", "place", "no_proxy"),
    [
        ("obstore", "proxy_url", "127.0.0.1:PORT"), ("obstore", "HTTP_PROXY", "x.org, 127.0.0.0/8"),
        ("fsspec", "HTTP_PROXY", "127.0.0.1:PORT"),
    ],
)  # fmt: skip
def test_no_client_asks_the_proxy_for_what_is_exempt(bucket, driver, no_proxy, place, monkeypatch):
    with proxy() as through:
        options = {"proxy_url": through.url} if place == "proxy_url" else {}
        if not options:
            monkeypatch.setenv(place, through.url)
        monkeypatch.setenv("NO_PROXY", no_proxy.replace("PORT", bucket.rpartition(":")[2]))
        store = opened(bucket, driver, **options)
        use(store)
        store.close()
        assert through.seen == []


@pytest.mark.parametrize("driver", DRIVERS)
def test_what_only_others_read_as_exempt_goes_through_the_proxy(bucket, driver, monkeypatch):
    with proxy() as through:
        monkeypatch.setenv("HTTP_PROXY", through.url)
        monkeypatch.setenv("NO_PROXY", "27.0.0.1,127.0.0.1:1")  # Python's own rule takes the first for a suffix
        store = opened(bucket, driver)
        use(store)
        store.close()
        assert len(through.seen) >= 9


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_proxy_that_cannot_be_used_is_refused_without_its_secret(driver):
    with pytest.raises(ConfigError, match="only http:// and https:// proxies") as caught:
        opened("http://127.0.0.1:9", driver, proxy_url="socks5://u:hidden@127.0.0.1:9")
    assert "hidden" not in str(caught.value)


def region_of(request: Any) -> str:
    """The region that a request is signed for."""
    found = re.search(r"Credential=[^/]+/\d+/([^/]+)/s3/", request.headers.get("Authorization", ""))
    return found[1] if found else ""


def refusals(kind: str, request: Any) -> Answer | None:
    """Answer as a server of eu-test-1 whose bucket was asked for elsewhere."""
    if region_of(request) == "eu-test-1":
        return None
    if not region_of(request):  # without a signature
        return Answer(403, headers={"x-amz-bucket-region": "eu-test-1"})
    if kind == "malformed":
        if request.command == "HEAD":
            return Answer(400)
        return s3_error(400, "AuthorizationHeaderMalformed", "<Region>eu-test-1</Region>")
    if kind == "redirect":
        return s3_error(301, "PermanentRedirect", x_amz_bucket_region="eu-test-1")
    return s3_error(400, "IllegalLocationConstraintException", x_amz_bucket_region="eu-test-1")


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize(("kind", "first"), [("malformed", "head"), ("redirect", "delete"), ("constraint", "probe")])
def test_the_region_that_the_server_names_is_used_from_then_on(bucket, driver, kind, first, caplog):
    refused = []

    def check(request: Any) -> Answer | None:
        answer = refusals(kind, request)
        if answer is not None:
            refused.append(f"{request.command} {request.path}")
        return answer

    with front(bucket, check) as url, caplog.at_level(logging.INFO):
        store = opened(url, driver)
        if first == "head":
            with pytest.raises(Exception, match="404"):
                store.head("none")
        elif first == "delete":
            assert store.delete(["none"]) == {}
        use(store)
        use(store)
        store.close()
    assert len(refused) <= 4, refused
    assert len([r for r in caplog.records if "is in region eu-test-1" in r.message]) == 1


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_region_that_is_not_named_is_said_to_be_the_cause(bucket, driver):
    def check(request: Any) -> Answer | None:
        return s3_error(301, "PermanentRedirect")

    with front(bucket, check) as url:
        store = opened(url, driver)
        for call in (store.probe, lambda: store.put("a", b"", {}), lambda: store.delete(["a"])):
            with pytest.raises(WrongRegion, match=r"another region.*set the storage option region"):
                call()
        store.close()


@pytest.fixture
def site(tmp_path: Path, authorities: tuple[Authority, Authority]) -> Iterator[tuple[str, list[str]]]:
    """A server with one file, behind TLS, for whatever asks: a directory on HTTP, or a container of Azure."""
    seen: list[str] = []

    def check(request: Any) -> Answer:
        seen.append(request.path)
        listing = (b"<?xml version='1.0'?><EnumerationResults ServiceEndpoint='https://x/' ContainerName='c'><Blobs/>"
                   b"<NextMarker/></EnumerationResults>")  # fmt: skip
        return Answer(200, listing, {"Content-Type": "application/xml", "ETag": '"1"'})

    with front("http://127.0.0.1:9", check, authorities[0].server) as url:
        yield url, seen


def other_stores(url: str, **options: str) -> Iterator[UnderStore]:
    """Stores of other families at ``url``, by each of their drivers."""
    account = {"account_name": "acc", "account_key": "c2VjcmV0LWtleQ==", **options}
    for driver in DRIVERS:
        yield open_driver("az://c", endpoint_url=f"{url}/acc", storage_options=account, driver=driver,  # type: ignore[arg-type]
                          request_timeout_s=30.0)  # fmt: skip
    for driver in DRIVERS:
        yield open_driver("gs://b", endpoint_url=url, storage_options={"token": "anon", **options}, driver=driver,  # type: ignore[arg-type]
                          request_timeout_s=30.0)  # fmt: skip
    yield open_driver("webdav:///", endpoint_url=url, storage_options=options, request_timeout_s=30.0)
    yield open_driver(f"{url}/", storage_options=options, request_timeout_s=30.0)


def probed(store: UnderStore) -> bool:
    """Whether a request got through, whatever its answer meant."""
    try:
        store.probe()
    except NotTrusted:
        return False
    except StoreError:
        pass
    finally:
        store.close()
    return True


def test_other_families_believe_the_same_certificates_and_use_the_same_proxy(site, authorities, monkeypatch):
    url, seen = site
    right, unrelated = authorities
    for store in other_stores(url, verify=unrelated.bundle):
        assert not probed(store)
    assert seen == []
    with proxy("user", "pass") as through:
        for count, store in enumerate(other_stores(url, verify=right.bundle, proxy_url=through.url), 1):
            probed(store)
            assert len(through.seen) >= count, store
        assert set(through.seen) == {f"CONNECT {url.removeprefix('https://')}"}
        reached = len(through.seen)
        monkeypatch.setenv("HTTPS_PROXY", through.url)
        monkeypatch.setenv("NO_PROXY", "127.0.0.0/8")
        monkeypatch.setenv("SSL_CERT_FILE", right.bundle)
        for store in other_stores(url):
            before = len(seen)
            probed(store)
            assert len(seen) > before, store
        assert len(through.seen) == reached


@pytest.mark.parametrize(
    ("source", "named", "options", "text"),
    [
        *(("sftp://127.0.0.1:9/x", name, {}, f"storage option {name}: sftp:// does not know it") for name in REACH),
        ("ftp://127.0.0.1:9/x", "proxy_url", {}, "storage option proxy_url: ftp:// does not know it"),
        ("ftp://127.0.0.1:9/x", "verify", {}, "storage option verify: FTP has no certificates without .*tls=true"),
        *((f"{source}", name, {}, f"storage option {name}: .* does not know it")
          for source in ("file:///tmp", "memory://x") for name in REACH),
        *(("az://c", name, {"account_name": "a", "client_id": "i", "client_secret": "s", "tenant_id": "t"},
           f"storage option {name}: the driver fsspec fetches tokens of az:// without heeding it") for name in REACH),
        *(("gs://b", name, {"token": "ya29.secret"}, f"storage option {name}: gcsfs asks about a token") for name in REACH),
    ],
)  # fmt: skip
@pytest.mark.expected_logs("certificates are not verified")
def test_what_is_not_heeded_is_refused(source, named, options, text):
    """The other drivers heed it, see above."""
    value = {"proxy_url": "http://127.0.0.1:9", "verify": "false", "allow_invalid_certificates": "true"}[named]
    with pytest.raises(ConfigError, match=text) as caught:
        open_driver(source, storage_options={**options, named: value}, driver="fsspec")
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_tokens_of_google_take_the_same_way(authorities, tmp_path):
    right, unrelated = authorities
    seen = []

    def check(request: Any) -> Answer:
        seen.append(f"{request.command} {request.path}")
        return Answer(
            200,
            b'{"access_token": "t", "expires_in": 3600, "kind": "storage#objects"}',
            {"Content-Type": "application/json"},
        )

    with front("http://127.0.0.1:9", check, right.server) as url, proxy() as through:
        key = tmp_path / "key.json"
        private = rsa.generate_private_key(65537, 2048).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        account = {"type": "service_account", "client_email": "a@b", "private_key": private.decode(),
                   "token_uri": f"{url}/token"}  # fmt: skip
        key.write_text(json.dumps(account))
        options = {"token": str(key), "proxy_url": through.url}
        for bundle, gets_through in ((unrelated.bundle, False), (right.bundle, True)):
            store = open_driver("gs://b", endpoint_url=url, storage_options={**options, "verify": bundle},
                                driver="fsspec", request_timeout_s=30.0)  # fmt: skip
            with pytest.raises(StoreError) if not gets_through else contextlib.nullcontext():
                list(store.list_directory(""))
            store.close()
            assert ("POST /token" in seen) == gets_through
        assert through.seen


@pytest.mark.parametrize("tls", ["true", "tls"])
def test_ftp_inside_tls_checks_certificates(authorities, tls):
    right, unrelated = authorities
    with ftp_login(right.server, implicit=tls == "tls") as (url, said):
        for options in ({}, {"verify": unrelated.bundle}):
            with pytest.raises(NotTrusted, match="certificate is not trusted"):
                open_driver(url, storage_options={"tls": tls, **options}, request_timeout_s=30.0)
        assert not any(line.startswith("PASS") for line in said)
        open_driver(url, storage_options={"tls": tls, "verify": right.bundle}, request_timeout_s=30.0).close()
        assert "PROT P" in said, "data is encrypted, too"


def test_ways_of_tls_that_ftp_does_not_have_are_refused():
    with pytest.raises(ConfigError, match="storage option tls: write true, false, or tls for implicit TLS"):
        open_driver("ftp://127.0.0.1:9/", storage_options={"tls": "tlsv1"})


@contextmanager
def ftp_login(certificate: str, *, implicit: bool) -> Iterator[tuple[str, list[str]]]:
    """A server of FTP inside TLS that lets everybody in and does nothing else; yields its URL and what it was told."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    said: list[str] = []

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError):  # a client that does not believe the certificate
                if implicit:
                    with context.wrap_socket(self.request, server_side=True) as line:
                        self._serve(line)
                else:
                    self._serve(self.request)

        def _serve(self, line: socket.socket, *, greet: bool = True) -> None:
            if greet:
                line.sendall(b"220 here\r\n")
            while data := line.recv(1000):
                command = data.decode().strip()
                said.append(command)
                line.sendall(b"230 done\r\n" if command.startswith("PASS") else b"200 done\r\n")
                if command.startswith("AUTH"):
                    self._serve_inside(context.wrap_socket(line, server_side=True))
                    return

        def _serve_inside(self, line: ssl.SSLSocket) -> None:
            with line:
                self._serve(line, greet=False)

    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"ftp://127.0.0.1:{server.server_address[1]}/", said
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

"""Choosing a driver: preferences, refusals in one line, where credentials come from, what is loaded when."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from luxfuse.core.names import PATH_MOST_BYTES, KeyLimits
from luxfuse.errors import AccessDenied, ConfigError, StoreRejected
from luxfuse.understore import factory
from luxfuse.understore.factory import open_driver
from luxfuse.understore.failures import safe_url
from luxfuse.understore.locations import Location, has_odd_segment, key_limits, parse_location

SECRET = "s3cr3t/Key+Value=="
KEYS = {"key": "AKIAEXAMPLE", "secret": SECRET}
ENDPOINT = "http://127.0.0.1:9"
AZURE = {"account_name": "acc", "account_key": "c2VjcmV0LWtleQ=="}


@pytest.fixture(autouse=True)
def no_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A home without credentials and an environment without AWS and Azure variables."""
    import os

    for name in os.environ:
        if name.startswith(("AWS_", "AZURE_", "GOOGLE_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr("luxfuse.understore.s3.access.S3Access.find_region", lambda self: "asked")
    return tmp_path


@pytest.mark.parametrize(
    ("source", "endpoint", "options", "variables"),
    [
        ("s3://b", "http://[::", KEYS, {}), ("s3://b", "http://", KEYS, {}), ("s3://b", "http://h?x", KEYS, {}),
        ("s3://b", "http://h:99999", KEYS, {}), ("gs://b", "http://[::", {"token": "anon"}, {}),
        ("s3://b", None, {**KEYS, "endpoint_url": "http://[::"}, {}), ("s3://b", None, KEYS, {"AWS_ENDPOINT_URL": "http://[::"}),
        ("s3://b", ENDPOINT, {**KEYS, "proxy_url": "http://[::"}, {}), ("s3://b", ENDPOINT, KEYS, {"HTTP_PROXY": "http://[::"}),
        ("az://c", None, {**AZURE, "endpoint": "http://[::"}, {}), ("s3://b?x", None, KEYS, {}),
        ("s3://b c", None, KEYS, {}),
        ("https://[::/x", None, {}, {}), ("http:///x", None, {}, {}), ("sftp://h:abc/x", None, {}, {}),
        ("webdav://x", "http://[::", {}, {}),
    ],
)  # fmt: skip
def test_addresses_that_cannot_be_are_refused_at_once(source, endpoint, options, variables, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=r"write|correct|server") as refused:
        open_driver(source, endpoint_url=endpoint, storage_options=options)
    assert "\n" not in str(refused.value)


def test_an_unknown_option_of_a_local_directory_names_no_protocol() -> None:
    with pytest.raises(ConfigError, match="storage option foo: a local directory does not know it"):
        open_driver("/tmp", storage_options={"foo": "x"})


@pytest.mark.parametrize(
    ("source", "options", "driver"),
    [
        ("s3://b", KEYS, "obstore"),
        ("s3://b/pre/fix", {"anon": "true"}, "obstore"),
        ("s3a://b", {"aws_access_key_id": "a", "aws_secret_access_key": "b", "region_name": "eu-west-1"}, "obstore"),
        ("s3://b", {**KEYS, "max_concurrency": "4"}, "fsspec"),
        ("s3://b", {**KEYS, "client_kwargs": '{"verify": true}'}, "fsspec"),
        ("s3://b/odd//prefix", KEYS, "fsspec"),
        ("az://c", AZURE, "obstore"),
        ("abfs://c@acc.dfs.core.windows.net/p", {"account_key": "c2VjcmV0LWtleQ=="}, "obstore"),
        ("az://c", {"connection_string": "AccountName=a;AccountKey=c2VjcmV0LWtleQ==;EndpointSuffix=core.windows.net"},
         "obstore"),
        ("az://c", {"account_name": "acc", "sas_token": "?sv=1&sig=abc"}, "obstore"),
        ("gs://b", {"token": "anon"}, "fsspec"),
        ("gs://b", {"token": "anon", "verify": "true"}, "fsspec"),
        ("gs://b", {"skip_signature": "true"}, "obstore"),  # which gcsfs calls otherwise
        ("memory://root", {}, "fsspec"),
        ("file:///tmp", {}, "fsspec"),
        ("/tmp", {}, "fsspec"),
    ],
)  # fmt: skip
def test_what_auto_chooses(source, options, driver):
    opened = open_driver(source, storage_options=options, driver="auto")
    assert opened.driver == driver
    opened.close()


def test_auto_does_without_gcsfs(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "gcsfs" else object())
    opened = open_driver("gs://b", storage_options={"token": "anon"})
    assert opened.driver == "obstore"
    opened.close()


@pytest.mark.parametrize("driver", ["obstore", "fsspec"])
@pytest.mark.parametrize(
    ("source", "arguments", "text"),
    [
        ("s3://", {}, "names no bucket"),
        ("s3://b", {"storage_options": {"key": "k"}}, "key and secret are needed together"),
        ("s3://b", {"endpoint_url": "localhost:9000", "storage_options": KEYS}, "must start with http"),
        ("az://c", {"storage_options": {"account_key": SECRET}}, "account_name"),
    ],
)
def test_refusals_of_both_drivers(driver, source, arguments, text):
    with pytest.raises(ConfigError, match=text) as caught:
        open_driver(source, driver=driver, **arguments)
    assert "\n" not in str(caught.value)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "arguments", "text"),
    [
        ("nonsense://x", {}, "unknown protocol 'nonsense'"),
        ("memory://", {}, "names nothing"),
        ("hdfs://h/p", {"storage_options": {"user": "me"}}, "storage option user: hdfs:// does not know it; it knows any"),
        ("hdfs://me@h/p", {}, "no user can be named in it; set HADOOP_USER_NAME"),
        ("hdfs://", {}, "names nothing"),
        ("webhdfs://h:x/p", {}, "port that is no number"),
        ("webhdfs://h/p", {"storage_options": {"usr": "me"}}, "storage option usr: webhdfs:// .*mean user"),
        ("webhdfs://h/p", {"storage_options": {"password": "p"}}, "some do not go together"),
        ("webhdfs://h/p", {"endpoint_url": "http://x"}, "no endpoint"),
        ("s3://b", {"driver": "obstore", "storage_options": {**KEYS, "bogus": "1"}}, "does not know.*'bogus'"),
        ("sftp://h/p", {"driver": "obstore"}, "knows only"),
        ("s3://b", {"driver": "fsspec", "storage_options": {**KEYS, "anon": "perhaps"}}, "anon: write true or false"),
        ("file:///tmp", {"endpoint_url": "http://x"}, "no endpoint"),
        ("az://c", {"storage_options": {"account_name": "a", "account_key": "not base64!"}}, "cannot be set up"),
        ("s3://b", {"storage_options": {**KEYS, "storage_clas": "x"}}, "option storage_clas: s3://.*mean storage_class"),
        ("s3://b", {"storage_options": {**KEYS, "xyz": "1"}}, "storage option xyz: s3:// does not know it; it knows"),
        ("s3://b", {"driver": "obstore", "storage_options": {**KEYS, "alc": "1"}}, "'alc', but acl"),
        ("s3://b", {"driver": "fsspec", "storage_options": {**KEYS, "unsigned_payload": "true"}}, "does not know it"),
        ("s3://b", {"storage_options": {**KEYS, "client_kwargs": '{"verfy": true}'}}, "client_kwargs: 'verfy'.*verify"),
        ("s3://b", {"storage_options": {**KEYS, "config_kwargs": '{"read_timout": 1}'}}, "'read_timout'.*read_timeout"),
        ("s3://b", {"storage_options": {**KEYS, "client_kwargs": "[]"}}, "client_kwargs: is not JSON, or no object"),
        ("az://c", {"storage_options": {**AZURE, "tenant": "1"}}, "storage option tenant: az://.*tenant_id"),
        ("az://c", {"storage_options": {**AZURE, "acl": "private"}}, "storage option acl: az:// does not know it"),
        ("file:///tmp", {"storage_options": {"auto_mkdirs": "1"}}, "auto_mkdirs: file://.*mean auto_mkdir"),
        ("memory://x", {"storage_options": {"skip_instance_cache": "1"}}, "skip_instance_cache: memory://"),
        ("https://h/p", {"storage_options": {"headers_": "1"}}, "storage option headers_: https://.*mean headers"),
        ("ftp://h/p", {"storage_options": {"user": "x"}}, "storage option user: ftp://.*mean username"),
    ],
)
def test_refusals(source, arguments, text):
    with pytest.raises(ConfigError, match=text) as caught:
        open_driver(source, **arguments)
    assert "\n" not in str(caught.value)
    assert "not base64!" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "module", "package"), [("az://c", "adlfs", r"luxfuse\[azure\]"), ("gs://b", "gcsfs", r"luxfuse\[gcs\]")]
)
def test_missing_package_is_named(monkeypatch, source, module, package):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == module else object())
    with pytest.raises(ConfigError, match=rf"pip install '{package}'"):
        open_driver(source, driver="fsspec", storage_options=AZURE if module == "adlfs" else {})


def test_missing_package_of_hdfs(monkeypatch):
    monkeypatch.setitem(sys.modules, "hdfs_native", None)
    with pytest.raises(ConfigError, match=r"pip install 'luxfuse\[hdfs\]'"):
        open_driver("hdfs://h/p")


def test_missing_package_for_the_fallback_rejects_the_request(monkeypatch):
    driver = open_driver("az://c", driver="obstore", storage_options=AZURE)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(StoreRejected, match="luxfuse"):
        driver.head("odd//key")


def test_no_s3_credentials_anywhere():
    with pytest.raises(AccessDenied, match=r"AWS_ACCESS_KEY_ID.*~/\.aws.*anon=true"):
        open_driver("s3://b", endpoint_url=ENDPOINT)


def test_credentials_from_the_files_of_the_aws_tools(no_credentials, monkeypatch):
    directory = no_credentials / ".aws"
    directory.mkdir()
    (directory / "credentials").write_text(
        "[default]\naws_access_key_id=one\naws_secret_access_key=uno\n"
        "[work]\naws_access_key_id=two\naws_secret_access_key=due\naws_session_token=tok\n"
    )
    (directory / "config").write_text("[default]\nregion=eu-west-3\n")
    seen = []
    monkeypatch.setattr("obstore.store.S3Store", lambda bucket, **arguments: seen.append(arguments))
    open_driver("s3://b", driver="obstore")
    open_driver("s3://b", driver="obstore", storage_options={"profile": "work"})
    monkeypatch.setenv("AWS_SESSION_TOKEN", "of another key")
    open_driver("s3://b", driver="obstore", storage_options=KEYS)
    credentials = [arguments["credential_provider"]() for arguments in seen]
    assert [(c["access_key_id"], c["token"]) for c in credentials] == [
        ("one", None), ("two", "tok"), ("AKIAEXAMPLE", None)]  # fmt: skip
    assert [arguments["region"] for arguments in seen] == ["eu-west-3", "asked", "asked"]
    assert all(arguments["retry_config"] == {"max_retries": 0} for arguments in seen)


def test_credentials_from_the_environment_need_no_botocore(monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "one")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "uno")
    monkeypatch.setitem(sys.modules, "botocore.session", None)
    assert open_driver("s3://b").driver == "obstore"


def test_unknown_profile_is_one_line():
    with pytest.raises(AccessDenied, match="nobody"):
        open_driver("s3://b", storage_options={"profile": "nobody"})


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("sftp://user:pass@host/dir", "sftp://host/dir"),
        ("https://u:p@h/d?sig=abc#x", "https://h/d"),
        ("abfs://cont@acc.dfs.core.windows.net/p", "abfs://cont@acc.dfs.core.windows.net/p"),
        ("s3://bucket/a#b", "s3://bucket/a#b"),
        ("/plain/path", "/plain/path"),
    ],
)
def test_urls_are_shown_without_secrets(url, shown):
    assert safe_url(url) == shown


def test_locations():
    assert key_limits("s3://b/p/q", hierarchical=False) == KeyLimits(1024, "p/q/")
    assert key_limits("az://c", hierarchical=False) == KeyLimits(1024, "", characters=True)
    assert key_limits("/srv/data", hierarchical=True) == KeyLimits(PATH_MOST_BYTES, "/srv/data/")
    assert key_limits("hdfs://host/data", hierarchical=True).refused == ":"
    assert key_limits("sftp://host/data/", hierarchical=True) == KeyLimits(PATH_MOST_BYTES, "host/data/")
    assert parse_location("s3://b") == Location("s3", "b", "")
    assert parse_location("gcs://b/p/q/") == Location("gs", "b", "p/q/")
    assert parse_location("abfs://c@acc.dfs.core.windows.net/p") == Location("az", "c", "p/", "acc")


@pytest.mark.parametrize("key", ["/a", "a/", "a//b", "a/../b", "./a", "a\nb", "a\x7f", ""])
def test_odd_keys(key):
    assert has_odd_segment(key)


@pytest.mark.parametrize("key", ["a", "a/b", "...", "a..b/.c", "a b", "ü\u200b"])
def test_ordinary_keys(key):
    assert not has_odd_segment(key)


def test_heavy_libraries_are_loaded_on_use_only():
    code = (
        "import sys, luxfuse.understore.factory, luxfuse.understore.retrying\n"
        "heavy = {'obstore', 'fsspec', 's3fs', 'adlfs', 'aiohttp', 'botocore', 'azure', 'arro3'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "from luxfuse.understore.factory import open_driver\n"
        "open_driver('s3://b', storage_options={'key': 'a', 'secret': 'b', 'region': 'eu-west-1'})\n"
        "heavy -= {'obstore', 'arro3'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    root = Path(factory.__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)

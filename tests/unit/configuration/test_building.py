"""Where settings come from, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from luxfuse.config import Settings
from luxfuse.configuration import building
from luxfuse.configuration.building import attached, build
from luxfuse.configuration.roots import state_root
from luxfuse.configuration.sources import parse_pairs
from luxfuse.core.cache_directory import CacheSetting
from luxfuse.core.rules import PathRule
from luxfuse.core.units import format_size, parse_duration, parse_size
from luxfuse.errors import ConfigError
from luxfuse.types import WriteMode

CLUSTER = {"cluster_key_file": "/k"}
BASE = {"source": "s3://bucket", "mountpoint": "/mnt/bucket"}


def made(**flags: Any) -> Settings:
    return build({**BASE, **flags}, environ={})


def test_precedence(tmp_path: Path) -> None:
    file = tmp_path / "luxfuse.toml"
    lines = ['source = "s3://file"', 'mountpoint = "/file"', 'metadata_ttl = "1m"', 'memory_limit = "64MiB"', "uid = 7"]
    file.write_text("\n".join(lines))
    environ = {"LUXFUSE_MOUNTPOINT": "/variable", "LUXFUSE_METADATA_TTL": "2m", "LUXFUSE_NEGATIVE_TTL": ""}
    settings = build({"metadata_ttl": "3m", "source": None}, environ, str(file))
    assert settings.source == "s3://file"
    assert settings.mountpoint == "/variable"
    assert settings.metadata_ttl_s == 180
    assert settings.memory_limit_bytes == 64 << 20
    assert settings.uid == 7
    assert settings.negative_ttl_s == 5


@pytest.mark.parametrize(
    ("flags", "field", "expected"),
    [
        ({"metadata_ttl": "1h30m"}, "metadata_ttl_s", 5400.0),
        ({"metadata_ttl": "never"}, "metadata_ttl_s", 10 * 365 * 86400.0),
        ({"whole_file_threshold": "0"}, "whole_file_threshold_bytes", 0),
        ({"umask": "027"}, "umask", 0o027),
        ({"umask": 0}, "umask", 0),
        ({"uid": "1000"}, "uid", 1000),
        ({"allow_other": "true"}, "allow_other", True),
        ({"allow_other": True}, "allow_other", True),
        ({"cache_dir": "/c,size=1GiB,tier=hdd"}, "cache_dirs", (CacheSetting("/c", 1 << 30, "hdd"),)),
        ({"cache_dir": ["/c"], "cache_size": "2GiB"}, "cache_dirs", (CacheSetting("/c", 2 << 30, "ssd"),)),
        (
            {"cache_dir": "/c,size=90%,low_watermark=70%,high_watermark=0.8,free_space_ratio=5%"},
            "cache_dirs",
            (CacheSetting("/c", None, "ssd", 0.9, 0.05, 0.8, 0.7),),
        ),
        (
            {"cache_dir": ["/m,tier=mem,size=1GiB", "/s"]},
            "cache_dirs",
            (CacheSetting("/m", 1 << 30, "mem"), CacheSetting("/s")),
        ),
        ({"mountpoint": "/a/b/"}, "mountpoint", "/a/b"),
        ({"storage_options": {"n": 1}}, "storage_options", {"n": "1"}),
        ({"free_space_ratio": "0.25"}, "free_space_ratio", 0.25),
        ({}, "read_only", False),
        ({"read_only": True}, "read_only", True),
        ({"read_only": "false"}, "read_only", False),
        ({}, "write_mode", "cache-through"),
        ({"write_mode": "async-through"}, "write_mode", "async-through"),
        ({}, "on_conflict", "overwrite"),
        ({"on_conflict": "fail"}, "on_conflict", "fail"),
        ({"max_uploads": "1"}, "max_uploads", 1),
        ({"room_timeout": "0"}, "room_timeout_s", 0.0),
        ({}, "cooperative", True),
        ({"cooperative": "off"}, "cooperative", False),
        ({"peer_tls": "OFF"}, "peer_tls", False),
        ({"peer_tls": True}, "peer_tls", True),
        ({}, "listen", "0.0.0.0:7950"),
        ({"listen": "[::]:0"}, "listen", "[::]:0"),
        ({"advertise": "10.0.0.1"}, "advertise", "10.0.0.1"),
        ({"cluster_key_file": "/k", "join": "a, b:1 [::1]:2,a"}, "join", ("a", "b:1", "[::1]:2")),
        ({"cluster_key_file": "/k", "join": ["a", "file:/x y"]}, "join", ("a", "file:/x y")),
        ({"cluster_key_file": "/k", "join": ""}, "join", ()),
        ({"cluster_key_file": "/a/../k"}, "cluster_key_file", "/a/../k"),
        ({"cluster_key_file": "/k", "durable_replicas": "2"}, "durable_replicas", 2),
        ({"rack": "r1"}, "rack", "r1"),
    ],
)
def test_values(flags: dict[str, Any], field: str, expected: object) -> None:
    assert getattr(made(**flags), field) == expected


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ({"source": ""}, "source is missing"),
        ({"mountpoint": None}, "mountpoint is missing"),
        ({"metadata_ttl": "soon"}, "--metadata-ttl: 'soon' is not a duration"),
        ({"metadata_ttl": "-1"}, "--metadata-ttl"),
        ({"metadata_ttl": float("nan")}, "--metadata-ttl"),
        ({"request_timeout": "0"}, "--request-timeout"),
        ({"memory_limit": "1MiB"}, "at least 32MiB"),
        ({"memory_limit": True}, "--memory-limit"),
        ({"memory_limit": 1.5}, "--memory-limit"),
        ({"cache_size": "1"}, "at least 1MiB"),
        ({"cache_dir": ["/a", "/b"], "cache_size": "1GiB"}, "write the size of each"),
        ({"cache_dir": ["/a", "/a/"]}, "is given twice"),
        ({"cache_dir": "/a,size=120%"}, "120%"),
        ({"cache_dir": "/a,high_watermark=half"}, "half"),
        ({"cache_dir": "/a,high_watermark=50%,low_watermark=60%"}, "low_watermark is above"),
        ({"cache_dir": "/a,colour=red"}, "colour=red"),
        ({"cache_dir": ",size=1GiB"}, "directory is empty"),
        ({"cache_dir": 3}, "--cache-dir"),
        ({"free_space_ratio": 1}, "--free-space-ratio: 1 must be"),
        ({"max_requests": 0}, "--max-requests"),
        ({"driver": "boto"}, "driver"),
        ({"read_mode": "maybe"}, "--read-mode"),
        ({"umask": "9"}, "umask"),
        ({"umask": 22}, "--umask: 22 may be meant as decimal or octal; write octal digits in quotes"),
        ({"umask": 0o22}, "--umask: 18 may be meant as decimal or octal"),
        ({"read_only": "maybe"}, "--read-only"),
        ({"write_mode": "write-back"}, "--write-mode"),
        ({"on_conflict": "merge"}, "--on-conflict"),
        ({"max_uploads": 257}, "--max-uploads"),
        ({"room_timeout": "soon"}, "--room-timeout: 'soon' is not a duration"),
        ({"storage_options": "a=b"}, "--storage-option: must be a table"),
        ({"cooperative": "maybe"}, "cooperative: 'maybe' is not understood; write on or off"),
        ({"peer_tls": 2}, "write on or off"),
        ({"join": "a:1"}, "--join: is for a node of a cluster; give --cluster-key-file"),
        ({"durable_replicas": 1}, "--durable-replicas: is for a node of a cluster"),
        ({**CLUSTER, "durable_replicas": 8}, "from 0 to 7"),
        ({**CLUSTER, "durable_replicas": -1}, "from 0 to 7"),
        ({**CLUSTER, "durable_replicas": "two"}, "--durable-replicas"),
        ({**CLUSTER, "join": "a:b"}, "--join: 'a:b' is no address; write HOST:PORT"),
        ({**CLUSTER, "join": "::1"}, "[IPv6]:PORT"),
        ({**CLUSTER, "join": "a:65536"}, "ports go to 65535"),
        ({**CLUSTER, "join": "a:0"}, "nobody can be reached there"),
        ({**CLUSTER, "join": "0.0.0.0:1"}, "nobody can be reached there"),
        ({**CLUSTER, "join": "file:"}, "names no file"),
        ({**CLUSTER, "join": 3}, "join"),
        ({**CLUSTER, "join": [f"h{number}" for number in range(65)]}, "more than 64 entries"),
        ({"listen": "[1.2.3.4]:5"}, "--listen"),
        ({"listen": ":7950"}, "--listen"),
        ({"advertise": "0.0.0.0"}, "others cannot reach that"),
        ({"rack": "x" * 65}, "--rack"),
    ],
)
def test_refusals_are_one_line_that_names_the_setting(flags: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        made(**flags)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("nonsense = 1", "unknown setting 'nonsense'"),
        ("a = = b", "luxfuse.toml"),
        ('state_dir = "/x"', "LUXFUSE_STATE_DIR"),
        ('path = "a"', r"path: write each rule as a table of its own, \[\[path\]\]"),
        ('[[path]]\npattern = "a"', r"\[\[path\]\] number 1: .*write_mode"),
        ('[[path]]\npattern = "a"\nwrite_mode = "maybe"', r"number 1: .*'maybe'"),
        ('[[path]]\npattern = 1\nwrite_mode = "through"', "number 1: .*pattern"),
        ('[[path]]\npattern = "a"\nwrite_mode = "through"\ncolour = 1', "number 1: .*colour"),
        ('[[path]]\npattern = "/a"\nwrite_mode = "through"', "number 1: pattern '/a': it must be relative"),
        (None, "No such file"),
        ("# caf\udce9\nuid = 1", "line 1: is not UTF-8"),
        ("\n\nmetadata_tll = 1", "line 3: unknown setting 'metadata_tll'; did you mean metadata_ttl"),
        ("uid = 1\nmax_requests = 'abc'", "line 2: max_requests: 'abc' is not allowed; write a whole number"),
        ("uid = " + "9" * 5000, "--config"),
        ("path = " + "[" * 5000, "--config"),
        ("#" * (1 << 20) + "#", "is larger than 1 MiB"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, content: str | None, text: str) -> None:
    file = tmp_path / "luxfuse.toml"
    if content is not None:
        file.write_text(content, errors="surrogateescape")
    with pytest.raises(ConfigError, match=text) as caught:
        build(BASE, {}, str(file))
    assert "\n" not in str(caught.value)


RULES = """
write_mode = "async-through"
[[path]]
pattern = "scratch/**"
write_mode = "must-cache"
[[path]]
pattern = "**/*.ckpt"
write_mode = "through"
"""


def test_rules_for_paths(tmp_path: Path) -> None:
    file = tmp_path / "luxfuse.toml"
    file.write_text(RULES)
    settings = build(BASE, {}, str(file))
    assert settings.write_mode == "async-through"
    assert settings.path_rules == (PathRule("scratch/**", WriteMode.MUST_CACHE), PathRule("**/*.ckpt", WriteMode.THROUGH))


def test_settings_survive_json() -> None:
    settings = made(
        metadata_ttl="never",
        storage_options={"key": "value"},
        cache_dir="/c,size=1GiB",
        write_mode="through",
        path=[{"pattern": "a/*", "write_mode": "must-cache"}],
    )
    assert settings.path_rules
    assert msgspec.json.decode(msgspec.json.encode(settings), type=Settings) == settings


def test_the_mount_id_depends_on_the_mountpoint_alone() -> None:
    assert made().mount_id == made(source="s3://other").mount_id
    assert made().mount_id != made(mountpoint="/mnt/other").mount_id


def test_state_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    assert state_root({"LUXFUSE_STATE_DIR": "/s"}) == Path("/s")
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert state_root({}) == Path("/var/lib/luxfuse")
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert state_root({"XDG_STATE_HOME": "/x"}) == Path("/x/luxfuse")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("50GiB", 50 << 30), ("50G", 50 << 30), ("50g", 50 << 30), ("50GB", 50 * 10**9), ("7", 7), (7, 7), ("1.5k", 1536)],
)
def test_sizes(text: str, expected: int) -> None:
    assert parse_size(text) == expected


@given(st.integers(min_value=0, max_value=1 << 50))
def test_every_plain_number_is_a_size(count: int) -> None:
    assert parse_size(str(count)) == count
    assert format_size(count).endswith("B")


@given(st.text())
def test_parsing_never_fails_in_another_way(text: str) -> None:
    for parse in (parse_size, parse_duration):
        try:
            value = parse(text)
        except ValueError:
            continue
        assert value >= 0


@given(st.integers(0, 99), st.integers(0, 59), st.integers(0, 59))
def test_durations_add_up(hours: int, minutes: int, seconds: int) -> None:
    assert parse_duration(f"{hours}h {minutes}m{seconds}s") == hours * 3600 + minutes * 60 + seconds


def test_a_price_table(tmp_path: Path) -> None:
    file = tmp_path / "luxfuse.toml"
    file.write_text('[prices]\nget = 0.0004\nput = 1\nget_gb = 0.09\ncurrency = "EUR"\n')
    prices = build(BASE, {}, str(file)).prices
    assert prices is not None
    assert (prices.get, prices.put, prices.list, prices.get_gb, prices.currency) == (0.0004, 1.0, 0.0, 0.09, "EUR")
    assert made().prices is None
    assert msgspec.json.decode(msgspec.json.encode(build(BASE, {}, str(file))), type=Settings).prices == prices


@pytest.mark.parametrize("table", ["get = -1", "gets = 1", 'put = "x"', "get_gb = inf", "list = nan"])
def test_bad_price_tables_are_refused(tmp_path: Path, table: str) -> None:
    file = tmp_path / "luxfuse.toml"
    file.write_text(f"[prices]\n{table}\n")
    with pytest.raises(ConfigError, match=r"luxfuse.toml, line 1: prices: "):
        build(BASE, {}, str(file))


def test_bandwidth_limits() -> None:
    settings = made(bandwidth_limit="100MiB", upload_bandwidth_limit=1 << 20)
    assert (settings.bandwidth_limit_bytes_s, settings.upload_bandwidth_limit_bytes_s) == (100 << 20, 1 << 20)
    assert made().bandwidth_limit_bytes_s is None
    for name in ("bandwidth_limit", "upload_bandwidth_limit"):
        with pytest.raises(ConfigError, match=f"--{name.replace('_', '-')}: '1KiB' must be at least 64KiB"):
            made(**{name: "1KiB"})


def test_bandwidth_limits_of_rules() -> None:
    (rule,) = made(path=[{"pattern": "a/**", "bandwidth_limit": "50MiB", "upload_bandwidth_limit": 65536}]).path_rules
    assert (rule.bandwidth_limit_bytes_s, rule.upload_bandwidth_limit_bytes_s) == (50 << 20, 64 << 10)
    for name in ("bandwidth_limit", "upload_bandwidth_limit"):
        for value, why in (("1KiB", "must be at least 64KiB"), ("fast", "size"), (True, "size")):
            with pytest.raises(ConfigError, match=rf"\[\[path\]\] number 2: {name}: .*{why}"):
                made(path=[{"pattern": "a", "pin": True}, {"pattern": "b", name: value}])


# -- attached under-stores


def test_an_attached_store_is_as_the_mount_but_for_its_place_and_its_options() -> None:
    base = made(
        endpoint_url="http://secret:9000", storage_options={"key": "k"}, driver="fsspec", metadata_ttl="7s", umask="077",
        write_mode="async-through", path=[{"pattern": "*.tmp", "write_mode": "must-cache"}], cache_size="5GiB",
    )  # fmt: skip
    plain = building.attached(base, "s3://other", {})
    changed = {"source", "endpoint_url", "storage_options", "driver", "path_rules"}
    for name in Settings.__struct_fields__:
        assert (getattr(plain, name) == getattr(base, name)) is (name not in changed), name
    assert plain.endpoint_url is None
    assert plain.storage_options == {}
    options = {"metadata_ttl": "9s", "read_only": True, "cache_size": "1GiB", "driver": "auto"}
    own = building.attached(base, "s3://other", options)
    assert (own.metadata_ttl_s, own.read_only, own.cache_dirs[0].size_bytes) == (9.0, True, 1 << 30)
    assert own.cache_dirs[0].path == base.cache_dirs[0].path
    assert own.source_id != base.source_id


def test_content_of_two_servers_is_never_taken_for_one_another() -> None:
    def source_id(url: str) -> str:
        return made(source="webdav:///", storage_options={"base_url": url}).source_id

    assert source_id("https://me:one@host/dav") == source_id("https://me:two@host/dav") == source_id("https://host/dav")
    assert source_id("https://host/dav") != source_id("https://other/dav")
    accounts = {made(source="az://c", storage_options={"account_name": name}).source_id for name in ("a", "b")}
    assert len(accounts) == 2


def test_what_is_attached_to_a_read_only_mount_is_read_only() -> None:
    assert building.attached(made(read_only=True), "s3://other", {"read_only": False}).read_only


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"allow_other": True}, "allow_other: no setting of an attached under-store"),
        ({"metadata_ttl": "soon"}, "metadata_ttl"),
        ({"write_mode": "never"}, "write_mode"),
        ({"cache_size": "1KiB"}, "cache_size: '1KiB' must be at least 1MiB"),
        ({"max_requests": 0}, "max_requests"),
    ],
)
def test_wrong_options_of_an_attached_store(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        building.attached(made(), "s3://other", options)


def test_files_are_found_from_anywhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    settings = made(cluster_key_file="k", join="file:seeds,a")
    assert settings.cluster_key_file == f"{tmp_path}/k"
    assert settings.join == (f"file:{tmp_path}/seeds", "a")
    assert build({**BASE, "cluster_key_file": "k"}, {"LUXFUSE_JOIN": "a:1 b:2"}).join == ("a:1", "b:2")


def test_settings_of_objects_are_options_of_the_driver():
    plain = {"source": "s3://b", "mountpoint": "/m"}
    assert build({**plain, "storage_options": {"key": "k"}}, {}).driver_options == {"key": "k"}
    settings = build({**plain, "storage_class": "STANDARD_IA", "requester_pays": "on", "acl": "private"}, {})
    assert settings.driver_options == {"storage_class": "STANDARD_IA", "requester_pays": "true", "acl": "private"}
    build({**plain, "storage_class": "A", "storage_options": {"storage_class": "A"}}, {})
    with pytest.raises(ConfigError, match="storage option storage_class: contradicts the setting"):
        build({**plain, "storage_class": "A", "storage_options": {"storage_class": "B"}}, {})
    inner = attached(settings, "s3://other", {})
    assert inner.driver_options == {}  # it is another bucket


@pytest.mark.parametrize("where", ["--storage-option", "-o storage_option"])
def test_customer_key_stays_off_the_command_line(where):
    with pytest.raises(ConfigError, match=f"^{where} sse_customer_key: .*--sse-customer-key-file") as caught:
        parse_pairs(["sse_customer_key=c2VjcmV0"], where)
    assert "c2VjcmV0" not in str(caught.value)


def test_relative_paths_mean_the_same_when_the_file_is_read_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The daemon works in another directory, and asks for the defaults again."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    for text in ('cache_dir = "c"\n', 'log_level = "debug"\n'):
        Path("luxfuse.toml").write_text(text)
        flags = {"source": "data", "mountpoint": "m", "log_file": "log", "cluster_key_file": "k", "join": "file:seeds"}
        settings = build(flags, file="luxfuse.toml")
        assert settings.config_file == f"{tmp_path}/luxfuse.toml"
        monkeypatch.chdir("/")
        assert building.read_again(settings) == settings
        monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", ["cache_dir", "log_file", "mountpoint", "source"])
def test_a_relative_path_in_a_directory_that_is_gone(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(ConfigError, match=r"c'?: the working directory is gone, or not UTF-8; give an absolute path"):
        made(**{name: "c"})
    assert made().mountpoint == "/mnt/bucket"


def test_a_working_directory_that_is_not_utf8(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "caf\udce9").mkdir()
    monkeypatch.chdir(tmp_path / "caf\udce9")
    with pytest.raises(ConfigError, match=r"--log-file: 'log': the working directory is gone, or not UTF-8"):
        made(log_file="log")
    assert msgspec.json.encode(made())


def test_files_that_storage_options_name_are_those_of_the_working_directory(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    options = {"verify": "ca.pem", "web_identity_token_file": "sub/token", "key": "k"}
    wanted = {"verify": f"{tmp_path}/ca.pem", "web_identity_token_file": f"{tmp_path}/sub/token", "key": "k"}
    assert made(storage_options=options).storage_options == wanted
    for word in ("False", "on", "/etc/ca.pem", "~/ca.pem"):
        assert made(storage_options={"verify": word}).storage_options == {"verify": word}
    attached = building.for_attached({"storage_options": {"verify": "ca.pem", "key": "k"}}, {})
    assert attached["storage_options"] == {"verify": f"{tmp_path}/ca.pem", "key": "k"}


@pytest.mark.parametrize("value", ["s3cret\udce9", "s3cret\0"])
def test_no_value_of_a_storage_option_is_repeated(value: str) -> None:
    with pytest.raises(ConfigError, match="--storage-option: key: its value is not UTF-8, or holds a NUL") as caught:
        made(storage_options={"key": value})
    assert "s3cret" not in str(caught.value)

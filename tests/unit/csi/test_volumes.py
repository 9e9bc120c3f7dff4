"""What attributes, mount options and secrets of a volume become."""

from __future__ import annotations

import tomllib

import pytest

from luxfuse.configuration import building
from luxfuse.core.settings import SETTINGS
from luxfuse.csi import volumes
from luxfuse.errors import ConfigError
from luxfuse.understore.renewing import SECRET_OPTIONS


def test_all_of_it_reaches_the_configuration_file(tmp_path) -> None:
    context = {"source": "s3://b/p", "prices": "get=0.4\nput=5", "storage_options": "region=eu-west-1",
               "cache_size": "1GiB", "csi.storage.k8s.io/pod.name": "p"}  # fmt: skip
    secrets = {"AWS_ACCESS_KEY_ID": 'a"\\\x7f\u20ac', "AWS_SECRET_ACCESS_KEY": "s\n", "ca.crt": "PEM", "cluster.key": "K"}
    wanted = volumes.wanted(
        "v", context, ["read-only", "join=a:1", "join=b:2", "storage_option=anon=off"], secrets, group="7"
    )
    text = volumes.toml(wanted, "/secrets", "/mnt/x")
    written = tomllib.loads(text)
    assert written["storage_options"] == {
        "region": "eu-west-1", "anon": "off", "aws_access_key_id": 'a"\\\x7f\u20ac', "aws_secret_access_key": "s",
        "verify": "/secrets/ca.crt",
    }  # fmt: skip
    config = tmp_path / "luxfuse.toml"
    config.write_text(text)
    settings = building.build({}, {}, str(config))
    assert (settings.source, settings.mountpoint, settings.read_only, settings.join) == (
        "s3://b/p",
        "/mnt/x",
        True,
        ("a:1", "b:2"),
    )
    assert (settings.gid, settings.umask, settings.allow_other, settings.keeper) == (7, 0o002, True, True)
    assert settings.cluster_key_file == "/secrets/cluster.key"
    assert sorted(wanted.secrets) == sorted(['a"\\\x7f\u20ac', "s", "PEM", "K"])


def test_what_secrets_become_are_options_that_count_as_secret_or_belong_to_a_login() -> None:
    login = {"account_name", "tenant_id", "sse_customer_key"}
    assert set(volumes.SECRETS.values()) - SECRET_OPTIONS <= login
    assert sorted(volumes.OPTIONS & SECRET_OPTIONS) == ["username"]


def test_no_setting_that_names_a_file_can_be_said_by_a_volume() -> None:
    for setting in SETTINGS:
        if setting.kind.path or setting.name in ("cache_dir", "path"):
            with pytest.raises(ConfigError, match="cannot be said by a volume"):
                volumes.wanted("v", {"source": "s3://b", setting.name: "/etc"}, [], {})


@pytest.mark.parametrize(("name", "value"), [("http", "127.0.0.1:9180"), ("otlp", "http://10.0.0.1:4318")])
def test_no_volume_opens_or_asks_an_address_of_the_node(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match="cannot be said by a volume"):
        volumes.wanted("v", {"source": "s3://b", name: value}, [], {})


def test_inline_volumes_are_named_by_all_that_they_say() -> None:
    inline = {"csi.storage.k8s.io/ephemeral": "true", "csi.storage.k8s.io/pod.namespace": "a", "source": "s3://b"}

    def key(context=inline, volume_id="v", secrets=None, node_key=b"k", flags=()) -> str:
        return volumes.wanted(volume_id, context, flags, secrets or {"key": "x"}, node_key=node_key).key

    assert key() == key(volume_id="other")
    others = [
        key({**inline, "source": "s3://c"}), key({**inline, "csi.storage.k8s.io/pod.namespace": "c"}),
        key(secrets={"key": "y"}), key(node_key=b"other"), key(flags=["ro"]), key({"source": "s3://b"}),
    ]  # fmt: skip
    assert len({key(), *others}) == 7
    assert key({"source": "s3://b"}) == key({"source": "s3://c"}), "a persistent volume is known by its name"


@pytest.mark.parametrize(
    ("source", "secrets", "options"),
    [
        ("s3://b", {"AWS_SESSION_TOKEN": "t"}, ""),
        ("s3://b", {"AWS_SECRET_ACCESS_KEY": " ", "AWS_ACCESS_KEY_ID": ""}, ""),
        ("s3://b", {}, "anon=off\nskip_signature=on"),
        ("az://c", {"AZURE_STORAGE_ACCOUNT_NAME": "account"}, ""),
        ("az://c", {"AZURE_STORAGE_SAS_TOKEN": "sig"}, "account_name=account"),
        ("gs://b", {"ca.crt": "PEM"}, ""),
    ],
)
def test_a_server_that_a_volume_names_needs_a_whole_login(source: str, secrets: dict[str, str], options: str) -> None:
    """With less of one the drivers look for the node's own credentials, and send those."""
    context = {"source": source, "endpoint_url": "https://elsewhere.example", "storage_options": options}
    with pytest.raises(ConfigError, match="endpoint_url: needs a secret with"):
        volumes.wanted("v", context, [], secrets)
    whole = {"s3": {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s"}, "az": {"AZURE_STORAGE_ACCOUNT_KEY": "k"},
             "gs": {"service_account.json": '{"type": "service_account"}'}}[source[:2]]  # fmt: skip
    assert volumes.wanted("v", context, [], whole).settings["endpoint_url"] == "https://elsewhere.example"


def test_azures_own_addresses_need_no_login_of_the_volume() -> None:
    context = {
        "source": "az://c",
        "endpoint_url": "https://a.blob.core.chinacloudapi.cn",
        "storage_options": "account_name=abc",
    }
    assert volumes.wanted("v", context, [], {"AZURE_STORAGE_SAS_TOKEN": "sig"}).options
    with pytest.raises(ConfigError, match="endpoint_url"):
        volumes.wanted("v", {**context, "endpoint_url": "https://x.example/.core.windows.net"}, [], {})


@pytest.mark.parametrize(
    ("source", "options", "secrets"),
    [
        ("az://c", "account_name=elsewhere.example/", {}), ("az://c", "", {"AZURE_STORAGE_ACCOUNT_NAME": "x.example#"}),
        ("abfs://c@other:8080.dfs.core.windows.net/p", "", {}), ("s3://b", "region=x.example/", {}),
        ("s3://b", "default_region=x.example#", {}),
    ],
)  # fmt: skip
def test_nothing_that_becomes_a_part_of_a_host_names_another(source: str, options: str, secrets: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="becomes a part of the store's address"):
        volumes.wanted("v", {"source": source, "storage_options": options}, [], secrets)

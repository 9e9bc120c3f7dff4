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

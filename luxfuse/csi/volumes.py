"""What a volume of Kubernetes is to be mounted as: attributes, mount options and secrets become settings of a mount.

Authors of pods write inline volumes, and mounts are made by root on the node. So a volume cannot name files or directories
of the node, nor take them for its source; what is needed in a file comes with the secret. All else is refused by name.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from luxfuse.configuration.sources import parse_pairs
from luxfuse.core.addresses import SEED_FILE
from luxfuse.core.settings import SETTINGS, Setting
from luxfuse.core.units import YES
from luxfuse.core.values import nearest
from luxfuse.errors import ConfigError
from luxfuse.understore.locations import family_of, parse_location

SCHEMES = frozenset({
    "abfs", "abfss", "az", "ftp", "gcs", "gs", "hdfs", "http", "https", "s3", "s3a", "sftp", "ssh", "webdav", "webhdfs",
})  # fmt: skip
"""The stores that a volume can have as its source: none on the node itself."""
OPTIONS = frozenset({
    "account_name", "allow_http", "anon", "default_region", "region", "region_name", "skip_signature", "tls", "user",
    "username", "virtual_hosted_style_request",
})  # fmt: skip
"""The storage options that a volume can have besides its secret: none names a file, a role of the node or a proxy."""
SECRETS = {
    "AWS_ACCESS_KEY_ID": "aws_access_key_id",
    "AWS_SECRET_ACCESS_KEY": "aws_secret_access_key",
    "AWS_SESSION_TOKEN": "aws_session_token",
    "AZURE_STORAGE_ACCOUNT_NAME": "account_name",
    "AZURE_STORAGE_ACCOUNT_KEY": "account_key",
    "AZURE_STORAGE_SAS_TOKEN": "sas_token",
    "AZURE_CLIENT_ID": "client_id",
    "AZURE_CLIENT_SECRET": "client_secret",
    "AZURE_TENANT_ID": "tenant_id",
    **{name: name for name in ("key", "secret", "session_token", "account_key", "sas_token", "client_secret", "username",
                               "password", "passphrase", "sse_customer_key")},
}  # fmt: skip
"""The keys of a secret, and the storage options that they become."""
FILES = {
    "cluster.key": "cluster_key_file",
    "service_account.json": "token",
    "ca.crt": "verify",
    "ssh_private_key": "key_filename",
    "known_hosts": "known_hosts",
}
"""The keys of a secret that become files, and what names the file: the first a setting, the others storage options."""
LOGINS = {
    "s3": ("AWS_SECRET_ACCESS_KEY", "secret", "password"),
    "az": ("AZURE_STORAGE_ACCOUNT_KEY", "account_key"),
    "gs": ("service_account.json",),
}
"""By family of stores, the keys of a secret that keep the node's own credentials out of play: with less of a login the
drivers look further, and those of Azure prefer the node's workload identity to all but the account's key."""
_AZURES_OWN = re.compile(r"https://[a-z0-9.-]+\.core\.(windows\.net|chinacloudapi\.cn|usgovcloudapi\.net)(:443)?/?")
_IN_HOSTS = {
    "account_name": re.compile(r"[a-z0-9]{3,24}"),
    **dict.fromkeys(("region", "region_name", "default_region"), re.compile(r"[A-Za-z0-9-]{1,64}")),
}
"""Options that become a part of the host that is asked, and what they can be: others would name another host."""
GROUP_UMASK = "002"
INLINE = "inline-"
"""What the names of mounts of inline volumes begin with: their state is of no use to others, and goes with the last pod."""
KEY = re.compile(f"({INLINE})?[0-9a-f]{{16}}")
_GOOGLE_KINDS = ("service_account", "authorized_user")
_EPHEMERAL, _NAMESPACE = "csi.storage.k8s.io/ephemeral", "csi.storage.k8s.io/pod.namespace"
_OF_THE_OPERATOR = frozenset({
    "mountpoint", "cache_dir", "log_file", "foreground", "keeper", "allow_other", "http", "otlp",
})  # fmt: skip
_BY_NAME = {
    name: setting
    for setting in SETTINGS
    if setting.name not in _OF_THE_OPERATOR
    and not setting.kind.path
    and ("option" in setting.places or setting.name == "source")
    for name in (setting.name, setting.option)
}


class Wanted(msgspec.Struct, frozen=True):
    """What is mounted. ``key``: names the mount, as `KEY` says. ``settings``: as in a TOML file, without secrets.

    ``options``: secret storage options; ``files``: content of secret files by name, as in `FILES`.
    """

    key: str
    settings: dict[str, Any]
    options: dict[str, str]
    files: dict[str, str]

    @property
    def secrets(self) -> list[str]:
        """What must not be told."""
        return [*self.options.values(), *self.files.values()]


def wanted(
    volume_id: str,
    context: Mapping[str, str],
    mount_flags: Iterable[str],
    secrets: Mapping[str, str],
    *,
    group: str = "",
    node_key: bytes = b"",
) -> Wanted:
    """Return what is to be mounted for a volume. Raises ConfigError, one line without any value of a secret.

    A persistent volume has one mount. Inline volumes of a namespace share one if they say the same and have the same
    secrets, which ``node_key`` keeps from being guessed by the mount's name. ``group``: the pod's, which may write.
    """
    said = _said(context, mount_flags)
    settings = {name: _value(name, texts) for name, texts in said.items()}
    if group:
        settings.setdefault("gid", group)
        settings.setdefault("umask", GROUP_UMASK)
    for name, value in settings.items():
        try:
            _BY_NAME[name].kind.parse(value)
        except (ValueError, TypeError, OverflowError) as exc:
            raise ConfigError(f"{name}: {exc}") from None
    _check(settings)
    options, files = _secrets(secrets)
    if twice := sorted(options.keys() & settings.get("storage_options", {}).keys()):
        raise ConfigError(f"storage option {twice[0]}: stands in the volume and in its secret; leave one out")
    _check_hosts(settings["source"], {**settings.get("storage_options", {}), **options})
    _check_login(settings, secrets)
    named: list[Any] = ["volume", volume_id]
    if inline := context.get(_EPHEMERAL) == "true":
        named = ["inline", context.get(_NAMESPACE, ""), settings, _digest(node_key, secrets)]
    key = (INLINE if inline else "") + hashlib.sha256(_canonical(named)).hexdigest()[:16]
    return Wanted(key, settings, options, files)


def _said(context: Mapping[str, str], mount_flags: Iterable[str]) -> dict[str, list[str | bool]]:
    """Return what is said of each setting, by attributes (of several things each on a line) and mount options."""
    found: dict[str, list[str | bool]] = {}
    for name, text in context.items():
        if "/" in name:
            continue  # what Kubernetes says about the pod
        setting = _setting(name)
        several = setting.kind.shape in ("many", "pairs")
        found[setting.name] = [*(line.strip() for line in text.splitlines() if line.strip())] if several else [text]
    for flag in mount_flags:
        name, separator, text = flag.partition("=")
        if flag in ("ro", "rw"):
            name, separator, text = "read_only", "=", "on" if flag == "ro" else "off"
        setting = _setting(name.replace("-", "_"))
        if setting.name in found and setting.kind.shape not in ("many", "pairs"):
            raise ConfigError(f"{setting.name}: is given twice; leave one out")
        if not separator and setting.kind.shape != "switch":
            raise ConfigError(f"{setting.name}: a value is missing; write {setting.option}={setting.kind.metavar}")
        found.setdefault(setting.name, []).append(text if separator else "on")
    return found


def _setting(name: str) -> Setting:
    if name not in _BY_NAME:
        if name in _OF_THE_OPERATOR or any(name in (each.name, each.option) for each in SETTINGS):
            raise ConfigError(f"{name}: cannot be said by a volume: it is up to the driver's manifest, or to a secret")
        raise ConfigError(f"{name!r}: there is no such setting{nearest(name, _BY_NAME)}; see luxfuse/docs/KUBERNETES.md")
    return _BY_NAME[name]


def _value(name: str, texts: list[str | bool]) -> Any:
    """Return what stands in a TOML file for it."""
    shape = _BY_NAME[name].kind.shape
    if shape == "pairs":
        return parse_pairs([str(text) for text in texts], name)
    return [str(text) for text in texts] if shape == "many" else texts[0]


def _check(settings: Mapping[str, Any]) -> None:
    """Refuse what would reach into the node."""
    source = settings.get("source")
    if not source:
        raise ConfigError("source: is missing; write it into volumeAttributes: source: s3://bucket/prefix")
    scheme, separator, rest = str(source).partition("://")
    if not separator or scheme.lower() not in SCHEMES or "::" in source:
        raise ConfigError(f"source: a volume can be of {', '.join(sorted(SCHEMES))}; write PROTOCOL://BUCKET/PREFIX")
    if "@" in rest.split("/")[0] and ":" in rest.split("@")[0]:
        raise ConfigError("source: has a password in it, which everybody could read; put it into a secret")
    if unknown := sorted(settings.get("storage_options", {}).keys() - OPTIONS):
        where = "belongs into a secret" if unknown[0] in SECRETS.values() else f"is none of {', '.join(sorted(OPTIONS))}"
        raise ConfigError(f"storage option {unknown[0]}: {where}")
    if any(str(seed).startswith(SEED_FILE) for seed in settings.get("join", ())):
        raise ConfigError("join: a volume cannot name a file; write the name of a headless service, and its port")


def _check_hosts(source: str, options: Mapping[str, str]) -> None:
    """Refuse what would have the store's own address be that of another server."""
    account = parse_location(source).account if family_of(source) == "az" else None
    for name, value in [*options.items(), *([("account_name", account)] if account is not None else [])]:
        if name in _IN_HOSTS and not _IN_HOSTS[name].fullmatch(value):
            raise ConfigError(f"{name}: is none that there can be; it becomes a part of the store's address")


def _check_login(settings: Mapping[str, Any], secrets: Mapping[str, str]) -> None:
    """A server that a volume names gets what is sent to it: that must not be the node's own credentials."""
    family, endpoint = family_of(settings["source"]), settings.get("endpoint_url")
    if endpoint is None or family is None or (family == "az" and _AZURES_OWN.fullmatch(endpoint)):
        return
    said = settings.get("storage_options", {})
    anonymous = [said[name].lower() in YES for name in ("anon", "skip_signature") if name in said]
    if not (anonymous and all(anonymous)) and not any(secrets.get(name, "").strip() for name in LOGINS[family]):
        raise ConfigError(
            f"endpoint_url: needs a secret with {LOGINS[family][0]}, or the storage option anon=on: the node's own "
            "credentials go to the store's own address only"
        )


def _secrets(secrets: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Return the storage options and the files that a secret becomes."""
    options: dict[str, str] = {}
    files: dict[str, str] = {}
    for name, value in secrets.items():
        if name in FILES:
            files[name] = value
        elif name not in SECRETS:
            known = [*SECRETS, *FILES]
            raise ConfigError(
                f"secret: {name!r} is no key that luxfuse knows{nearest(name, known)}; it knows: {', '.join(known)}"
            )
        elif options.setdefault(SECRETS[name], value.strip()) != value.strip():
            raise ConfigError(f"secret: {name} is given twice, under two names; leave one out")
    if (account := files.get("service_account.json")) is not None:
        _check_google(account)
    return options, files


def _check_google(account: str) -> None:
    """Other kinds of accounts name files and programs of the node."""
    try:
        kind = msgspec.json.decode(account, type=dict[str, Any]).get("type")
    except msgspec.DecodeError:
        kind = None
    if kind not in _GOOGLE_KINDS:
        raise ConfigError(f"secret: service_account.json is no JSON with a type of {' or '.join(_GOOGLE_KINDS)}")


def _digest(node_key: bytes, secrets: Mapping[str, str]) -> str:
    return hmac.new(node_key, _canonical(sorted(secrets.items())), hashlib.sha256).hexdigest()


def _canonical(value: Any) -> bytes:
    return msgspec.json.encode(value, order="deterministic")


def toml(wanted: Wanted, directory: str, mountpoint: str) -> str:
    """Return the configuration file of a mount whose secret files are in ``directory``."""
    settings = {**wanted.settings, "mountpoint": mountpoint, "allow_other": True, "keeper": True}
    options = {**settings.pop("storage_options", {}), **wanted.options}
    for name in wanted.files:
        (settings if name == "cluster.key" else options)[FILES[name]] = f"{directory}/{name}"
    tables = {name: settings.pop(name) for name in list(settings) if isinstance(settings[name], dict)}
    lines = [f"{name} = {_toml_value(value)}" for name, value in settings.items()]
    for table, pairs in {**tables, **({"storage_options": options} if options else {})}.items():
        lines += [f"[{table}]", *(f"{_toml_value(name)} = {_toml_value(value)}" for name, value in pairs.items())]
    return "\n".join(lines) + "\n"


def _toml_value(value: Any) -> str:
    """JSON is TOML here, but for the one control character that JSON lets stand."""
    return re.sub("\x7f", r"\\u007f", msgspec.json.encode(value).decode())

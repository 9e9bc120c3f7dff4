"""Every setting is one thing in all places where it can stand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from luxfuse.cli import launch, main
from luxfuse.config import Settings
from luxfuse.configuration.building import build
from luxfuse.core.settings import EVERYWHERE, SETTINGS, Setting

SAMPLES = {
    "SIZE": "128MiB", "DURATION": "7s", "N": "3", "RATIO": "25%", "OCTAL": "077", "FILE": "/f", "URL": "http://h:1",
    "HOST:PORT": "127.0.0.1:1", "HOST[:PORT]": "10.0.0.1:2", "NAME": "r1",
    "CLASS": "STANDARD_IA", "KEY": "alias/k", "ACCOUNT": "123456789012",
}  # fmt: skip
SEVERAL = {"cache_dir": ["/c,size=1GiB,tier=hdd", "/d"], "join": ["a:1", "file:/x"]}
PAIRS = {"storage_options": {"key": "a=b", "other": ""}, "prices": {"get": "0.5", "currency": "EUR"}}
NOT_FIELDS = {"config_file", "directory", "given", "state_dir"}


def sample(setting: Setting) -> Any:
    """Return a value that is not the default."""
    if setting.kind.shape == "switch":
        return "off" if setting.default == "on" else "on"
    if setting.kind.choices:
        return next(word for word in setting.kind.choices if word != setting.default)
    return SEVERAL.get(setting.name) or PAIRS.get(setting.name) or SAMPLES[setting.kind.metavar]


def as_texts(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [f"{name}={item}" for name, item in value.items()]
    return value if isinstance(value, list) else [value]


def as_flags(setting: Setting, texts: list[str]) -> list[str]:
    if setting.kind.shape == "switch" and setting.default == "off":
        return [setting.flag]
    return [word for text in texts for word in (setting.flag, text)]


def as_toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name} = {json.dumps(item)}" for name, item in value.items()) + "}"
    return json.dumps(value)


def test_help_and_table_say_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["mount", "--help"]) == 0
    told = " ".join(capsys.readouterr().out.split()).replace("- ", "-")
    for setting in SETTINGS:
        if "flag" in setting.places:
            default = f" Default: {setting.told_default}." if setting.told_default else ""
            words = " ".join(setting.help.replace("`", "").split()).replace("- ", "-")
            assert words in told, setting.name
            assert " ".join(default.split()).replace("- ", "-") in told, setting.name
            assert setting.flag in told


def test_the_table_and_the_daemons_settings_have_the_same_fields_and_defaults() -> None:
    fields = set(Settings.__struct_fields__) - NOT_FIELDS
    assert {setting.field_name for setting in SETTINGS} == fields
    plain = build({"source": "s3://b", "mountpoint": "/m"}, {})
    defaults = dict(zip(Settings.__struct_fields__, msgspec.structs.astuple(plain), strict=True))
    for setting in SETTINGS:
        if setting.default is not None:
            assert setting.kind.parse(setting.default) == defaults[setting.field_name], setting.name


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Settings]:
    """What daemons would have been started with."""
    monkeypatch.setenv("LUXFUSE_STATE_DIR", str(tmp_path))
    calls: list[Settings] = []
    monkeypatch.setattr(launch, "in_background", calls.append)
    monkeypatch.setattr(launch, "in_foreground", lambda settings: calls.append(settings) or 0)
    return calls


@pytest.mark.parametrize("left_out", ["cache_size", "cache_dir"])  # they exclude each other where there are several
def test_settings_say_the_same_as_flag_option_variable_and_in_the_file(
    left_out: str, started: list[Settings], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plain = build({"source": "s3://b", "mountpoint": "/m"}, {})
    chosen = [s for s in SETTINGS if s.places >= EVERYWHERE - {"option"} and s.name != left_out]
    texts = {setting: as_texts(sample(setting)) for setting in chosen}
    flags = [word for setting in chosen for word in as_flags(setting, texts[setting])]
    assert main.run(["mount", "s3://b", "/m", *flags]) == 0
    options = [f'{s.option}="{text}"' for s in chosen for text in texts[s] if "option" in s.places]
    assert main.run(["mount", "s3://b", "/m", "-o", ",".join(options), "--foreground"]) == 0
    file = tmp_path / "luxfuse.toml"
    file.write_text("".join(f"{setting.name} = {as_toml(sample(setting))}\n" for setting in chosen))
    assert main.run(["mount", "s3://b", "/m", "--config", str(file)]) == 0
    for setting in chosen:
        monkeypatch.setenv(setting.variable, "\n".join(texts[setting]))
    assert main.run(["mount", "s3://b", "/m"]) == 0
    assert len(started) == 4
    for setting in chosen:
        said = [getattr(settings, setting.field_name) for settings in started]
        assert said == 4 * said[:1], setting.name
        assert said[0] != getattr(plain, setting.field_name), setting.name


def test_a_switch_that_the_file_turns_on_is_turned_off_by_its_flag(started: list[Settings], tmp_path: Path) -> None:
    file = tmp_path / "luxfuse.toml"
    file.write_text("read_only = true\n")
    assert main.run(["mount", "s3://b", "/m", "--config", str(file)]) == 0
    assert main.run(["mount", "s3://b", "/m", "--config", str(file), "--no-read-only"]) == 0
    assert [settings.read_only for settings in started] == [True, False]


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("LUXFUSE_METADATA_TLL", "LUXFUSE_METADATA_TLL: there is no such setting; did you mean LUXFUSE_METADATA_TTL?"),
        ("LUXFUSE_PATH", "LUXFUSE_PATH: can only stand in the TOML file"),
        ("LUXFUSE_UID", "LUXFUSE_UID: 'x' is not allowed; write a whole number from 0 to 4294967294"),
    ],
)
def test_variables_that_cannot_be_understood(
    variable: str, text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(variable, "x")
    for arguments in (["mount", "s3://b", "/m"], ["s3://b", "/m"]):
        assert main.guard(lambda arguments=arguments: main.run(arguments)) == 2
        assert capsys.readouterr().err.startswith(f"luxfuse: {text}")


@pytest.mark.parametrize(
    "variable",
    ["LUXFUSE_SEED", "LUXFUSE_SERVICE_HOST", "LUXFUSE_SERVICE_PORT_GOSSIP", "LUXFUSE_PORT", "LUXFUSE_A_PORT_7950_TCP_ADDR"],
)
def test_variables_of_others_are_left_alone(variable: str) -> None:
    assert build({"source": "s3://b", "mountpoint": "/m"}, {variable: "x"}).source == "s3://b"

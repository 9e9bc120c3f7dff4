"""Files with credentials that are not there: told in one line, and waited for where the source is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from luxfuse.errors import ConfigError, NoCredentials
from luxfuse.understore.credential_files import require_files
from luxfuse.understore.factory import open_driver
from luxfuse.understore.unopened import UnopenedDriver, abilities_of, open_or_wait
from luxfuse.volume.store_opening import is_passing

MISSING = "/nowhere/key.json"


@pytest.mark.parametrize("driver", ["auto", "fsspec", "obstore"])
@pytest.mark.parametrize(
    ("source", "options", "variables", "place"),
    [
        ("gs://b", {"token": MISSING}, {}, "the storage option token"),
        ("gs://b", {"service_account": MISSING}, {}, "the storage option service_account"),
        ("gs://b", {}, {"GOOGLE_APPLICATION_CREDENTIALS": MISSING}, "the variable GOOGLE_APPLICATION_CREDENTIALS"),
        (
            "gs://b",
            {"token": "google_default"},
            {"GOOGLE_APPLICATION_CREDENTIALS": MISSING},
            "the variable GOOGLE_APPLICATION_CREDENTIALS",
        ),
        ("az://b", {"account_name": "a", "federated_token_file": MISSING}, {}, "the storage option federated_token_file"),
        (
            "az://b",
            {"account_name": "a"},
            {"AZURE_FEDERATED_TOKEN_FILE": MISSING},
            "the variable AZURE_FEDERATED_TOKEN_FILE",
        ),
    ],
)
def test_a_missing_file_is_said(
    monkeypatch: pytest.MonkeyPatch,
    driver: Any,
    source: str,
    options: dict[str, str],
    variables: dict[str, str],
    place: str,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(NoCredentials, match=f"{place} names, {MISSING}, cannot be read: No such file") as raised:
        open_driver(source, storage_options=options, driver=driver)
    assert is_passing(raised.value), "a source that is known is mounted without it"


@pytest.mark.parametrize(
    ("source", "options", "variables"),
    [
        ("gs://b", {"token": "anon"}, {"GOOGLE_APPLICATION_CREDENTIALS": MISSING}),
        ("gs://b", {"token": "ya29.a0AfB-c_d"}, {"GOOGLE_APPLICATION_CREDENTIALS": MISSING}),
        ("gs://b", {"skip_signature": "true"}, {"GOOGLE_APPLICATION_CREDENTIALS": MISSING}),
        ("gs://b", {"service_account_key": "{}"}, {"GOOGLE_APPLICATION_CREDENTIALS": MISSING}),
        ("gs://b", {"token": __file__}, {"GOOGLE_APPLICATION_CREDENTIALS": MISSING}),
        ("az://b", {"account_key": "a2V5"}, {"AZURE_FEDERATED_TOKEN_FILE": MISSING}),
        ("az://b", {"anon": "yes"}, {"AZURE_FEDERATED_TOKEN_FILE": MISSING}),
        ("az://b", {}, {"AZURE_STORAGE_SAS_TOKEN": "sv=1", "AZURE_FEDERATED_TOKEN_FILE": MISSING}),
        ("az://b", {}, {}),
        ("s3://b", {}, {"GOOGLE_APPLICATION_CREDENTIALS": MISSING}),
        ("/data", {}, {"GOOGLE_APPLICATION_CREDENTIALS": MISSING}),
    ],
)
def test_a_file_that_is_not_used_is_not_missed(source: str, options: dict[str, str], variables: dict[str, str]) -> None:
    require_files(source, options, variables)


def test_a_file_that_comes_later_is_used(tmp_path: Path) -> None:
    key = tmp_path / "token"
    options = {"account_name": "a", "federated_token_file": str(key), "client_id": "c", "tenant_id": "t"}
    driver = cast(
        UnopenedDriver,
        open_or_wait(lambda: open_driver("az://b", storage_options=options), abilities_of("az://b"), 60, is_passing),
    )
    assert isinstance(driver, UnopenedDriver)
    key.write_text("a token")
    driver._failed_s = -60.0
    assert not isinstance(driver.open(60), NoCredentials)
    driver.close()


@pytest.mark.parametrize("name", ["token", "service_account", "application_credentials"])
def test_a_secret_in_place_of_a_path_is_not_shown(name: str) -> None:
    with pytest.raises(
        ConfigError, match=f"the storage option {name} has to be the path of a file, not its content"
    ) as told:
        require_files("gs://b", {name: '{"private_key": "s3cr3t", "token_uri": "https://x/y"}'}, {})
    assert "s3cr3t" not in str(told.value)


def test_what_may_be_no_path_is_not_shown() -> None:
    require_files("gs://b", {"token": "ya29.a/s3cr3t"}, {})
    with pytest.raises(NoCredentials, match="the storage option service_account names cannot be read") as told:
        require_files("gs://b", {"service_account": "ya29.a/s3cr3t"}, {})
    assert "s3cr3t" not in str(told.value)

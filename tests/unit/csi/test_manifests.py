"""The manifests in examples/kubernetes are valid, and say what the driver understands."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from luxfuse import __version__
from luxfuse.csi import volumes
from luxfuse.csi.node import NAME

yaml = pytest.importorskip("yaml")
EXAMPLES = Path(__file__).parents[3] / "examples"
FILES = sorted((EXAMPLES / "kubernetes").glob("*.yaml"))
DOCUMENTS = [document for file in FILES for document in yaml.safe_load_all(file.read_text())]


def of(kind: str) -> list[dict[str, Any]]:
    return [document for document in DOCUMENTS if document["kind"] == kind]


def made_by_hand() -> dict[str, dict[str, str]]:
    """Return the secrets that the comments of the manifests make, by their names."""
    comments = "\n".join(
        re.sub("^#", "", line) for file in FILES for line in file.read_text().splitlines() if line[:1] == "#"
    )
    found = {}
    for command in re.findall(r"kubectl create secret generic (.*)", comments.replace("\\\n", "")):
        name, *options = shlex.split(command)
        found[name] = {option.split("=")[1]: "change-me" for option in options if option.startswith("--from-")}
    return found


def test_they_match_their_schemas() -> None:
    validation = pytest.importorskip("kubernetes_validate", reason="needs kubernetes-validate")
    assert len(FILES) == 5
    for document in DOCUMENTS:
        validation.validate(document, validation.latest_version(), strict=True)
    with pytest.raises(validation.ValidationError):
        validation.validate(
            {**of("CSIDriver")[0], "spec": {"attachRequired": "no"}}, validation.latest_version(), strict=True
        )


def test_volumes_say_what_the_driver_knows() -> None:
    applied = {secret["metadata"]["name"]: secret["stringData"] for secret in of("Secret")}
    assert applied.keys().isdisjoint(made_by_hand()), "what is applied takes the place of what was made by hand"
    secrets = applied | made_by_hand()
    found = [(volume["spec"]["csi"], volume["spec"].get("mountOptions", [])) for volume in of("PersistentVolume")]
    found += [(volume["csi"], []) for pod in of("Pod") for volume in pod["spec"]["volumes"]]
    assert len(found) == 3
    for csi, options in found:
        assert csi["driver"] == NAME
        secret = secrets[csi["nodePublishSecretRef"]["name"]]
        wanted = volumes.wanted(csi.get("volumeHandle", ""), csi["volumeAttributes"], options, secret)
        assert tomllib.loads(volumes.toml(wanted, "/secrets", "/mnt"))["source"] == csi["volumeAttributes"]["source"]


def test_both_pods_run_commands_that_there_are_at_the_places_that_these_expect() -> None:
    assert of("CSIDriver")[0]["metadata"]["name"] == NAME
    for daemons, command in zip(of("DaemonSet"), ("mounter", "driver"), strict=True):
        container = daemons["spec"]["template"]["spec"]["containers"][0]
        assert container["image"] == f"luxfuse:{__version__}"
        words = container["command"][container["command"].index("luxfuse") :]
        shown = subprocess.run(
            [sys.executable, "-m", "luxfuse.cli.main", *words[1:3], "--help"], capture_output=True, text=True, timeout=120,
            check=True, env={"PATH": "/usr/bin:/bin", "COLUMNS": "200"},
        ).stdout  # fmt: skip
        assert words[:3] == ["luxfuse", "csi", command]
        assert [word for word in words[3:] if word.partition("=")[0] not in shown] == []
        # The image has another one, in its one volume.
        assert {"name": "LUXFUSE_STATE_DIR", "value": "/var/lib/luxfuse"} in container["env"]
        mounted = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
        assert mounted["/var/lib/luxfuse"]["mountPropagation"] in ("Bidirectional", "HostToContainer")
        assert "/var/lib/luxfuse/csi" in shown
        assert ("/run/luxfuse/csi" in shown) == ("/run/luxfuse" in mounted)
    sockets = [volume for volume in of("DaemonSet")[1]["spec"]["template"]["spec"]["volumes"] if volume["name"] == "socket"]
    assert sockets[0]["hostPath"]["path"] == f"/var/lib/kubelet/plugins/{NAME}"


def test_the_job_runs_an_example_with_arguments_that_it_knows() -> None:
    [job] = of("Job")
    pod = job["spec"]["template"]["spec"]
    _, program, *arguments = pod["containers"][0]["command"]
    places = {mount["mountPath"]: mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
    [config] = [
        volume["configMap"]["name"] for volume in pod["volumes"] if volume["name"] == places[str(Path(program).parent)]
    ]
    made = f"kubectl create configmap {config} --from-file=examples/training/{Path(program).name} -n default\n"
    assert made in (EXAMPLES / "kubernetes/training.yaml").read_text()
    assert made in (EXAMPLES.parent / "luxfuse/docs/KUBERNETES.md").read_text()
    source = (EXAMPLES / "training" / Path(program).name).read_text()
    assert str(Path(arguments[0]).parent) in places
    assert [word for word in arguments if word.startswith("-") and f'"{word}"' not in source] == []

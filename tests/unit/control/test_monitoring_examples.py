"""The configuration in examples/monitoring: Prometheus takes it, and each metric that it names is exported."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from luxfuse.control import metrics
from tests.unit.control.samples import sample_status

EXAMPLES = Path(__file__).parents[3] / "examples/monitoring"


def exported() -> set[str]:
    text = metrics.render(sample_status())[0].decode()
    return {sample.name for family in text_string_to_metric_families(text) for sample in family.samples}


@pytest.mark.parametrize("file", ["alerts.yml", "alerts_test.yml", "grafana.json"])
def test_metrics_that_are_named_are_exported(file: str) -> None:
    named = set(re.findall(r"\bluxfuse_\w+", (EXAMPLES / file).read_text()))
    assert named
    assert named - exported() == set()


@pytest.mark.parametrize(
    "command",
    [["check", "config", "prometheus.yml"], ["check", "rules", "alerts.yml"], ["test", "rules", "alerts_test.yml"]],
)
def test_prometheus_takes_it(command: list[str]) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian: prometheus)")
    done = subprocess.run([promtool, *command], cwd=EXAMPLES, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_is_seen_to_fire_and_not_to() -> None:
    rules = yaml.safe_load((EXAMPLES / "alerts.yml").read_text())["groups"]
    alerts = {rule["alert"] for group in rules for rule in group["rules"]}
    groups = yaml.safe_load((EXAMPLES / "alerts_test.yml").read_text())["tests"]
    looks = [(look["alertname"], bool(look.get("exp_alerts"))) for group in groups for look in group["alert_rule_test"]]
    assert set(looks) == {(alert, fires) for alert in alerts for fires in (True, False)}


def test_prometheus_understands_each_query_of_the_dashboard(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian: prometheus)")
    panels = json.loads((EXAMPLES / "grafana.json").read_text())["panels"]
    queries = [target["expr"] for panel in panels for target in panel["targets"]]
    rules = [
        {"record": f"query:{number}", "expr": query.replace("$__rate_interval", "5m").replace("$instance", ".*")}
        for number, query in enumerate(queries)
    ]
    file = tmp_path / "rules.yml"  # JSON is YAML
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    done = subprocess.run([promtool, "check", "rules", file], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"SUCCESS: {len(queries)} rules found" in done.stdout


def test_prometheus_finds_nothing_wrong_with_the_metrics() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian: prometheus)")
    content = metrics.render(sample_status())[0]
    done = subprocess.run([promtool, "check", "metrics"], input=content, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr.decode()

"""The alert rules, the dashboard and the page on telemetry: right by themselves, and about metrics that there are."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from farandole.cli.application import application
from farandole.correlator.filters import DEAD_LETTER_FIELDS, SAGA_FIELDS, parse_filter
from farandole.stack.plan import Plan
from farandole.stack.planning import METRICS_VARIABLE, make_plan
from farandole.stack.shape import Shape
from farandole.telemetry.catalogue import METRICS, PROCESS_METRICS, Kind
from tests.contract.compose_project import required_program
from tests.contract.metric_labels import strange

ROOT = Path(__file__).resolve().parents[2]
FILES = ROOT / "deploy" / "telemetry"
ALERTS = FILES / "alerts.yaml"
ALERT_TESTS = Path(__file__).with_name("alert_tests.yaml")
DASHBOARD = json.loads((FILES / "dashboard.json").read_text(encoding="utf-8"))
PAGE = (ROOT / "docs" / "telemetry.md").read_text(encoding="utf-8")

RULES: dict[str, dict[str, Any]] = {
    rule["alert"]: rule
    for group in yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
}
TESTS = yaml.safe_load(ALERT_TESTS.read_text(encoding="utf-8"))["tests"]

OF_SCRAPING = {"job", "instance", "replica"}
"""The labels that Prometheus adds; the last by its configuration."""


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    program = required_program("promtool", "`make tools` builds it")
    return subprocess.run([program, *arguments], capture_output=True, text=True, timeout=60, check=False)


def test_every_rule_fires_when_it_should_and_only_then() -> None:
    done = promtool("test", "rules", ALERT_TESTS)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_rule_is_seen_to_fire_and_not_to_fire() -> None:
    asked = [one for test in TESTS for one in test["alert_rule_test"]]
    assert {one["alertname"] for one in asked if one.get("exp_alerts")} == set(RULES)
    assert {one["alertname"] for one in asked if not one.get("exp_alerts")} == set(RULES)


SPOILT = {
    "never fires": lambda rule: {**rule, "expr": f"({rule['expr']}) and on() (vector(1) > 1)"},
    "waits for nothing": lambda rule: {name: value for name, value in rule.items() if name != "for"},
    "waits for ever": lambda rule: {**rule, "for": "10h"},
    "has another threshold": lambda rule: {**rule, "expr": re.sub(r"(>|==) [\d.]+$", ">= bool 0", rule["expr"])},
    "says nothing": lambda rule: {**rule, "annotations": {"summary": "", "description": ""}},
}


@pytest.mark.parametrize("how", SPOILT)
def test_a_rule_that_is_spoilt_fails_its_test(how: str, tmp_path: Path) -> None:
    """All at once, each on its own: what promtool says names those that failed."""
    spoilt = {name: SPOILT[how](rule) for name, rule in RULES.items()}
    rules = tmp_path / "alerts.yaml"
    rules.write_text(yaml.safe_dump({"groups": [{"name": "spoilt", "rules": list(spoilt.values())}]}))
    tests = yaml.safe_load(ALERT_TESTS.read_text(encoding="utf-8")) | {"rule_files": [str(rules)]}
    (tmp_path / "tests.yaml").write_text(yaml.safe_dump(tests))
    done = promtool("test", "rules", tmp_path / "tests.yaml")
    failed = set(re.findall(r"alertname: (\w+)", done.stdout + done.stderr))
    assert failed == {name for name, rule in RULES.items() if spoilt[name] != rule}


@pytest.mark.parametrize("alert", RULES)
def test_what_an_alert_says_to_type_can_be_typed(alert: str) -> None:
    rule = RULES[alert]
    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert rule["annotations"]["summary"]
    typed = re.findall(r"`((?:farandole|nats) [^`]+)`", rule["annotations"]["description"])
    assert len(typed) == 1, "one next step"
    if not typed[0].startswith("farandole"):
        return
    words = [word for word in typed[0].split("--filter")[0].split()[1:] if "{{" not in word and word != "correlator"]
    assert CliRunner().invoke(application, [*words, "--help"]).exit_code == 0
    fields = DEAD_LETTER_FIELDS if "deadletters" in words else SAGA_FIELDS
    for text in re.findall(r"--filter '([^']+)'", typed[0]):
        assert parse_filter(re.sub(r"{{[^}]+}}", "any-name", text), fields) is not None


def test_prometheus_takes_the_configuration_and_the_rules() -> None:
    done = promtool("check", "config", FILES / "prometheus.yaml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_scrapes_what_a_stack_shows_with_one_replica_of_each_service_and_with_three() -> None:
    """What is not there with one is marked: that it does not answer is no trouble where it never did."""
    text = (FILES / "prometheus.yaml").read_text(encoding="utf-8")
    (scraped,) = yaml.safe_load(text)["scrape_configs"]
    assert scraped["job_name"] == "farandole"
    targets = {
        target: group.get("labels", {}).get("replica", "1")
        for group in scraped["static_configs"]
        for target in group["targets"]
    }
    environment = {METRICS_VARIABLE: "on"}
    alone = _shown(make_plan(ROOT / "farandole.yaml", environment, Shape()))
    several = _shown(make_plan(ROOT / "farandole.yaml", environment, Shape(replicas=3, database="postgres")))
    assert {target for target, replica in targets.items() if replica == "1"} == set(alone.values())
    assert dict(re.findall(r"- (\S+) # (\S+)", text)) == {address: name for name, address in several.items()}
    assert targets == {address: name.rpartition("-")[2] if "-" in name else "1" for name, address in several.items()}


def _shown(plan: Plan) -> dict[str, str]:
    """Where services show their metrics, by name."""
    return {service.name: service.metrics.address for service in plan.services if service.metrics is not None}


def test_the_rules_and_their_tests_are_about_metrics_that_there_are() -> None:
    for rule in RULES.values():
        assert list(_unknown(rule["expr"])) == []
    for test in TESTS:
        for series in test["input_series"]:
            assert list(_unknown(series["series"], complete=True)) == []


def test_the_rules_their_tests_and_the_dashboard_name_values_that_labels_can_have() -> None:
    """What is called another way in the code would fire no alert, and none of the tests would tell."""
    series = [series["series"] for test in TESTS for series in test["input_series"]]
    strange_values = [
        f"{name}: {label}={value}"
        for query in (*(rule["expr"] for rule in RULES.values()), *series, *_queries())
        for name, selectors in re.findall(r"\b(farandole_\w+)\{([^}]*)\}", query)
        for label, operator, written in re.findall(r'(\w+)(=~|!~|!=|=)"([^"]*)"', selectors)
        for value in (_alternatives(written) if "~" in operator else [written])
        if label not in OF_SCRAPING and strange(_EXPOSED[name], label, value)
    ]
    assert strange_values == []


def _alternatives(pattern: str) -> list[str]:
    """What a regular expression such as `a|b` or `of.(a|b)` stands for, without the variables of the dashboard."""
    prefix, opening, inner = pattern.rpartition("(")
    inner, _, suffix = inner.partition(")") if opening else (inner, "", "")
    return [f"{prefix}{one}{suffix}" for one in inner.split("|") if not one.startswith("$")]


def _queries() -> Iterator[str]:
    for panel in DASHBOARD["panels"]:
        yield from (target["expr"] for target in panel.get("targets", ()))


def test_the_dashboard_is_about_metrics_that_there_are(tmp_path: Path) -> None:
    queries = list(_queries())
    assert queries
    for query in queries:
        assert list(_unknown(query)) == []
    variables = DASHBOARD["templating"]["list"]
    assert [one["name"] for one in variables] == ["datasource", "service", "definition"]
    for one in variables[1:]:
        metric, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", one["definition"]).groups()  # type: ignore[union-attr]
        assert label in ("service", *METRICS[metric].labels)
    # as Prometheus sees them, who knows no variables of Grafana's
    written = [re.sub(r"\$__rate_interval", "5m", query).replace("$", "") for query in queries]
    rules = [{"record": f"panel:{number}", "expr": expr} for number, expr in enumerate(written)]
    (tmp_path / "queries.yaml").write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    done = promtool("check", "rules", tmp_path / "queries.yaml")
    assert done.returncode == 0, done.stdout + done.stderr


OVER_REPLICAS = {
    "farandole_health": "min",
    "farandole_read_timestamp_seconds": "max",
    # of what all replicas of a service share, which is the same in all: their database, and the consumers in the broker
    "farandole_consumer_lag_events": "max",
    "farandole_position_age_seconds": "max",
    "farandole_queued_events": "max",
    "farandole_open_sagas": "max",
    "farandole_dead_letters_open": "max",
    # of the lanes that a replica works on
    "farandole_outbox_depth": "sum",
    "farandole_outbox_oldest_seconds": "max",
    "farandole_circuit_open": "max",
    "farandole_circuit_waiting_sagas": "sum",
}
"""How a service's gauges are put together over its replicas."""


@pytest.mark.parametrize("query", [*(rule["expr"] for rule in RULES.values()), *_queries()])
def test_what_replicas_show_is_put_together_as_it_is_meant(query: str) -> None:
    """Of what each shows of its own the sum, of what all show the same one of them."""
    for how, name in re.findall(r"(?:(\w+)(?: by \([^)]*\))? ?\()?\b(farandole_\w+)", query):
        if _EXPOSED[name].kind is Kind.GAUGE:
            assert how in {OVER_REPLICAS[name], "delta", "absent"}, name


def test_of_every_gauge_it_is_said_how_it_is_put_together() -> None:
    assert set(OVER_REPLICAS) == {metric.name for metric in METRICS.values() if metric.kind is Kind.GAUGE}


def test_the_page_says_what_is_added_up_over_replicas() -> None:
    (added_up,) = re.findall(r"are added up: (.+?);", PAGE, re.DOTALL)
    assert set(re.findall(r"`(\w+)`", added_up)) == {name for name, how in OVER_REPLICAS.items() if how == "sum"}


def test_the_dashboard_s_panels_have_what_grafana_needs() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert max(x for x, _ in cells) < 24
        assert not cells & taken, panel["title"]
        taken |= cells
        if panel["type"] != "row":
            assert panel["title"]
            assert panel["description"]
            assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


def test_the_dashboard_shows_every_metric() -> None:
    shown = {metric for query in _queries() for metric in METRICS if metric.removesuffix("_total") in query}
    assert shown == set(METRICS) - {"farandole_read_timestamp_seconds"}


def test_the_page_has_every_metric_with_its_labels() -> None:
    rows = re.findall(r"^\| `(farandole_\w+)` \| (\w+) \| (.*?) \| (.+?) \|$", PAGE, re.MULTILINE)
    assert [(name, kind, re.findall(r"`(\w+)`", labels), says) for name, kind, labels, says in rows] == [
        (metric.name, metric.kind.value, list(metric.labels), metric.documentation) for metric in METRICS.values()
    ]
    assert set(re.findall(r"`(process_\w+)`", PAGE)) == set(PROCESS_METRICS)


def test_the_page_has_every_alert() -> None:
    rows = re.findall(r"^\| `(Farandole\w+)` \| (\w+) \|", PAGE, re.MULTILINE)
    assert rows == [(name, rule["labels"]["severity"]) for name, rule in RULES.items()]


_PARTS = {Kind.COUNTER: ("",), Kind.GAUGE: ("",), Kind.HISTOGRAM: ("_bucket", "_sum", "_count")}
_EXPOSED = {f"{metric.name}{part}": metric for metric in METRICS.values() for part in _PARTS[metric.kind]}
_GROUPED = re.compile(r"\bby \(([^)]*)\)")


def _unknown(query: str, *, complete: bool = False) -> Iterator[str]:
    """What a query, or a series, names that no process shows. A series that is `complete` has every label."""
    named = re.findall(r"\b(farandole_\w+|process_\w+|up)\b(?:\{([^}]*)\})?", query)
    assert named, query
    known = {"le"} | OF_SCRAPING
    for name, selectors in named:
        if name == "up" or name in PROCESS_METRICS:
            continue
        if name not in _EXPOSED:
            yield name
            continue
        labels = {"service", *_EXPOSED[name].labels}
        known |= labels
        selected = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selectors or ""))
        yield from sorted(selected - labels - OF_SCRAPING)
        if complete:
            yield from sorted(labels - selected)
    for group in _GROUPED.findall(query):
        yield from sorted({label.strip() for label in group.split(",")} - known)

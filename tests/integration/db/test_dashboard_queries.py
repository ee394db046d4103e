"""Every query of the Grafana dashboard and of the alerts names what /metrics really gives, with labels it really has."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import Engine, text

from api.metrics import render_metrics
from db.store import SqlJobStore
from tests.integration.db.samples import LEASE_S, Seeds, measured

DEPLOY = Path(__file__).parents[3] / "deploy"
NAME = re.compile(r"\b(pruneloop_\w+)(?:\{([^}]*)\})?")
LABEL = re.compile(r"(\w+)\s*(?:=~|=|!=|!~)\s*\"")
GROUPING = re.compile(r"\b(?:by|on)\s*\(([^)]*)\)")


def queries() -> Iterator[tuple[str, str]]:
    dashboard = json.loads((DEPLOY / "grafana" / "pruneloop.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"]
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["name"], variable["definition"]
    for group in yaml.safe_load((DEPLOY / "prometheus" / "pruneloop.rules.yml").read_text())["groups"]:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"]


@pytest.fixture
def given(store: SqlJobStore, seeds: Seeds, engine: Engine) -> Mapping[str, set[str]]:
    """Name of each sample of a product in use -> the labels it has."""
    _, lease = seeds.job()
    box = seeds.device()
    seeds.trial(lease)
    for _ in range(2):
        seeds.measurement(lease)
    claim = store.claim_measurement(box.id, lease_s=LEASE_S)
    assert claim is not None
    store.finish_measurement(claim.measurement_id, box.id, claim.attempt, measured())
    with engine.begin() as connection:  # a touch is written every two seconds at the most
        connection.execute(text("UPDATE device SET last_seen_at = now() - interval '1 minute'"))
    store.touch_device(box.id, clock=store.now())
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(render_metrics(store.numbers()).decode()):
        if not family.samples:
            found.setdefault(f"{family.name}_total", {"verdict"})  # no check was told yet
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def test_queries_name_what_is_given(given: Mapping[str, set[str]]) -> None:
    seen = set()
    for title, query in queries():
        names = NAME.findall(query)
        assert names, (title, query)
        labels: set[str] = set()
        for name, selectors in names:
            assert name in given, f"{title}: /metrics gives no {name}"
            seen.add(name)
            labels |= given[name]
            assert set(LABEL.findall(selectors)) <= given[name], (title, query)
        for group in GROUPING.findall(query):
            assert {one.strip() for one in group.split(",") if one.strip()} <= labels, (title, query)
        assert query.count("(") == query.count(")") and query.count("[") == query.count("]"), query
    # And the other way round: what is given is shown.
    shown = {name.removesuffix("_created") for name in given}
    assert shown - seen == set(), "these are on no panel"


def test_the_dashboard_has_panels_of_known_kinds_in_a_grid() -> None:
    dashboard = json.loads((DEPLOY / "grafana" / "pruneloop.json").read_text())
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids)) > 15
    for panel in dashboard["panels"]:
        assert panel["type"] in {"row", "stat", "timeseries", "table"}
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        assert all(target["datasource"]["uid"] == "${datasource}" for target in panel.get("targets", []))

"""Notifications of a local run: sent by the real program to real servers, from Secrets of both kinds."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

import pytest
from tests.support.local_run import FAKES, run_with_fakes
from tests.support.loopback import Answer, Fault, LoopbackServer, Trouble
from tests.support.processes import REPOSITORY

from finetuning_api.base import ConditionType
from finetuning_api.finetuningjob import FineTuningJob
from finetuning_api.notification import NotificationState
from finetuning_cli.local.layout import Layout
from finetuning_cli.local.store import Store
from finetuning_operator.reconcile.conditions import is_true
from finetuning_operator.reconcile.plan import ImageRole

MANIFEST = """\
apiVersion: finetuning.dev/v1alpha1
kind: FineTuningJob
metadata: {{name: demo}}
spec:
  model: {{source: model}}
  dataset: {{source: data.jsonl, prompt: "{{message}}", completion: "{{triage}}"}}
  evaluation: {{metrics: [exact-match], gate: [{{metric: exact-match, min: 0.5}}]}}
  notifications:
    - {{type: slack, secretRef: {{name: chat}}}}
    - {{type: cloudevents, secretRef: {{name: team-bus}}, events: [Started, Gate, Succeeded]}}
---
apiVersion: v1
kind: Secret
metadata: {{name: chat}}
stringData: {{url: "{address}/chat"}}
"""
PROGRAMS = FAKES | {ImageRole.RELOCATOR: "finetuning_relocator"}


@dataclass(frozen=True)
class Site:
    """A folder to run in, and who is told."""

    folder: Path
    receiver: LoopbackServer

    def run(self) -> FineTuningJob:
        run_with_fakes(self.folder / "state", self.folder / "job.yaml", programs=PROGRAMS)
        found = Store(Layout.at(self.folder / "state")).get("FineTuningJob", "demo")
        assert isinstance(found, FineTuningJob)
        assert is_true(found.status.conditions, ConditionType.COMPLETE)
        return found

    def heard(self, path: str) -> list[str]:
        return [json.loads(seen.body).get("type", "") for seen in self.receiver.requests_for(path, method="POST")]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "data.jsonl").write_text('{"message": "a", "triage": "b"}\n')
    with LoopbackServer(lambda _: Answer(body=b"ok")) as receiver:
        (tmp_path / "job.yaml").write_text(MANIFEST.format(address=receiver.url))
        monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
        monkeypatch.setenv("TEAM_BUS_URL", f"{receiver.url}/bus")
        yield Site(tmp_path, receiver)


def test_receivers_are_told_once_of_every_event_they_asked_for(site: Site) -> None:
    done = site.run()
    again = site.run()

    kind = "dev.finetuning.finetuningjob"
    assert sorted(site.heard("/bus")) == [f"{kind}.gate", f"{kind}.started", f"{kind}.succeeded"]
    assert len(site.heard("/chat")) == 1
    assert {record.state for record in done.status.notifications} == {NotificationState.SENT}
    assert again == done


def test_receivers_that_refuse_or_are_unknown_fail_nothing_and_the_user_is_told(
    site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    site.receiver.fail("/chat", Fault(Trouble.STATUS, status=HTTPStatus.NOT_FOUND))
    monkeypatch.delenv("TEAM_BUS_URL")

    done = site.run()

    unknown = "the Secret 'team-bus' has no key 'url'. Add it. A run on one machine reads it from a Secret document in"
    said = capsys.readouterr().err
    assert {record.state for record in done.status.notifications} == {NotificationState.FAILED}
    assert (
        f"Started was not told by cloudevents (Secret team-bus): {unknown} the manifest, or from TEAM_BUS_URL." in said
    )
    assert "Succeeded was not told by slack (Secret chat): 127.0.0.1:" in said
    assert "answered HTTP 404" in said

"""What a run makes of programs that fail, hang and die, shown with a stand-in program that does so on demand."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from tests.support.fake_program import FAULTS_ENV
from tests.support.local_run import run_with_fakes
from tests.support.processes import REPOSITORY, processes_of, start, wait_until

from finetuning_api.base import ConditionType
from finetuning_api.finetuningjob import FineTuningJob
from finetuning_api.reasons import Reason
from finetuning_api.relocation import Relocation
from finetuning_cli.local.layout import Layout
from finetuning_cli.local.records import StepRecord, load_records
from finetuning_cli.local.run import Outcome
from finetuning_cli.local.store import Store
from finetuning_operator.reconcile.conditions import find_condition, is_true
from finetuning_operator.reconcile.plan import StepPhase
from finetuning_workload.errors import UserError

MANIFEST = """\
apiVersion: finetuning.dev/v1alpha1
kind: FineTuningJob
metadata: {name: demo}
spec:
  model: {source: model}
  dataset: {source: data.jsonl, prompt: "{message}", completion: "{triage}"}
  backoffLimit: 1
"""


class Site:
    """A folder with a manifest, a model, data and a state folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = folder / "state"
        self.manifest = folder / "job.yaml"
        self.faults = folder / "faults.json"
        self.manifest.write_text(MANIFEST)
        (folder / "model").mkdir()
        (folder / "model" / "config.json").write_text("{}")
        (folder / "data.jsonl").write_text('{"message": "a", "triage": "b"}\n')
        self.plan_faults({})

    def plan_faults(self, faults: Mapping[str, list[str]]) -> None:
        self.faults.write_text(json.dumps(faults))

    def run(self, *, presets: Path | None = None) -> Outcome:
        return run_with_fakes(self.state, self.manifest, presets=presets)

    def start(self) -> subprocess.Popen[str]:
        command = (sys.executable, "-m", "tests.support.local_run", self.state, self.manifest)
        return start(*command, cwd=self.folder, extra={FAULTS_ENV: str(self.faults)})

    @property
    def layout(self) -> Layout:
        return Layout.at(self.state)

    def job(self) -> FineTuningJob:
        found = Store(self.layout).get("FineTuningJob", "demo")
        assert isinstance(found, FineTuningJob)
        return found

    def record(self, step: str, *, kind: str = "FineTuningJob", name: str = "demo") -> StepRecord:
        return load_records(self.state / "steps" / kind / name)[step]

    def is_running(self, step: str) -> bool:
        path = self.state / "steps" / "FineTuningJob" / "demo"
        record = load_records(path).get(step)
        reported = path / step / "attempt-1.log"
        # The program has its signal handlers once it has said its first word.
        return record is not None and record.phase is StepPhase.RUNNING and b"fake" in reported.read_bytes()

    def failure(self) -> tuple[Reason, str]:
        condition = find_condition(self.job().status.conditions, ConditionType.FAILED)
        assert condition is not None
        return condition.reason, condition.message

    def completed(self) -> bool:
        return is_true(self.job().status.conditions, ConditionType.COMPLETE)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    made = Site(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setenv(FAULTS_ENV, str(made.faults))
    return made


def test_fault_of_the_environment_is_retried_and_counted(site: Site) -> None:
    site.plan_faults({"preflight": ["environment"]})

    site.run()

    record = site.record("preflight")
    assert site.completed()
    assert (record.attempts, record.failures) == (2, 1)
    assert (site.state / "steps/FineTuningJob/demo/preflight/attempt-1.log").exists()


def test_retries_end_with_the_reason_of_the_last_attempt(site: Site) -> None:
    site.plan_faults({"preflight": ["environment", "environment"]})

    site.run()

    assert site.failure() == (Reason.NETWORK_UNREACHABLE, "preflight: a fake network is down. Wait.")


def test_mistake_of_the_user_is_not_retried(site: Site) -> None:
    site.plan_faults({"preflight": ["user"]})

    site.run()

    assert site.failure() == (Reason.COLUMN_NOT_FOUND, "preflight: a fake column is missing. Use a real program.")
    assert site.record("preflight").attempts == 1


def test_program_that_says_nothing_is_told_with_its_exit_code(site: Site) -> None:
    site.plan_faults({"preflight": ["silent"]})

    site.run()

    reason, message = site.failure()
    assert reason is Reason.INTERNAL
    assert "exit code 1" in message
    assert "attempt-1.log" in message


def test_program_that_is_killed_most_likely_lacked_memory(site: Site) -> None:
    site.plan_faults({"train": ["kill", "kill"]})

    site.run()

    reason, message = site.failure()
    assert reason is Reason.OUT_OF_MEMORY
    assert "batchSize" in message


def test_finished_job_is_not_run_again(site: Site) -> None:
    site.run()
    before = site.job()
    site.plan_faults({"train": ["user"]})

    outcome = site.run()

    assert site.job() == before
    assert outcome.transferred_bytes == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_stops_after_a_checkpoint_and_the_next_run_goes_on(site: Site, number: int, code: int) -> None:
    site.plan_faults({"train": ["hang"]})
    process = site.start()
    wait_until(lambda: _exists(lambda: site.is_running("train")), what="training runs")

    os.kill(process.pid, number)
    _, errors = process.communicate(timeout=60)

    assert process.returncode == code
    assert "stopping after a checkpoint" in errors
    assert processes_of(site.state) == []
    site.run()
    assert site.completed()
    assert (site.record("train").attempts, site.record("train").failures) == (2, 0)


def test_second_signal_kills_what_does_not_stop(site: Site) -> None:
    site.plan_faults({"train": ["deaf"]})
    process = site.start()
    wait_until(lambda: _exists(lambda: site.is_running("train")), what="training runs")

    os.kill(process.pid, signal.SIGINT)
    told = _read_until(process, "stopping after a checkpoint")
    os.kill(process.pid, signal.SIGINT)
    process.communicate(timeout=60)

    assert told
    assert process.returncode == 130
    assert processes_of(site.state) == []
    assert site.record("train").phase is StepPhase.PENDING


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a step that its run was killed")
def test_killed_run_leaves_no_orphan_and_the_next_one_goes_on(site: Site) -> None:
    site.plan_faults({"train": ["hang"]})
    process = site.start()
    wait_until(lambda: _exists(lambda: site.is_running("train")), what="training runs")

    process.kill()
    process.communicate(timeout=60)
    wait_until(lambda: processes_of(site.state) == [], what="the orphaned step saved and ended")
    site.run()

    assert site.completed()
    assert (site.record("train").attempts, site.record("train").failures) == (2, 0)


def test_second_run_on_a_state_folder_is_told_who_holds_it(site: Site) -> None:
    site.plan_faults({"train": ["hang"]})
    process = site.start()
    wait_until(lambda: _exists(lambda: site.is_running("train")), what="training runs")

    with pytest.raises(UserError) as caught:
        run_with_fakes(site.state, site.manifest, wait=False)
    waiting = site.start()
    told = _read_until(waiting, "waits for")
    os.kill(process.pid, signal.SIGTERM)
    process.communicate(timeout=60)
    waiting.communicate(timeout=120)

    assert caught.value.reason is Reason.STATE_LOCKED
    assert f"the run of demo (process {process.pid}, since 20" in caught.value.message
    assert told
    assert waiting.returncode == 0
    assert site.completed()


def test_damaged_data_is_brought_again_before_it_is_used(site: Site) -> None:
    site.plan_faults({"preflight": ["user"]})
    site.run()
    (data,) = _relocations(site, "data.jsonl")
    content = site.state / "volumes" / data / "artifact" / "content"
    content.write_text("fork\n")
    site.manifest.write_text(MANIFEST.replace("demo", "again"))

    site.run()

    assert content.read_text() == "fake\n"
    assert site.record("relocate", kind="Relocation", name=data).attempts == 1
    assert is_true(_job(site, "again").status.conditions, ConditionType.COMPLETE)


def test_relocation_that_failed_is_tried_again_by_the_next_job(site: Site) -> None:
    site.plan_faults({"relocate": ["user", "user"]})
    site.run()
    assert not site.completed()
    site.plan_faults({})
    site.manifest.write_text(MANIFEST.replace("demo", "again"))

    site.run()

    assert is_true(_job(site, "again").status.conditions, ConditionType.COMPLETE)


def test_damaged_adapter_is_refused_with_what_to_do(site: Site) -> None:
    site.run()
    (site.state / "volumes/demo-adapter/adapter/content").write_text("fork\n")

    with pytest.raises(UserError) as caught:
        site.run()

    assert caught.value.reason is Reason.ARTIFACT_CORRUPT
    assert "finetune delete demo" in caught.value.hint


def test_damaged_status_is_found_out_again_without_repeating_anything(site: Site) -> None:
    site.run()
    path = site.layout.object_file("FineTuningJob", "demo")
    path.write_text(path.read_text().replace("phase: Complete", "phase: Failed"))

    site.run()

    assert site.completed()
    assert site.record("train").attempts == 1


@pytest.mark.parametrize("name", ["objects/FineTuningJob/demo.yaml", "steps/FineTuningJob/demo/state.json"])
def test_damaged_state_file_is_refused_by_name(site: Site, name: str) -> None:
    site.plan_faults({"train": ["hang"]})
    process = site.start()
    wait_until(lambda: _exists(lambda: site.is_running("train")), what="training runs")
    os.kill(process.pid, signal.SIGTERM)
    process.communicate(timeout=60)
    path = site.state / name
    path.write_text(path.read_text().replace("data.jsonl", "other.jsonl").replace("started", "begun"))

    with pytest.raises(UserError) as caught:
        site.run()

    assert caught.value.reason is Reason.STATE_CORRUPT
    assert str(path) in caught.value.message


def _exists(question: Callable[[], bool]) -> bool:
    try:
        return question()
    except FileNotFoundError:
        return False


def _read_until(process: subprocess.Popen[str], text: str) -> bool:
    assert process.stderr is not None
    return any(text in line for line in process.stderr)


def _relocations(site: Site, source: str) -> list[str]:
    found = Store(site.layout).all().values()
    return [each.metadata.name for each in found if isinstance(each, Relocation) and source in each.spec.source]


def _job(site: Site, name: str) -> FineTuningJob:
    found = Store(site.layout).get("FineTuningJob", name)
    assert isinstance(found, FineTuningJob)
    return found


def test_a_preset_is_refused_without_a_file_that_holds_it_and_used_with_one(site: Site) -> None:
    site.manifest.write_text(MANIFEST + "  preset: small\n")
    values = site.folder / "values.yaml"
    values.write_text("replicaCount: 2\npresets: {small: {training: {epochs: 1}, resources: {limits: {cpu: 2}}}}\n")

    site.run()
    reason, message = site.failure()
    assert reason is Reason.INVALID_SPEC
    assert message.startswith("spec.preset is small: presets belong to the installation of a cluster; give a file")

    shutil.rmtree(site.state)
    site.run(presets=values)
    applied = site.job().status.preset
    assert site.completed()
    assert applied is not None
    assert (applied.training.epochs, applied.resources.limits) == (1, {"cpu": "2"})

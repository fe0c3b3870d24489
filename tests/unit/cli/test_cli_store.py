from pathlib import Path

import pytest
import yaml
from tests.support.objects import NOW, RESULTS, job, succeeded

from finetuning_api.finetuningjob import FineTuningJob, JobPhase
from finetuning_api.reasons import Reason
from finetuning_cli.local.layout import Layout
from finetuning_cli.local.records import StepRecord, load_records, save_records
from finetuning_cli.local.store import Store
from finetuning_operator.reconcile.plan import StepPhase
from finetuning_workload.errors import UserError

KEY = ("FineTuningJob", "demo")


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout.at(tmp_path / "state")


def finished() -> FineTuningJob:
    made = job()
    return made.model_copy(update={"status": made.status.model_copy(update={"phase": JobPhase.COMPLETE})})


def test_object_comes_back_as_it_was_saved(layout: Layout) -> None:
    assert Store(layout).save(finished())

    assert Store(layout).get(*KEY) == finished()
    assert Store(layout).all() == {KEY: finished()}


def test_unchanged_object_is_not_written_again(layout: Layout) -> None:
    store = Store(layout)

    assert store.save(finished())
    assert not store.save(finished())


def test_file_is_the_yaml_of_the_object(layout: Layout) -> None:
    Store(layout).save(finished())

    assert yaml.safe_load(layout.object_file(*KEY).read_text()) == finished().to_wire()


def test_damage_to_the_status_alone_loses_the_status_alone(layout: Layout) -> None:
    Store(layout).save(finished())
    path = layout.object_file(*KEY)
    path.write_text(path.read_text().replace("phase: Complete", "phase: Failed"))

    assert Store(layout).get(*KEY) == job()


@pytest.mark.parametrize(
    ("old", "new"),
    [("hf://acme/tiny", "hf://evil/tiny"), ("# spec: ", "# "), ("name: demo", "name: other"), ("spec:", "spec: [")],
)
def test_other_damage_is_refused_with_the_file_and_what_to_do(layout: Layout, old: str, new: str) -> None:
    Store(layout).save(finished())
    path = layout.object_file(*KEY)
    path.write_text(path.read_text().replace(old, new))

    with pytest.raises(UserError) as caught:
        Store(layout).get(*KEY)

    assert caught.value.reason is Reason.STATE_CORRUPT
    assert str(path) in caught.value.message
    assert "finetune delete demo" in caught.value.hint


def test_records_come_back_as_they_were_saved(tmp_path: Path) -> None:
    words = succeeded("train").last_words
    assert words is not None
    assert words.result == RESULTS["train"]
    records = {"train": StepRecord(phase=StepPhase.SUCCEEDED, attempts=2, started_at=NOW, last_words=words)}

    save_records(tmp_path, records)

    assert load_records(tmp_path) == records
    assert load_records(tmp_path / "nothing") == {}


@pytest.mark.parametrize(("old", "new"), [('"attempts": 2', '"attempts": 3'), ("{", "")])
def test_damaged_records_are_refused(tmp_path: Path, old: str, new: str) -> None:
    save_records(tmp_path, {"train": StepRecord(attempts=2)})
    path = tmp_path / "state.json"
    path.write_text(path.read_text().replace(old, new, 1))

    with pytest.raises(UserError, match=r"state\.json is damaged") as caught:
        load_records(tmp_path)

    assert caught.value.reason is Reason.STATE_CORRUPT

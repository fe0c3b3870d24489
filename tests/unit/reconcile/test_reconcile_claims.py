"""What becomes of adapters whose job is gone."""

from datetime import timedelta

import pytest
from tests.support.objects import NOW, World, job

from finetuning_api.finetuningjob import RetentionPolicy
from finetuning_operator.reconcile.claims import Claim, Trash, expired_claims

TTL = 3600
KEY = ("FineTuningJob", "demo")


def claim(*, retention: RetentionPolicy = RetentionPolicy.TRASH, age: int | None = None, **more: bool) -> Claim:
    """A claim of a job; ``age`` is how many seconds ago it was marked."""
    marked = None if age is None else NOW - timedelta(seconds=age)
    return Claim("team", "demo-adapter", retention, "uid-1", trashed_at=marked, **more)


def trash_of(*claims: Claim, owners: tuple[str, ...] = ()) -> Trash:
    return expired_claims(claims, owners=owners, now=NOW, ttl=TTL)


def test_claim_without_its_job_is_marked_kept_for_its_time_and_deleted() -> None:
    new, young, old = claim(), claim(age=TTL - 60), claim(age=TTL)

    assert trash_of(new, young, old) == Trash(to_mark=(new,), to_delete=(old,), look_again=60)


def test_claim_of_a_living_job_loses_a_mark_that_was_made_in_error() -> None:
    unmarked, marked = claim(), claim(age=TTL)

    assert trash_of(unmarked, marked, owners=("uid-1",)) == Trash(to_unmark=(marked,))


def test_claim_that_is_mounted_stays_whatever_its_age() -> None:
    assert trash_of(claim(age=TTL, in_use=True)) == Trash()


@pytest.mark.parametrize("retention", [RetentionPolicy.DELETE, RetentionPolicy.RETAIN])
def test_other_claims_are_not_touched(retention: RetentionPolicy) -> None:
    nobodys = Claim("team", "demo-adapter", RetentionPolicy.TRASH, "", trashed_at=NOW - timedelta(days=9))

    assert trash_of(claim(retention=retention), claim(retention=retention, age=TTL), nobodys) == Trash()


@pytest.mark.parametrize("retention", list(RetentionPolicy))
def test_adapters_claim_is_kept_as_its_job_says(retention: RetentionPolicy) -> None:
    made = World()
    made.add(job(storage={"retention": retention}))
    made.settle()
    made.finish_relocations()

    assert [(each.name, each.retention) for each in made.plans[KEY].volumes] == [("demo-adapter", retention)]


def test_volumes_of_relocations_go_with_them_whatever_a_job_says() -> None:
    made = World()
    made.add(job(storage={"retention": "Retain"}))
    made.settle()
    for key in [key for key in made.objects if key[0] == "Relocation"]:
        made.finish(key, "measure")
    volumes = [volume for key, plan in made.plans.items() if key[0] == "Relocation" for volume in plan.volumes]

    assert {volume.retention for volume in volumes} == {RetentionPolicy.DELETE}

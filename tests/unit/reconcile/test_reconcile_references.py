"""What an object reads is what wakes it and what it keeps in use: no more, no less."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest
from tests.support.objects import World, job

from finetuning_api.base import ObjectMeta, Resource
from finetuning_api.evaluationjob import EvaluationJob, EvaluationJobSpec
from finetuning_api.inferenceserver import InferenceServer, InferenceServerSpec
from finetuning_api.relocation import Relocation
from finetuning_api.sources import SourceRef, relocation_name
from finetuning_operator.reconcile import reconcile, references
from finetuning_operator.reconcile.plan import Observed, Settings

DATA = {"source": "s3://bucket/rows.jsonl", "revision": "7", "prompt": "{message}", "completion": "{triage}"}
MODEL = {"source": "hf://acme/tiny", "revision": "v1"}
MODEL_KEY = ("Relocation", relocation_name(SourceRef(source="hf://acme/tiny", revision="v1")))
DATA_KEY = ("Relocation", relocation_name(SourceRef(source="s3://bucket/rows.jsonl", revision="7")))
JOB = ("FineTuningJob", "demo")


def nothing(_kind: str, _name: str) -> None:
    return None


def comparison(*candidates: Mapping[str, object]) -> EvaluationJob:
    spec = EvaluationJobSpec.model_validate({"candidates": list(candidates), "dataset": DATA})
    return EvaluationJob(metadata=ObjectMeta(name="compare"), spec=spec)


def server(**spec: object) -> InferenceServer:
    return InferenceServer(
        metadata=ObjectMeta(name="chat"), spec=InferenceServerSpec.model_validate({"model": MODEL} | spec)
    )


def trained() -> World:
    made = World()
    made.add(job(evaluation={"enabled": False}))
    made.settle()
    made.finish_relocations()
    made.finish(JOB, "preflight")
    made.finish(JOB, "train")
    return made


def test_job_reads_its_relocations_its_evaluation_and_its_server() -> None:
    assert references(job(), nothing) == {MODEL_KEY, DATA_KEY, ("EvaluationJob", "demo-evaluation")}
    assert references(job(serving={}, evaluation={"enabled": False}), nothing) == {
        MODEL_KEY,
        DATA_KEY,
        ("InferenceServer", "demo"),
    }


def test_job_reads_those_that_it_is_compared_with() -> None:
    compared = job("later", evaluation={"jobRefs": ["demo"]})

    assert references(compared, nothing) == {MODEL_KEY, DATA_KEY, JOB, ("EvaluationJob", "later-evaluation")}


def test_job_that_has_ended_keeps_only_its_server_in_use() -> None:
    ended = trained().job()
    served = ended.model_copy(update={"spec": job(serving={}).spec})

    assert references(ended, nothing) == set()
    assert references(served, nothing) == {("InferenceServer", "demo")}


def test_evaluation_reads_what_its_candidates_need_as_soon_as_their_jobs_are_known() -> None:
    compared = comparison({"name": "tuned", "jobRef": "demo"})
    made = trained()

    assert references(compared, nothing) == {JOB, DATA_KEY}
    assert references(compared, lambda *key: made.objects.get(key)) == {JOB, DATA_KEY, MODEL_KEY}


@pytest.mark.parametrize(
    ("claim", "expected"), [("demo-adapter", {JOB}), ("somebody-elses", set()), ("adapter", set())]
)
def test_adapter_on_a_claim_leads_to_the_job_that_made_it(claim: str, expected: set[tuple[str, str]]) -> None:
    compared = comparison({"name": "tuned", "model": MODEL, "adapter": {"claimName": claim, "path": "adapter"}})
    served = server(adapters=[{"name": "a", "claim": {"claimName": claim}}])

    assert references(compared, nothing) == {DATA_KEY, MODEL_KEY} | expected
    assert references(served, nothing) == {MODEL_KEY} | expected


def test_server_reads_model_tokenizer_and_the_jobs_of_its_adapters() -> None:
    read = references(server(tokenizer=MODEL, adapters=[{"name": "a", "jobRef": "demo"}]), nothing)

    assert {kind for kind, _ in read} == {"Relocation", "FineTuningJob"}
    assert len(read) == 3


def test_relocation_reads_nothing() -> None:
    made = trained()
    assert [references(each, nothing) for each in made.objects.values() if isinstance(each, Relocation)] == [
        frozenset(),
        frozenset(),
    ]


@dataclass
class Recording(dict[tuple[str, str], Resource]):
    """Objects that remember who was asked for."""

    asked: set[tuple[str, str]] = field(default_factory=set)

    def get(self, key: tuple[str, str], default: Resource | None = None) -> Resource | None:  # type: ignore[override]
        self.asked.add(key)
        return super().get(key, default)


@pytest.mark.parametrize("resource", [job(serving={"replicas": 1}), comparison({"name": "tuned", "jobRef": "demo"})])
def test_nothing_else_is_read_when_reconciling(resource: Resource) -> None:
    resources = Recording()
    for key, each in trained().objects.items():
        if each.metadata.name != resource.metadata.name:
            resources[key] = each
    reconcile(resource, observed=Observed(resources=resources), now=World().now, settings=Settings())

    assert resources.asked <= references(resource, lambda *key: dict.get(resources, key))

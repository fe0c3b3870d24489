"""Custom resources that a plan asks for: owned, or shared."""

import pytest
from tests.support.objects import job, relocation
from tests.support.plans import owner

from finetuning_api.evaluationjob import CandidateSpec, EvaluationJob, EvaluationJobSpec
from finetuning_api.validation import validate_manifest
from finetuning_operator.cluster.render import render_child
from finetuning_operator.reconcile.names import owned_metadata


def evaluation() -> EvaluationJob:
    spec = EvaluationJobSpec(candidates=[CandidateSpec(name="tuned", job_ref="demo")], dataset=job().spec.dataset)
    return EvaluationJob(metadata=owned_metadata(owner(), "demo-evaluation"), spec=spec)


def test_an_owned_child_is_deleted_with_its_owner_and_does_not_block_it() -> None:
    manifest = render_child(evaluation(), owner=owner())

    assert manifest["metadata"] == {
        "name": "demo-evaluation",
        "namespace": "team-a",
        "labels": {
            "app.kubernetes.io/managed-by": "finetuning-operator",
            "finetuning.dev/kind": "FineTuningJob",
            "finetuning.dev/name": "demo",
        },
        "ownerReferences": [
            {
                "apiVersion": "finetuning.dev/v1alpha1",
                "kind": "FineTuningJob",
                "name": "demo",
                "uid": "uid-1",
                "controller": True,
            }
        ],
    }


def test_a_shared_child_belongs_to_nobody() -> None:
    manifest = render_child(relocation("hf://acme/tiny"), owner=owner())
    assert manifest["metadata"] == {
        "name": "reloc-0",
        "namespace": "default",
        "labels": {"app.kubernetes.io/managed-by": "finetuning-operator"},
    }


@pytest.mark.parametrize("child", [evaluation(), relocation("hf://acme/tiny", revision="v1")])
def test_a_child_is_a_manifest_that_admission_accepts_and_that_says_nothing_of_status(
    child: EvaluationJob,
) -> None:
    manifest = render_child(child, owner=owner())

    assert set(manifest) == {"apiVersion", "kind", "metadata", "spec"}
    assert validate_manifest(manifest) == []
    assert type(child).model_validate(manifest).to_wire()["spec"] == child.to_wire()["spec"]

"""Volumes as claims: whose word counts about size, class and access, and what outlives its owner."""

import pytest
from tests.support.objects import relocation
from tests.support.plans import options, owner, volume

from finetuning_api.finetuningjob import AccessMode, RetentionPolicy, VolumeSpec
from finetuning_api.reasons import Reason
from finetuning_api.runconfig import LastWords
from finetuning_operator.cluster.render import ClaimRefusedError, render_volume
from finetuning_operator.reconcile.plan import Volume

MIB = 2**20


def claim(wanted: Volume) -> dict[str, object]:
    spec: dict[str, object] = render_volume(wanted, owner=owner(), options=options())["spec"]
    return spec


def size(wanted: Volume) -> object:
    resources = claim(wanted)["resources"]
    assert isinstance(resources, dict)
    return resources["requests"]["storage"]


def test_a_claim_of_the_default_profile_is_read_write_once_of_the_default_class() -> None:
    assert render_volume(volume(), owner=owner(), options=options()) == {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {
            "name": "demo-adapter",
            "namespace": "team-a",
            "labels": {
                "app.kubernetes.io/managed-by": "finetuning-operator",
                "finetuning.dev/kind": "FineTuningJob",
                "finetuning.dev/name": "demo",
                "finetuning.dev/owner-uid": "uid-1",
                "finetuning.dev/retention": "Delete",
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
        },
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "10Gi"}}},
    }


@pytest.mark.parametrize("retention", [RetentionPolicy.RETAIN, RetentionPolicy.TRASH])
def test_what_is_kept_has_no_owner_but_remembers_it(retention: RetentionPolicy) -> None:
    metadata = render_volume(volume(retention=retention), owner=owner(), options=options())["metadata"]

    assert "ownerReferences" not in metadata
    assert metadata["labels"]["finetuning.dev/retention"] == retention.value
    assert metadata["labels"]["finetuning.dev/owner-uid"] == "uid-1"


def test_a_profile_decides_what_the_user_does_not() -> None:
    assert claim(volume(profile="fast")) == {
        "accessModes": ["ReadWriteMany"],
        "storageClassName": "nvme",
        "resources": {"requests": {"storage": "20Gi"}},
    }


def test_a_user_goes_before_the_profile_and_the_measurement() -> None:
    wanted = VolumeSpec(size="7Gi", storage_class_name="slow", access_modes=[AccessMode.READ_WRITE_ONCE_POD])
    assert claim(volume(profile="fast", spec=wanted, size_bytes=MIB)) == {
        "accessModes": ["ReadWriteOncePod"],
        "storageClassName": "slow",
        "resources": {"requests": {"storage": "7Gi"}},
    }


@pytest.mark.parametrize(
    ("measured", "expected"), [(0, "1Mi"), (1, "1Mi"), (MIB, "1Mi"), (MIB + 1, "2Mi"), (300 * MIB, "300Mi")]
)
def test_a_measured_size_is_rounded_up_to_whole_mebibytes(measured: int, expected: str) -> None:
    assert size(volume(size_bytes=measured)) == expected


def test_a_claim_is_never_smaller_than_its_profile_wants() -> None:
    assert size(volume(profile="fast", size_bytes=1)) == "1Gi"
    assert size(volume(profile="fast", size_bytes=1024 * MIB)) == "1024Mi"


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (
            volume(profile="fast", spec=VolumeSpec(size="101Gi")),
            "spec.storage.adapter.size is 101Gi, but storage profile fast allows at most 100Gi",
        ),
        (
            volume(profile="fast", size_bytes=200 * 1024 * MIB),
            "the planned size of claim demo-adapter is 204800Mi, but storage profile fast allows at most 100Gi",
        ),
    ],
)
def test_a_claim_above_the_bound_is_refused_with_field_value_and_bound(wanted: Volume, message: str) -> None:
    with pytest.raises(ClaimRefusedError) as refused:
        claim(wanted)

    hint = "Ask for less, choose another profile, or have its maxSize raised."
    assert refused.value.words == LastWords(reason=Reason.INVALID_SPEC, message=message, hint=hint)


def test_an_unknown_profile_is_refused_with_those_that_exist() -> None:
    source = relocation("hf://acme/tiny")

    with pytest.raises(ClaimRefusedError) as refused:
        render_volume(volume(profile="faster"), owner=source, options=options())

    words = refused.value.words
    assert words.message == "spec.profile is faster, but this installation has no such storage profile"
    assert words.hint == "Choose one of default, fast."

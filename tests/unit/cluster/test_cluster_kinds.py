import pytest

from finetuning_operator.cluster import kinds
from finetuning_operator.cluster.kinds import KindRef


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (kinds.POD.path("team"), "/api/v1/namespaces/team/pods"),
        (kinds.POD.path(None), "/api/v1/pods"),
        (kinds.NAMESPACE.path(None, "team"), "/api/v1/namespaces/team"),
        (kinds.TOKEN_REVIEW.path(None), "/apis/authentication.k8s.io/v1/tokenreviews"),
        (kinds.JOB.path("team", "a"), "/apis/batch/v1/namespaces/team/jobs/a"),
        (
            kinds.FINE_TUNING_JOB.path("team", "a", "status"),
            "/apis/finetuning.dev/v1alpha1/namespaces/team/finetuningjobs/a/status",
        ),
        (kinds.POD.path("team", "../../secrets"), "/api/v1/namespaces/team/pods/..%2F..%2Fsecrets"),
    ],
)
def test_paths_are_those_of_the_api(path: str, expected: str) -> None:
    assert path == expected


def test_the_kind_of_a_manifest_is_found_and_no_other_kind_is_ever_written() -> None:
    assert kinds.kind_of({"kind": "Job"}) == KindRef("batch", "v1", "jobs", "Job")
    assert kinds.kind_of({"kind": "Relocation"}).api_version == "finetuning.dev/v1alpha1"
    with pytest.raises(KeyError):
        kinds.kind_of({"kind": "Secret"})

"""Where pods meet: one term, on a claim that is held, or on the base model's where none is."""

import pytest
from tests.support.plans import ADAPTER, BASE, DATA, pod, server, step
from tests.unit.cluster.render.manifests import job_of, pod_spec, render, serve

from finetuning_api.dataset import RowFormat
from finetuning_api.finetuningjob import MethodSpec, TrainingSpec
from finetuning_api.runconfig import DatasetInput, JobIdentity, ModelInput, Provenance, TrainConfig
from finetuning_operator.cluster.render import ClaimUse, Conflict, Placement, claim_label, claims_of, keep, place
from finetuning_operator.reconcile.plan import ClaimMount

RWO, ROX, RWX, RWOP = "ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod"
MODEL, ROWS = ClaimUse("model"), ClaimUse("rows")
RESULT = ClaimUse("result", read_only=False)
ALL = (MODEL, ROWS, RESULT)
SOURCE = Provenance(source="hf://acme/tiny", digest="sha256:0")


def train_config() -> TrainConfig:
    base = f"{BASE.path}/artifact"
    return TrainConfig(
        job=JobIdentity(kind="FineTuningJob", name="demo"),
        model=ModelInput(path=base, tokenizer_path=base, provenance=SOURCE, tokenizer_provenance=SOURCE),
        dataset=DatasetInput(path=DATA.path, rows=RowFormat(), provenance=SOURCE),
        method=MethodSpec(),
        training=TrainingSpec(),
        cache_path=f"{ADAPTER.path}/cache",
        output_path=f"{ADAPTER.path}/adapter",
        checkpoint_path=f"{ADAPTER.path}/checkpoints",
    )


@pytest.mark.parametrize(
    ("claims", "holders", "expected"),
    [
        (ALL, {}, Placement("model")),
        ((RESULT,), {}, Placement("result")),
        ((), {}, Placement()),
        (ALL, {"rows": {"node-a": {"other"}}}, Placement("rows", "node-a")),
        (ALL, {"model": {"node-a": {"a", "b"}}, "rows": {"node-a": {"b"}}}, Placement("model", "node-a")),
        (ALL, {"rows": {"": {"waiting"}}}, Placement("rows")),
        (ALL, {"model": {"": {"waiting"}}, "rows": {"node-b": {"runs"}}}, Placement("rows", "node-b")),
        ((ClaimUse("model", (RWX,)), ROWS), {"model": {"node-a": {"a"}}}, Placement("rows")),
        ((ClaimUse("model", (RWO, ROX)),), {"model": {"node-a": {"a"}}}, Placement()),
        (
            (ClaimUse("model", (RWO, ROX), read_only=False),),
            {"model": {"node-a": {"a"}}},
            Placement("model", "node-a"),
        ),
        ((ClaimUse("model", (RWOP,)),), {}, Placement("model")),
        (
            ALL,
            {"model": {"node-a": {"a"}}, "rows": {"node-b": {"b"}}},
            Conflict((("model", "on node-a"), ("rows", "on node-b"))),
        ),
        (ALL, {"model": {"node-b": {"a"}, "node-a": {"b"}}}, Conflict((("model", "on node-a and node-b"),))),
        (
            (ClaimUse("model", (RWOP,)), ROWS),
            {"model": {"": {"a"}}},
            Conflict((("model", "by pod a and is for one pod only"),)),
        ),
    ],
)
def test_a_pod_goes_where_its_claims_are(
    claims: tuple[ClaimUse, ...], holders: dict[str, dict[str, set[str]]], expected: Placement | Conflict
) -> None:
    assert place(claims, holders=holders) == expected


def test_a_conflict_names_claims_and_nodes() -> None:
    conflict = place(ALL, holders={"model": {"node-a": {"a"}}, "result": {"node-b": {"b"}}})

    assert isinstance(conflict, Conflict)
    assert conflict.message == (
        "the volumes cannot be mounted together now: claim model is held on node-a, claim result is held on node-b"
    )


def test_the_base_model_is_the_first_meeting_point_and_what_is_written_the_last() -> None:
    training = step(config=train_config(), mounts=(ADAPTER, DATA, BASE))
    extra = pod(volumes=[{"name": "a", "mountPath": "/mnt/a", "claimName": "mine", "readOnly": True}])

    assert claims_of(training) == (("reloc-base", True), ("reloc-data", True), ("demo-adapter", False))
    assert claims_of(server(pod=extra)) == (("reloc-base", True), ("demo-adapter", True), ("mine", True))


def test_a_claim_that_is_read_and_written_counts_as_written() -> None:
    extra = pod(volumes=[{"name": "a", "mountPath": "/mnt/a", "claimName": "reloc-data"}])
    assert dict(claims_of(step(pod=extra)))["reloc-data"] is False


def test_the_pod_satisfies_its_own_term() -> None:
    (term,) = pod_spec(render(step(), placement=Placement("reloc-base")))["affinity"]["podAffinity"][
        "requiredDuringSchedulingIgnoredDuringExecution"
    ]
    labels = job_of(render(step()))["spec"]["template"]["metadata"]["labels"]

    assert term == {
        "labelSelector": {"matchExpressions": [{"key": "claim.finetuning.dev/reloc-base", "operator": "Exists"}]},
        "topologyKey": "kubernetes.io/hostname",
    }
    assert "claim.finetuning.dev/reloc-base" in labels


def test_what_the_user_prefers_stays_beside_the_term() -> None:
    near = {"weight": 1, "podAffinityTerm": {"topologyKey": "zone"}}
    wishes = pod(
        affinity={
            "nodeAffinity": {"x": 1},
            "podAntiAffinity": {"y": 2},
            "podAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [near]},
        }
    )

    affinity = pod_spec(render(step(pod=wishes), placement=Placement("reloc-base")))["affinity"]

    assert affinity == {
        "nodeAffinity": {"x": 1},
        "podAntiAffinity": {"y": 2},
        "podAffinity": {
            "preferredDuringSchedulingIgnoredDuringExecution": [near],
            "requiredDuringSchedulingIgnoredDuringExecution": Placement("reloc-base").terms,
        },
    }


def test_a_server_keeps_its_meeting_point_while_its_claims_allow() -> None:
    deployment, _ = serve(server(), placement=Placement("demo-adapter"))

    assert keep(deployment, ["reloc-base", "demo-adapter"]) == Placement("demo-adapter")
    assert keep(deployment, ["reloc-base"]) is None
    assert keep(serve(server(), placement=Placement())[0], ["reloc-base"]) is None


def test_pods_meet_on_a_claim_whose_name_is_too_long_for_a_label() -> None:
    """What a pod carries is what others look for: a name that is cut in one place only would never be met."""
    long = "my-very-long-claim." * 5 + "end"
    mount = ClaimMount(long, "/volumes/long")
    job = job_of(render(step(mounts=(mount,)), placement=Placement(long)))
    template = job["spec"]["template"]
    affinity = template["spec"]["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    (asked,) = (term["labelSelector"]["matchExpressions"][0]["key"] for term in affinity)

    assert asked == claim_label(long)
    assert asked in template["metadata"]["labels"]


def test_labels_of_claims_with_long_names_are_cut_and_told_apart() -> None:
    long = "my-very-long-claim." * 5
    labels = {claim_label(name) for name in (long, long + "a", "short")}

    assert len(labels) == 3
    assert "claim.finetuning.dev/short" in labels
    assert all(len(label.partition("/")[2]) <= 63 for label in labels)

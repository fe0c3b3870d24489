"""Small factories of what plans hold, and of what an installation decides."""

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from tests.support.objects import job

from finetuning_api.base import ObjectMeta, Resource, ResourceRequirements
from finetuning_api.finetuningjob import FineTuningJob, PodOptions, VolumeSpec
from finetuning_api.inferenceserver import HealthCheck, InferenceServer, InferenceServerSpec, ServerVariant
from finetuning_api.runconfig import JobIdentity, MeasureConfig, ModelInput, Provenance, ServeConfig
from finetuning_api.sources import SourceRef
from finetuning_operator.cluster.options import Options, ProgressOptions, StorageProfile
from finetuning_operator.reconcile.plan import ClaimMount, ImageRole, Server, Step, Volume

NAMESPACE = "team-a"
CA = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
CONFIG = MeasureConfig(
    job=JobIdentity(kind="FineTuningJob", name="demo", namespace=NAMESPACE, uid="uid-1"),
    source=SourceRef(source="hf://acme/tiny"),
)
_PROVENANCE = Provenance(source="hf://acme/tiny", digest="sha256:0")
SERVE = ServeConfig(
    job=JobIdentity(kind="InferenceServer", name="chat", namespace=NAMESPACE, uid="uid-2"),
    model=ModelInput(
        path="/volumes/reloc-base/artifact",
        tokenizer_path="/volumes/reloc-base/artifact",
        provenance=_PROVENANCE,
        tokenizer_provenance=_PROVENANCE,
    ),
    served_name="acme/tiny",
    tokens_path="/var/run/secrets/finetuning.dev/tokens",
)
BASE = ClaimMount("reloc-base", "/volumes/reloc-base")
DATA = ClaimMount("reloc-data", "/volumes/reloc-data")
ADAPTER = ClaimMount("demo-adapter", "/volumes/demo-adapter", read_only=False)
PROGRESS = ProgressOptions(
    url="https://operator.finetuning-system.svc:443",
    port=8443,
    certificate=Path("tls.crt"),
    key=Path("tls.key"),
    ca=CA,
)


def options(**fields: object) -> Options:
    """Return an installation with a progress endpoint."""
    profiles = {
        "default": StorageProfile(),
        "fast": StorageProfile.model_validate(
            {
                "storageClassName": "nvme",
                "accessModes": ["ReadWriteMany"],
                "defaultSize": "20Gi",
                "minSize": "1Gi",
                "maxSize": "100Gi",
            }
        ),
    }
    images = {role: f"images.example/finetuning-{role.value}:1" for role in ImageRole}
    standard = Options(progress=PROGRESS, storage_profiles=profiles, images=images)
    return replace(standard, **cast("Any", fields))


def owner(name: str = "demo", *, namespace: str = NAMESPACE) -> FineTuningJob:
    """Return a job to make children for."""
    return job(name).model_copy(update={"metadata": ObjectMeta(name=name, namespace=namespace, uid="uid-1")})


def server_owner(name: str = "chat", *, namespace: str = NAMESPACE) -> Resource:
    """Return an InferenceServer to make children for."""
    spec = InferenceServerSpec(model=SourceRef(source="hf://acme/tiny"))
    return InferenceServer(metadata=ObjectMeta(name=name, namespace=namespace, uid="uid-2"), spec=spec)


def step(name: str = "train", **fields: object) -> Step:
    """Return a step that reads two claims and writes one."""
    standard = Step(name=name, image=ImageRole.TRAINER, config=CONFIG, mounts=(DATA, BASE, ADAPTER))
    return replace(standard, **cast("Any", fields))


def server(variant: ServerVariant = ServerVariant.BUILTIN, **fields: object) -> Server:
    """Return a server of a base model with one adapter."""
    standard = Server(
        name="chat",
        variant=variant,
        port=8000,
        replicas=2,
        health=HealthCheck(),
        model_path="/volumes/reloc-base/artifact",
        model_name="acme/tiny",
        adapters=(("triage", "/volumes/demo-adapter/adapter"),),
        mounts=(BASE, ClaimMount("demo-adapter", "/volumes/demo-adapter")),
    )
    return replace(standard, **cast("Any", fields))


def volume(name: str = "demo-adapter", **fields: object) -> Volume:
    """Return a volume of which nothing is known but its name."""
    return replace(Volume(name=name, spec=VolumeSpec()), **cast("Any", fields))


def pod(**fields: object) -> PodOptions:
    """Return a user's wishes for pods, in the names of the API."""
    return PodOptions.model_validate(fields, extra="forbid")


def resources(*, requests: dict[str, str] | None = None, limits: dict[str, str] | None = None) -> ResourceRequirements:
    """Return compute resources."""
    return ResourceRequirements(requests=requests or {}, limits=limits or {})

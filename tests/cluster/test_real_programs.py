"""The operator with the real programs in its pods: a model is brought, tuned and evaluated as a cluster would do it.

Real are the API server, scheduler, controllers, operator, programs, tokens and progress reports; containers, mounts and
the enforcement of network policies are not (tests.support.node).
"""

import json
import secrets
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tests.support.bad_input import GOOD_ROWS, good_spec, poison, poisoned_rows
from tests.support.cluster import Cluster, Object, has_condition, temporary_namespace
from tests.support.hub import Hub
from tests.support.lifecycle import condition, has_ended, resource
from tests.support.loopback import Fault, Trouble
from tests.support.models import tiny_llama
from tests.support.node import ProgramNode, program_node
from tests.support.operator_process import Identity, OperatorProcess, running_operator

from finetuning_workload.artifact import require_intact

SECONDS = 240
STALL_SECONDS = 10
MODEL, TOKEN = "acme/tiny", "hub-token"
POISON = "漢"
COMPLETION_INDEX = "batch.kubernetes.io/job-completion-index"


@dataclass(frozen=True, slots=True)
class Site:
    """A namespace in which an operator works, with a node and a hub to bring models from."""

    cluster: Cluster
    namespace: str
    node: ProgramNode
    operator: OperatorProcess
    hub: Hub

    def add_rows(self, rows: list[Mapping[str, object]]) -> str:
        """Store rows as a ConfigMap and return their source."""
        name = f"rows-{secrets.token_hex(4)}"
        text = "".join(f"{json.dumps(row)}\n" for row in rows)
        metadata = {"name": name, "namespace": self.namespace}
        self.cluster.create(
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"rows.jsonl": text}}
        )
        return f"configmap://{name}/rows.jsonl"

    def create(self, name: str, rows: str, changes: Mapping[str, object] | None = None) -> Object:
        """Create a job that would succeed but for changes, by dotted field below spec."""
        here = {
            "model": {"source": f"hf://{MODEL}", "endpoint": self.hub.url},
            "dataset.source": rows,
            "evaluation": {"metrics": ["completion-perplexity"], "bootstrapSamples": 200},
        }
        spec = good_spec({**here, **(changes or {})})
        return self.cluster.create(resource("FineTuningJob", name, self.namespace, **spec))

    def wait(self, name: str, where: Callable[[Object], bool], *, seconds: float = SECONDS) -> Object:
        """Return a job as soon as it is as it should be."""
        return self.cluster.wait_for_object("FineTuningJob", name, self.namespace, where=where, seconds=seconds)


@pytest.fixture(scope="module")
def site(cluster: Cluster, operator_identity: Identity, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    with Hub() as hub, temporary_namespace(cluster, "hold") as namespace:
        cluster.create(
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {"name": TOKEN, "namespace": namespace},
                "stringData": {"HF_TOKEN": "hf_valid"},
            }
        )
        _add_models(hub, folder)
        env = {
            "FINETUNING_NAMESPACES": namespace,
            "FINETUNING_PROGRESS_URL": f"https://localhost:{port}",
            "FINETUNING_PROGRESS_PORT": str(port),
            "FINETUNING_STALL_SECONDS": str(STALL_SECONDS),
        }
        with (
            program_node(cluster, namespace, folder=folder) as node,
            running_operator(operator_identity, folder=folder, env=env) as operator,
        ):
            operator.wait_ready()
            yield Site(cluster, namespace, node, operator, hub)


def _add_models(hub: Hub, folder: Path) -> None:
    """Give the hub a good model, and each kind of one that cannot be used."""
    files = {path.name: path.read_bytes() for path in tiny_llama(folder / "model").iterdir()}
    hub.add_model(MODEL, files)
    hub.add_model("acme/closed", files, gated=True, license_accepted=False)
    # Its bytes are its own: the hub serves them by their sum, and they fail for every model that has them.
    poisoned = tiny_llama(folder / "poisoned", tied=False)
    hub.add_model("acme/altered", {path.name: path.read_bytes() for path in poisoned.iterdir()})
    hub.fail_file("acme/altered", "model.safetensors", Fault(Trouble.WRONG_BYTES, after_bytes=100, times=1000))
    hub.add_model("acme/silent", files)
    hub.fail_file("acme/silent", "config.json", Fault(Trouble.STALL, after_bytes=10, times=1000))
    hub.add_model("acme/wordless", {name: content for name, content in files.items() if "token" not in name})
    weights = {"pytorch_model.bin": files["model.safetensors"]}
    hub.add_model("acme/pickled", {name: files[name] for name in files.keys() - {"model.safetensors"}} | weights)
    poison(poisoned, word=POISON)
    hub.add_model("acme/poisoned", {path.name: path.read_bytes() for path in poisoned.iterdir()})


def _failure(job: Object) -> tuple[str, str]:
    failed = condition(job, "Failed")
    return failed["reason"], failed["message"]


def test_a_job_tunes_and_evaluates_a_model_and_tells_its_progress(site: Site) -> None:
    site.create("tuned", site.add_rows([*GOOD_ROWS]), {"training.maxSteps": 40})

    done = site.wait("tuned", has_ended)

    assert has_condition(done, "Complete"), _failure(done)
    (row,) = done["status"]["evaluation"]
    assert row["metric"] == "completion-perplexity"
    assert row["samples"] == done["status"]["artifacts"]["dataset"]["testRows"]
    assert row["tuned"] < row["base"] / 2
    assert row["ciHigh"] < 0
    adapter = done["status"]["artifacts"]["adapter"]
    folder = site.node.volumes / adapter["claimName"] / adapter["path"]
    assert require_intact(folder).digest == adapter["digest"]
    assert "lora_A" in next(iter(load_file(folder / "adapter_model.safetensors")))
    stages = {stage["name"]: stage for stage in done["status"]["stages"]}
    ended = {name: (stage["state"], stage["attempts"]) for name, stage in stages.items()}
    assert ended == dict.fromkeys(("relocate", "preflight", "train", "evaluate"), ("Succeeded", 1))
    assert site.operator.metric("finetuning_progress_reports_total", result="202") > 0


def test_a_suspended_job_saves_stops_and_goes_on_where_it_was(site: Site) -> None:
    job = site.create("paused", site.add_rows([*GOOD_ROWS]), {"training.maxSteps": 4000, "evaluation.enabled": False})
    site.wait("paused", lambda found: (found.get("status", {}).get("progress") or {}).get("step", 0) > 0)

    site.cluster.patch(job, {"spec": {"suspend": True}})
    site.wait("paused", lambda found: has_condition(found, "Suspended"))
    site.cluster.wait_gone("Job", "paused-train", site.namespace)
    claim = site.node.volumes / "paused-adapter"
    saved = sorted(claim.glob("checkpoints/*/manifest.json"))
    assert saved, sorted(path.relative_to(claim) for path in claim.rglob("*"))

    site.cluster.patch(job, {"spec": {"suspend": False}})
    resumed = site.wait(
        "paused",
        lambda found: (
            not has_condition(found, "Suspended") and (found["status"].get("progress") or {}).get("step", 0) > 0
        ),
    )
    step = max(int(path.parent.name.rpartition("-")[2]) for path in saved)
    assert resumed["status"]["progress"]["step"] >= step
    site.cluster.delete(job)


def test_a_damaged_adapter_is_refused_where_it_is_used(site: Site) -> None:
    rows = site.add_rows([*GOOD_ROWS])
    site.create("spoilt", rows, {"evaluation.enabled": False})
    trained = site.wait("spoilt", has_ended)
    assert has_condition(trained, "Complete"), _failure(trained)
    adapter = trained["status"]["artifacts"]["adapter"]
    damage(site.node.volumes / adapter["claimName"] / adapter["path"] / "adapter_model.safetensors")

    spec = {"dataset": good_spec({"dataset.source": rows})["dataset"], "metrics": ["completion-perplexity"]}
    candidates = [{"name": "tuned", "jobRef": "spoilt"}]
    site.cluster.create(resource("EvaluationJob", "compare", site.namespace, candidates=candidates, **spec))
    failed = site.cluster.wait_for_object("EvaluationJob", "compare", site.namespace, where=has_ended, seconds=SECONDS)

    reason, message = _failure(failed)
    assert reason == "ArtifactCorrupt", message
    assert "adapter_model.safetensors" in message


def damage(file: Path) -> None:
    """Change the last byte of a file: size, names and header stay."""
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 0xFF]))


def test_two_workers_of_two_processes_each_train_one_adapter(site: Site) -> None:
    together = {"training.maxSteps": 200, "parallelism": {"workers": 2, "processesPerWorker": 2}}
    site.create("shared", site.add_rows([*GOOD_ROWS]), {**together, "evaluation.enabled": False})

    job = site.cluster.wait_for_object("Job", "shared-train", site.namespace, where=bool, seconds=SECONDS)
    service = site.cluster.wait_for_object("Service", "shared-train", site.namespace, where=bool)
    policy = site.cluster.wait_for_object("NetworkPolicy", "shared-train", site.namespace, where=bool)
    done = site.wait("shared", has_ended)

    assert has_condition(done, "Complete"), _failure(done)
    assert {name: job["spec"][name] for name in ("completionMode", "completions", "parallelism")} == {
        "completionMode": "Indexed",
        "completions": 2,
        "parallelism": 2,
    }
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"].items() <= job["spec"]["template"]["metadata"]["labels"].items()
    assert policy["spec"]["podSelector"]["matchLabels"] == service["spec"]["selector"]
    (container,) = job["spec"]["template"]["spec"]["containers"]
    plain = {each["name"]: each["value"] for each in container["env"] if "value" in each}
    assert (plain["MASTER_ADDR"], plain["MASTER_PORT"], plain["WORLD_SIZE"]) == (
        "shared-train-0.shared-train",
        "29500",
        "4",
    )
    assert "FINETUNING_WORKER" in {each["name"] for each in container["env"] if "valueFrom" in each}
    pods = site.cluster.objects("Pod", site.namespace, labels="finetuning.dev/step=train,finetuning.dev/name=shared")
    assert sorted(pod["metadata"]["labels"][COMPLETION_INDEX] for pod in pods) == ["0", "1"]
    adapter = done["status"]["artifacts"]["adapter"]
    folder = site.node.volumes / adapter["claimName"] / adapter["path"]
    assert require_intact(folder).digest == adapter["digest"]
    plan = json.loads((folder / "provenance.json").read_text())["plan"]
    assert (plan["processes"], plan["strategy"]) == (4, "ddp")
    (stage,) = [stage for stage in done["status"]["stages"] if stage["name"] == "train"]
    assert (stage["state"], stage["attempts"]) == ("Succeeded", 1)


def test_a_trial_that_falls_behind_is_given_up_and_the_best_becomes_the_jobs(site: Site) -> None:
    rates = {"name": "training.learningRate", "values": [0.02, 1e-7]}
    # With this seed the better one is drawn first.
    tuning = {"parameters": [rates], "search": "grid", "seed": 1, "halving": {"reductionFactor": 2}}
    changes = {"training.maxSteps": 20, "training.evaluateEverySteps": 5, "tuning": tuning}
    site.create("searched", site.add_rows([*GOOD_ROWS]), {**changes, "evaluation.enabled": False})

    # As many programs as other jobs of this file have, and one for each trial.
    done = site.wait("searched", has_ended, seconds=2 * SECONDS)

    assert has_condition(done, "Complete"), _failure(done)
    best, worse = done["status"]["tuning"]["trials"]
    assert (best["parameters"], best["state"], best["steps"]) == (
        [{"name": "training.learningRate", "value": 0.02}],
        "Succeeded",
        20,
    )
    assert (worse["state"], worse["steps"]) == ("GivenUp", 5)
    assert done["status"]["tuning"]["best"] == 0
    assert best["evaluationLoss"] < worse["evaluationLoss"]
    adapter = done["status"]["artifacts"]["adapter"]
    claim = site.node.volumes / adapter["claimName"]
    assert adapter["digest"] == best["digest"] == require_intact(claim / adapter["path"]).digest
    assert json.loads((claim / adapter["path"] / "provenance.json").read_text())["trial"] == 0
    assert not (claim / "trials").exists()
    assert [path.name for path in (claim / "checkpoints").iterdir()] == ["metrics.jsonl"]


BAD_INPUT = [
    (
        "column",
        [*GOOD_ROWS],
        {"dataset.prompt": "{mesage}: "},
        "ColumnNotFound",
        ("spec.dataset.prompt", "{mesage}", "its columns are message, triage", "Did you mean 'message'?"),
    ),
    ("empty", [], {}, "DatasetEmpty", ("spec.dataset.source has no rows: rows.jsonl", "right file")),
    (
        "one-sided",
        [*GOOD_ROWS],
        {"dataset.split": {"test": 0.001}},
        "SplitEmpty",
        ("spec.dataset.split leaves no row to test", "48 usable rows", "test: 0.001"),
    ),
    (
        "half-empty",
        [{**row, "triage": row["triage"] if index % 2 else ""} for index, row in enumerate(GOOD_ROWS)],
        {},
        "CompletionsEmpty",
        ("24 of 48 rows", "empty completion", "remove such rows or fill them"),
    ),
    (
        "cut",
        [*GOOD_ROWS],
        {"training.maxLength": 8},
        "TooManyRowsLost",
        ("48 of 48 rows", "spec.training.maxLength 8", "Set spec.training.maxLength to"),
    ),
    (
        "targets",
        [*GOOD_ROWS],
        {"method.targetModules": "c_attn"},
        "TargetModulesNotFound",
        ("method.targetModules", "c_attn", "q_proj", "all-linear"),
    ),
    (
        "missing-model",
        [*GOOD_ROWS],
        {"model.source": "hf://acme/nowhere"},
        "AuthenticationRequired",
        ("hf://acme/nowhere asks for credentials (401)", "Put HF_TOKEN into a Secret and name it in secretRef"),
    ),
    (
        "revision",
        [*GOOD_ROWS],
        {"model.revision": "v9"},
        "RevisionNotFound",
        ("hf://acme/tiny has no revision 'v9'", "Set revision to a commit, tag or version that exists."),
    ),
    (
        "checksum",
        [*GOOD_ROWS],
        {"dataset.checksum": f"sha256:{'0' * 64}"},
        "ChecksumMismatch",
        ("checksum is sha256:000", "but"),
    ),
    (
        "nowhere",
        [*GOOD_ROWS],
        {"model.source": "hf://acme/nowhere", "model.secretRef": {"name": TOKEN}},
        "SourceNotFound",
        ("hf://acme/nowhere was not found (404)", "a private one needs a token (HF_TOKEN)"),
    ),
    (
        "closed",
        [*GOOD_ROWS],
        {"model.source": "hf://acme/closed", "model.secretRef": {"name": TOKEN}},
        "AccessDenied",
        ("hf://acme/closed refuses access (403)", "Accept its license at", "account of the token"),
    ),
    (
        "altered",
        [*GOOD_ROWS],
        {"model.source": "hf://acme/altered", "backoffLimit": 0},
        "ChecksumMismatch",
        ("model.safetensors of hf://acme/altered arrived damaged", "expected sha256", "proxy or mirror"),
    ),
    (
        "silent",
        [*GOOD_ROWS],
        {"model.source": "hf://acme/silent", "backoffLimit": 0},
        "DownloadStalled",
        ("config.json", f"no byte arrived for {STALL_SECONDS} s", "the next attempt goes on from there"),
    ),
    (
        "unreachable",
        [*GOOD_ROWS],
        {"model.source": "hf://acme/unreachable", "model.endpoint": "http://127.0.0.1:9", "backoffLimit": 0},
        "NetworkUnreachable",
        ("cannot reach 127.0.0.1", "Connection refused", "egress rules of relocation pods"),
    ),
    (
        "wordless",
        [*GOOD_ROWS],
        {"model.source": "hf://acme/wordless"},
        "TokenizerNotFound",
        ("has no tokenizer", "spec.tokenizer.source", "tokenizer.json"),
    ),
    (
        "pickled",
        [*GOOD_ROWS],
        {"model.source": "hf://acme/pickled"},
        "UnsafeContent",
        ("pytorch_model.bin", "runs code", "safetensors"),
    ),
]


@pytest.mark.parametrize(("name", "rows", "changes", "reason", "told"), BAD_INPUT, ids=[case[0] for case in BAD_INPUT])
def test_wrong_input_fails_with_the_message_of_a_local_run(
    site: Site,
    *,
    name: str,
    rows: list[Mapping[str, object]],
    changes: Mapping[str, object],
    reason: str,
    told: tuple[str, ...],
) -> None:
    site.create(name, site.add_rows(rows), changes)

    failed = site.wait(name, has_ended)

    found, message = _failure(failed)
    assert found == reason, message
    assert [part for part in told if part not in message] == [], message
    assert "Traceback" not in message
    jobs = {each["metadata"]["name"] for each in site.cluster.objects("Job", site.namespace)}
    assert f"{name}-train" not in jobs


def test_loss_that_is_no_number_fails_the_job_and_keeps_the_last_good_checkpoint(site: Site) -> None:
    rows = site.add_rows([*poisoned_rows(word=POISON)])
    site.create("diverged", rows, {"model.source": "hf://acme/poisoned", "evaluation.enabled": False})

    failed = site.wait("diverged", has_ended)

    reason, message = _failure(failed)
    assert reason == "LossDiverged", message
    assert "the training loss is nan at step 3; the checkpoint of step 2 is kept" in message
    assert "Try a lower spec.training.learningRate (it is 0.01)" in message
    claim = site.node.volumes / "diverged-adapter"
    require_intact(claim / "checkpoints" / "step-00000002")
    assert not (claim / "adapter").exists()
    (stage,) = [stage for stage in failed["status"]["stages"] if stage["name"] == "train"]
    assert (stage["state"], stage["attempts"]) == ("Failed", 1)

"""For every rule between fields a manifest that keeps it and one that breaks it, and for every field two values."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from operator import getitem

from tests.unit.api.factories import EVERY_KIND, Manifest, evaluation, job, named, relocation, server


@dataclass(frozen=True)
class RuleCase:
    """A pair of manifests that differ in what one rule is about."""

    message: str
    """Beginning of the rule's message."""
    path: str
    accepted: Manifest
    rejected: Manifest

    @property
    def kind(self) -> str:
        return str(self.rejected["kind"])

    def __str__(self) -> str:
        return f"{self.kind}-{self.path}-{self.message[:30]}"


def _pod(**options: object) -> Manifest:
    return job(pod=options)


def _volume(**fields: object) -> Mapping[str, object]:
    return {"name": "a", "mountPath": "/mnt/a", "claimName": "mine"} | fields


def _source(source: str, **more: object) -> Manifest:
    return relocation(source=source, **more)


def _data(**rows: object) -> Manifest:
    return job(dataset={"source": "rows.jsonl"} | rows)


def _gate(*rules: Mapping[str, object], **evaluation_spec: object) -> Manifest:
    return job(
        dataset={"source": "rows.jsonl", "prompt": "{a}", "completion": "{b}"},
        evaluation={"metrics": ["rouge", "exact-match"], "gate": list(rules)} | evaluation_spec,
    )


def _compared(*rules: Mapping[str, object], **evaluation_spec: object) -> Manifest:
    data = {"source": "rows.jsonl", "prompt": "{a}", "completion": "{b}"}
    return evaluation(**({"dataset": data, "metrics": ["exact-match"], "gate": list(rules)} | evaluation_spec))


def _predicted(**spec: object) -> Manifest:
    data = {"source": "rows.jsonl", "prompt": "{question}"}
    return evaluation(**({"mode": "predict", "dataset": data} | spec))


def _preferred(training: Mapping[str, object], *, script: object = None, **rows: object) -> Manifest:
    data = {"source": "rows.jsonl", "prompt": "{a}", "completion": "{b}"} | rows
    return job(dataset=data, training=training, **({} if script is None else {"script": script}))


def _candidate(**candidate: object) -> Manifest:
    return evaluation(candidates=[{"name": "base", **candidate}])


def _tuned(*parameters: Mapping[str, object], **tuning: object) -> Manifest:
    return job(tuning={"parameters": [{"name": "method.rank", **each} for each in parameters], **tuning})


def _divided(**deepspeed: object) -> Manifest:
    return job(parallelism={"processesPerWorker": 2, "strategy": "deepspeed", "deepspeed": deepspeed})


_MODEL = {"source": "hf://owner/model"}
_SCRIPT = {"source": "configmap://sft", "command": ["python", "sft.py"]}
_ADAPTER = {"name": "a", "jobRef": "b"}
_CANARY = {"name": "live", "adapter": "a", "weight": 10}
_CUSTOM = {"name": "tone", "source": "configmap://metric", "allowCode": True}
_TASK = {"name": "capitals", "source": "configmap://tasks"}
_DELTA = {"metric": "exact-match", "minDelta": 0.1}
_BY_CPU = {"maxReplicas": 3, "targetCpuUtilization": 60}
_BY_QUERY = {"prometheus": {"serverAddress": "http://prometheus:9090", "query": "up", "threshold": 2}}
_BY_DAY = {"timezone": "Europe/Berlin", "start": "0 8 * * 1-5", "end": "0 18 * * 1-5", "desiredReplicas": 2}

_WRITTEN: tuple[RuleCase, ...] = (
    *(
        RuleCase("the name needs at most 63 lower-case", "metadata.name", named(make(), "a1-b"), named(make(), "1a"))
        for make in EVERY_KIND.values()
    ),
    RuleCase("the name needs at most 52", "metadata.name", named(job(), "a" * 52), named(job(), "a" * 53)),
    RuleCase(
        "the name needs at most 52", "metadata.name", named(evaluation(), "a" * 52), named(evaluation(), "a" * 53)
    ),
    RuleCase("source has an unknown scheme", "spec.source", _source("s3://bucket/key"), _source("ftp://host/key")),
    RuleCase("source has an unknown scheme", "spec.source", _source("a/local/path"), _source("HF://owner/model")),
    RuleCase("source names nothing", "spec.source", _source("https://host/a%20b"), _source("https://host/a b")),
    RuleCase("source names nothing", "spec.source", _source("file:///data/a b"), _source("gs://")),
    RuleCase(
        "the address holds a user name",
        "spec.source",
        _source("git+https://host/a@b"),
        _source("git+https://me:pw@host/a"),
    ),
    RuleCase("the part after #", "spec.source", _source("oci://host/a:1#b/c..d"), _source("oci://host/a:1#b/../../c")),
    RuleCase("a pypi:// source", "spec.source", _source("pypi://package==1.0#file"), _source("pypi://package")),
    RuleCase("an hf:// source", "spec.source", _source("hf://datasets/owner/name#file"), _source("hf://name")),
    RuleCase(
        "endpoint applies",
        "spec.endpoint",
        _source("s3://bucket/key", endpoint="http://minio:9000"),
        _source("https://host/key", endpoint="http://minio:9000"),
    ),
    RuleCase(
        "set one of completion",
        "spec.dataset.completion",
        _data(completion="{answer}"),
        _data(completion="{answer}", messages="chat"),
    ),
    RuleCase(
        "prompt needs completion",
        "spec.dataset.prompt",
        _data(prompt="{question}", completion="{answer}"),
        _data(prompt="{question}"),
    ),
    RuleCase(
        "dora and rslora", "spec.method.type", job(method={"dora": True}), job(method={"type": "full", "rslora": True})
    ),
    RuleCase(
        "microBatchSize is a part",
        "spec.training.microBatchSize",
        job(training={"batchSize": 8, "microBatchSize": 8}),
        job(training={"microBatchSize": 17}),
    ),
    RuleCase(
        "qlora cannot be sharded",
        "spec.parallelism.strategy",
        job(method={"type": "qlora"}, parallelism={"strategy": "ddp"}),
        job(method={"type": "qlora"}, parallelism={"strategy": "fsdp"}),
    ),
    RuleCase(
        "parallelism.deepspeed has settings",
        "spec.parallelism.strategy",
        job(parallelism={"strategy": "deepspeed", "deepspeed": {"config": {"zero_optimization": {"anything": 1}}}}),
        job(parallelism={"deepspeed": {"stage": 3}}),
    ),
    RuleCase(
        "one process trains without DeepSpeed",
        "spec.parallelism.deepspeed.offload",
        _divided(offload="optimizer"),
        job(parallelism={"strategy": "deepspeed", "deepspeed": {"offload": "optimizer"}}),
    ),
    RuleCase(
        "offload all takes weights that are divided",
        "spec.parallelism.deepspeed.offload",
        _divided(offload="all", stage=3),
        _divided(offload="all"),
    ),
    RuleCase(
        "give either values or both min and max",
        "spec.tuning.parameters[0].values",
        _tuned({"min": 4, "max": 8}),
        _tuned({"min": 4, "max": 8, "values": [4]}),
    ),
    RuleCase(
        "the range is empty",
        "spec.tuning.parameters[0].min",
        _tuned({"min": 4, "max": 8}),
        _tuned({"min": 8, "max": 8}),
    ),
    RuleCase(
        "a range of scale log begins above 0",
        "spec.tuning.parameters[0].min",
        _tuned({"name": "method.dropout", "min": 0, "max": 0.5}),
        _tuned({"name": "method.dropout", "min": 0, "max": 0.5, "scale": "log"}),
    ),
    RuleCase(
        "search grid tries every combination of values",
        "spec.tuning.parameters",
        _tuned({"values": [4, 8]}, search="grid"),
        _tuned({"min": 4, "max": 8}, search="grid"),
    ),
    RuleCase(
        "search grid tries every combination: remove trials",
        "spec.tuning.trials",
        _tuned({"values": [4, 8]}, trials=2),
        _tuned({"values": [4, 8]}, search="grid", trials=2),
    ),
    RuleCase(
        "spec.tuning tries too many combinations, and 64 are the most: give fewer values",
        "spec.tuning.parameters",
        _tuned({"values": [1, 2, 3, 4, 5, 6, 7, 8]}, {"name": "method.alpha", "values": [*range(1, 9)]}, search="grid"),
        _tuned(
            {"values": [1, 2, 3, 4, 5, 6, 7, 8]}, {"name": "method.alpha", "values": [*range(1, 10)]}, search="grid"
        ),
    ),
    RuleCase(
        "spec.tuning tries",
        "spec.tuning.parameters",
        _tuned({"values": [*range(1, 33)]}, {"name": "method.alpha", "values": [1, 2, 3]}, search="random"),
        _tuned({"values": [*range(1, 33)]}, {"name": "method.alpha", "values": [1, 2, 3]}, search="grid"),
    ),
    RuleCase(
        "what a script makes of its settings is not known here",
        "spec.tuning",
        _tuned({"values": [4, 8]}),
        _tuned({"values": [4, 8]})
        | {
            "spec": _tuned({"values": [4, 8]})["spec"]
            | {"script": {"source": "configmap://sft", "command": ["python", "sft.py"]}}
        },
    ),
    RuleCase(
        "a script is started once",
        "spec.parallelism",
        job(script={"source": "configmap://sft", "command": ["python", "sft.py"]}),
        job(script={"source": "configmap://sft", "command": ["python", "sft.py"]}, parallelism={"workers": 2}),
    ),
    RuleCase(
        "serving.afterGate needs",
        "spec.serving.afterGate",
        job(serving={"afterGate": False}, evaluation={"enabled": False}),
        job(serving={}, evaluation={"enabled": False}),
    ),
    RuleCase(
        "choices are answers to a prompt",
        "spec.dataset.choices",
        job(dataset={"source": "rows.jsonl", "prompt": "{q}", "completion": "{a}", "choices": "options"}),
        job(dataset={"source": "rows.jsonl", "completion": "{a}", "choices": "options"}, evaluation={"enabled": False}),
    ),
    RuleCase(
        "plain text has no completions",
        "spec.evaluation.metrics",
        job(evaluation={"metrics": ["perplexity", "bits-per-byte", "completion-perplexity", "cola"]}),
        job(evaluation={"metrics": ["perplexity", "exact-match"]}),
    ),
    RuleCase(
        "plain text has no completions",
        "spec.evaluation.metrics",
        job(evaluation={"metrics": ["general-perplexity", "cola-pairs"]}),
        job(evaluation={"metrics": ["general-perplexity", "latency"]}),
    ),
    RuleCase(
        "plain text has no completions",
        "spec.evaluation.metrics",
        job(dataset={"source": "rows.jsonl", "messages": "turns"}, evaluation={"metrics": ["rouge"]}),
        job(dataset={"source": "rows.jsonl", "completion": "{a}"}, evaluation={"metrics": ["rouge"]}),
    ),
    RuleCase(
        "gate names a metric that is not evaluated: gate[1] is perplexity; add it to metrics",
        "spec.evaluation.gate",
        _gate({"metric": "rougeL", "min": 0.1}, _DELTA),
        _gate(_DELTA, {"metric": "perplexity", "max": 9}),
    ),
    RuleCase(
        "gate names a metric that is not evaluated: one after gate[3]; add it to metrics",
        "spec.evaluation.gate",
        _gate(*[_DELTA] * 5),
        _gate(*[_DELTA] * 4, {"metric": "perplexity", "max": 9}),
    ),
    RuleCase(
        "a gate rule's against is base",
        "spec.evaluation.gate",
        _gate(_DELTA | {"against": "reference"}, reference=_MODEL),
        _gate(_DELTA | {"against": "reference"}),
    ),
    RuleCase(
        "a gate rule's against is base",
        "spec.evaluation.gate",
        _gate(_DELTA | {"against": "earlier"}, jobRefs=["earlier"]),
        _gate(_DELTA | {"against": "earlier"}, jobRefs=["other"]),
    ),
    RuleCase(
        "a job is compared with under its own name",
        "spec.evaluation.jobRefs",
        _gate(jobRefs=["tuned-before"]),
        _gate(jobRefs=["earlier", "tuned"]),
    ),
    RuleCase(
        "the results of other jobs",
        "spec.evaluation.jobRefs",
        _gate(jobRefs=["earlier"]),
        _gate(jobRefs=["earlier"], enabled=False),
    ),
    RuleCase(
        "a job cannot be compared with itself",
        "spec.evaluation.jobRefs",
        named(_gate(jobRefs=["earlier"]), "later"),
        named(_gate(jobRefs=["later"]), "later"),
    ),
    RuleCase(
        "custom needs both",
        "spec.evaluation.custom",
        _gate({"metric": "tone", "min": 0}, metrics=["custom"], custom=[_CUSTOM, _CUSTOM | {"name": "length"}]),
        _gate(metrics=["custom"]),
    ),
    RuleCase(
        "custom needs both",
        "spec.evaluation.custom",
        _gate(metrics=["cola"]),
        _gate(metrics=["cola"], custom=[_CUSTOM]),
    ),
    *(
        RuleCase(
            "a metric of your own needs a name that no built-in metric has",
            "spec.evaluation.custom[0].name",
            _gate(metrics=["custom"], custom=[_CUSTOM | {"name": "rouge_1"}]),
            _gate(metrics=["custom"], custom=[_CUSTOM | {"name": taken}]),
        )
        for taken in ("rouge1", "rouge", "custom", "tasks", "rougeL", "cola")
    ),
    *(
        RuleCase(
            "gate names a metric",
            "spec.evaluation.gate",
            _gate({"metric": "tone", "min": 0}, metrics=["custom", "rouge"], custom=[_CUSTOM]),
            _gate({"metric": other, "min": 0}, metrics=["custom", "rouge"], custom=[_CUSTOM]),
        )
        for other in ("custom", "rouge", "rougeX", "length", "cola")
    ),
    RuleCase(
        "the file is run by the evaluation",
        "spec.evaluation.custom[0].allowCode",
        _gate(metrics=["custom"], custom=[_CUSTOM]),
        _gate(metrics=["custom"], custom=[{"name": "tone", "source": "configmap://metric"}]),
    ),
    RuleCase("custom needs both", "spec.custom", _compared(), _compared(custom=[_CUSTOM])),
    RuleCase(
        "tasks needs both",
        "spec.evaluation.tasks",
        _gate({"metric": "capitals.acc", "min": 0}, metrics=["tasks"], tasks=[_TASK, _TASK | {"name": "other"}]),
        _gate(metrics=["tasks"]),
    ),
    RuleCase(
        "tasks needs both",
        "spec.evaluation.tasks",
        _gate(metrics=["cola"]),
        _gate(metrics=["cola"], tasks=[_TASK]),
    ),
    RuleCase("tasks needs both", "spec.tasks", _compared(), _compared(tasks=[_TASK])),
    *(
        RuleCase(
            "gate names a metric",
            "spec.evaluation.gate",
            _gate({"metric": "capitals.acc_norm", "min": 0}, metrics=["tasks"], tasks=[_TASK]),
            _gate({"metric": other, "min": 0}, metrics=["tasks"], tasks=[_TASK]),
        )
        for other in ("tasks", "capitals", "capitalsX.acc", "other.acc")
    ),
    RuleCase(
        "a gate is decided by the evaluation", "spec.evaluation.gate", _gate(_DELTA), _gate(_DELTA, enabled=False)
    ),
    RuleCase(
        "a gate rule needs exactly one",
        "spec.evaluation.gate[1].metric",
        _gate(_DELTA, {"metric": "rouge1", "max": 1}),
        _gate(_DELTA, {"metric": "rouge1", "max": 1, "min": 0}),
    ),
    RuleCase(
        "against applies to",
        "spec.evaluation.gate[0].against",
        _gate({"metric": "rouge1", "nonInferior": 0.1, "against": "base"}),
        _gate({"metric": "rouge1", "min": 0.1, "against": "base"}),
    ),
    RuleCase(
        "a candidate is either",
        "spec.candidates[0].model",
        _candidate(jobRef="a"),
        _candidate(jobRef="a", model=_MODEL),
    ),
    RuleCase(
        "an adapter needs the model",
        "spec.candidates[0].adapter",
        _candidate(model=_MODEL, adapter={"claimName": "a"}),
        _candidate(jobRef="a", adapter={"claimName": "a"}),
    ),
    RuleCase(
        "a gate rule's against names no candidate",
        "spec.gate",
        _compared(_DELTA),
        _compared(_DELTA | {"against": "reference"}),
    ),
    RuleCase(
        "a gate judges the candidate",
        "spec.gate",
        _compared(_DELTA),
        _compared(_DELTA, candidates=[{"name": "base", "jobRef": "a"}]),
    ),
    RuleCase("gate names a metric", "spec.gate", _compared(_DELTA), _compared(_DELTA, metrics=["perplexity"])),
    RuleCase(
        "plain text has no completions",
        "spec.metrics",
        evaluation(metrics=["perplexity"]),
        evaluation(metrics=["accuracy"]),
    ),
    RuleCase(
        "plain text has no completions",
        "spec.metrics",
        _predicted(metrics=["rouge"]),
        _predicted(mode="evaluate", dataset={"source": "rows.jsonl"}, metrics=["rouge"]),
    ),
    RuleCase("prompt needs completion", "spec.dataset.prompt", _predicted(), _predicted(mode="evaluate")),
    RuleCase(
        "mode predict computes no metrics",
        "spec.gate",
        _predicted(),
        _predicted(candidates=[{"name": "base", "jobRef": "a"}], gate=[_DELTA | {"against": "other"}]),
    ),
    RuleCase(
        "mode predict needs dataset.prompt",
        "spec.dataset",
        _predicted(dataset={"source": "rows.jsonl", "messages": "turns"}),
        _predicted(dataset={"source": "rows.jsonl", "completion": "{text}"}),
    ),
    RuleCase(
        "an adapter is on a claim",
        "spec.adapters[0].claim",
        server(adapters=[{"name": "a", "jobRef": "b"}]),
        server(adapters=[{"name": "a"}]),
    ),
    RuleCase(
        "variants command, vllm",
        "spec.image",
        server(variant="vllm", image="registry/vllm:1"),
        server(variant="vllm"),
    ),
    RuleCase(
        "variant command needs",
        "spec.command",
        server(variant="command", image="a", command=["serve"]),
        server(variant="command", image="a"),
    ),
    RuleCase(
        "only variant builtin takes up",
        "spec.adapters",
        server(adapters=[{"name": "a", "jobRef": "b", "awaited": True}]),
        server(adapters=[{"name": "a", "jobRef": "b", "awaited": True}], variant="vllm", image="a:1"),
    ),
    RuleCase(
        "only variant builtin draws",
        "spec.canary",
        server(adapters=[_ADAPTER], canary=_CANARY),
        server(adapters=[_ADAPTER], canary=_CANARY, variant="vllm", image="a:1"),
    ),
    RuleCase(
        "canary.adapter is none",
        "spec.canary.adapter",
        server(adapters=[_ADAPTER], canary=_CANARY),
        server(adapters=[_ADAPTER], canary=_CANARY | {"adapter": "b"}),
    ),
    RuleCase(
        "canary.stable is another",
        "spec.canary.stable",
        server(adapters=[_ADAPTER, _ADAPTER | {"name": "b"}], canary=_CANARY | {"stable": "b"}),
        server(adapters=[_ADAPTER], canary=_CANARY | {"stable": "a"}),
    ),
    RuleCase(
        "canary.stable is another",
        "spec.canary.stable",
        server(adapters=[_ADAPTER, _ADAPTER | {"name": "b"}], canary=_CANARY | {"stable": "b"}),
        server(adapters=[_ADAPTER], canary=_CANARY | {"stable": "b"}),
    ),
    RuleCase(
        "canary.name is the name of",
        "spec.canary.name",
        server(adapters=[_ADAPTER], canary=_CANARY),
        server(adapters=[_ADAPTER], canary=_CANARY | {"name": "a"}),
    ),
    RuleCase(
        "the adapter is served under",
        "spec.serving.canary.name",
        named(job(serving={"canary": {"name": "live", "weight": 10}}), "tuned"),
        named(job(serving={"canary": {"name": "live", "weight": 10}}), "live"),
    ),
    RuleCase(
        "method full makes",
        "spec.serving.canary",
        job(serving={"canary": {"name": "live", "weight": 10}}),
        job(serving={"canary": {"name": "live", "weight": 10}}, method={"type": "full"}),
    ),
    RuleCase(
        "only variant builtin tells when",
        "spec.idleShutdownMinutes",
        server(idleShutdownMinutes=30),
        server(idleShutdownMinutes=30, variant="vllm", image="a:1"),
    ),
    RuleCase(
        "autoscaling decides",
        "spec.replicas",
        server(autoscaling=_BY_CPU, replicas=0),
        server(autoscaling=_BY_CPU, replicas=2),
    ),
    RuleCase(
        "minReplicas cannot be greater",
        "spec.autoscaling.minReplicas",
        server(autoscaling=_BY_CPU | {"minReplicas": 3}),
        server(autoscaling=_BY_CPU | {"minReplicas": 4}),
    ),
    RuleCase(
        "keda takes the place of targets",
        "spec.autoscaling.keda",
        server(autoscaling={"maxReplicas": 3, "targetRequestsInFlight": 4, "targetCpuUtilization": 60}),
        server(autoscaling={"maxReplicas": 3, "targetRequestsInFlight": 4, "keda": _BY_QUERY}),
    ),
    RuleCase(
        "nothing says when",
        "spec.autoscaling",
        server(autoscaling={"maxReplicas": 3, "keda": _BY_QUERY}),
        server(autoscaling={"maxReplicas": 3}),
    ),
    RuleCase(
        "only keda starts a server",
        "spec.autoscaling.minReplicas",
        server(autoscaling={"minReplicas": 0, "maxReplicas": 3, "keda": _BY_QUERY}),
        server(autoscaling=_BY_CPU | {"minReplicas": 0}),
    ),
    RuleCase(
        "keda scales by cron",
        "spec.autoscaling.keda.cron",
        server(autoscaling={"maxReplicas": 3, "keda": {"cron": [_BY_DAY]}}),
        server(autoscaling={"maxReplicas": 3, "keda": {}}),
    ),
    RuleCase(
        "a disruption budget has",
        "spec.disruption.maxUnavailable",
        server(disruption={"minAvailable": 1}),
        server(disruption={"minAvailable": 1, "maxUnavailable": 1}),
    ),
    RuleCase(
        "HOME, HF_HUB_OFFLINE",
        "spec.pod.env[0].name",
        _pod(env=[{"name": "HOMEPAGE"}, {"name": "MY_FINETUNING_A"}]),
        _pod(env=[{"name": "HOME", "value": "/root"}]),
    ),
    RuleCase(
        "HOME, HF_HUB_OFFLINE",
        "spec.env[0].name",
        server(env=[{"name": "NIM_LOG_LEVEL", "value": "INFO"}]),
        server(env=[{"name": "KUBEFLOW_TRAINER_SERVER_URL", "value": "https://elsewhere"}]),
    ),
    RuleCase(
        "labels of finetuning.dev",
        "spec.pod.labels",
        _pod(labels={"team": "nlp", "example.com/batch": "1"}),
        _pod(labels={"claim.finetuning.dev/base": ""}),
    ),
    RuleCase(
        "annotations of finetuning.dev",
        "spec.pod.annotations",
        _pod(annotations={"my-finetuning.dev": "a", "app.kubernetes.io/part-of": "a"}),
        _pod(annotations={"finetuning.dev/run-config": "{}"}),
    ),
    RuleCase(
        "two volumes cannot",
        "spec.pod.volumes",
        _pod(volumes=[_volume(), _volume(name="b", mountPath="/mnt/b")]),
        _pod(volumes=[_volume(), _volume(name="b")]),
    ),
    RuleCase(
        "a volume comes from",
        "spec.pod.volumes[0].name",
        _pod(volumes=[_volume(claimName=None, secretName="mine")]),
        _pod(volumes=[_volume(emptyDirSize="1Gi")]),
    ),
    RuleCase(
        "mountPath would hide",
        "spec.pod.volumes[0].mountPath",
        _pod(volumes=[_volume(mountPath="/etc/ssl"), _volume(name="b", mountPath="/volumes2")]),
        _pod(volumes=[_volume(mountPath="/volumes/reloc-1")]),
    ),
    RuleCase(
        "mountPath would hide",
        "spec.pod.volumes[0].mountPath",
        _pod(volumes=[_volume(mountPath="/var/cache")]),
        _pod(volumes=[_volume(mountPath="/etc")]),
    ),
    RuleCase(
        "rejected is the worse one",
        "spec.dataset.rejected",
        evaluation(dataset={"source": "rows.jsonl", "prompt": "{a}", "completion": "{b}", "rejected": "{c}"}),
        evaluation(dataset={"source": "rows.jsonl", "completion": "{b}", "rejected": "{c}"}),
    ),
    RuleCase(
        "training.objective dpo and dataset.rejected belong together",
        "spec.training.objective",
        _preferred({"objective": "dpo"}, rejected="{c}"),
        _preferred({"objective": "dpo"}),
    ),
    RuleCase(
        "a script decides itself what it learns",
        "spec.training.objective",
        _preferred({}, rejected="{c}", script=_SCRIPT),
        _preferred({"objective": "dpo"}, rejected="{c}", script=_SCRIPT),
    ),
    RuleCase(
        "the adapter lies on its own claim already",
        "spec.exports[0].to",
        job(exports=[{"name": "a", "format": "adapter", "to": "hf://acme/a"}]),
        job(exports=[{"name": "a", "format": "adapter"}]),
    ),
    RuleCase(
        "revision, endpoint and secretRef are about where",
        "spec.exports[0].to",
        job(exports=[{"name": "a", "to": "oci://r.example/a:1", "secretRef": {"name": "login"}}]),
        job(exports=[{"name": "a", "secretRef": {"name": "login"}}]),
    ),
)


def _written(kind: str, *paths: str) -> tuple[RuleCase, ...]:
    """Return the cases of a kind at fields whose paths begin so."""
    return tuple(case for case in _WRITTEN if case.kind == kind and case.path.startswith(paths))


def _elsewhere(
    cases: Iterable[RuleCase], block: str, *, place: str, around: Callable[[Manifest], Manifest]
) -> Iterator[RuleCase]:
    """Take a block of fields out of each case and put it where another kind has the same fields.

    Args:
        cases: Cases of rules between fields of the block.
        block: Path of the block in them.
        place: Path of the block in the other kind.
        around: Makes a manifest of the other kind that holds a block.
    """
    for case in cases:
        accepted, rejected = (
            around(reduce(getitem, block.split("."), manifest)) for manifest in (case.accepted, case.rejected)
        )
        yield RuleCase(case.message, place + case.path.removeprefix(block), accepted, rejected)


_SOURCES = _written("Relocation", "spec.")
_PODS = _written("FineTuningJob", "spec.pod.")
RULE_CASES: tuple[RuleCase, ...] = (
    *_WRITTEN,
    *_elsewhere(_SOURCES, "spec", place="spec.model", around=lambda source: job(model=source)),
    *_elsewhere(_SOURCES, "spec", place="spec.candidates[0].model", around=lambda source: _candidate(model=source)),
    *_elsewhere(_SOURCES, "spec", place="spec.tokenizer", around=lambda source: server(tokenizer=source)),
    *_elsewhere(_PODS, "spec.pod", place="spec.pod", around=lambda pod: evaluation(pod=pod)),
    *_elsewhere(_PODS, "spec.pod", place="spec.pod", around=lambda pod: server(pod=pod)),
    *_elsewhere(
        _written("FineTuningJob", "spec.dataset."),
        "spec.dataset",
        place="spec.dataset",
        around=lambda data: evaluation(dataset=data),
    ),
    *_elsewhere(
        _written("EvaluationJob", "spec.dataset.rejected"),
        "spec.dataset",
        place="spec.dataset",
        around=lambda data: job(dataset=data, training={"objective": "dpo"}),
    ),
    *_elsewhere(
        _written("FineTuningJob", "spec.evaluation.gate[", "spec.evaluation.custom["),
        "spec.evaluation",
        place="spec",
        around=lambda options: _compared(**options),
    ),
)


@dataclass(frozen=True)
class Change:
    """Two valid values of a field of a spec; None leaves the field out."""

    field: str
    before: object
    after: object


_JOB_CHANGES = (
    Change("model", _MODEL, {"source": "hf://owner/other"}),
    Change("tokenizer", None, _MODEL),
    Change("tokenizer", _MODEL, None),
    Change("dataset", {"source": "a.jsonl"}, {"source": "a.jsonl", "limit": 9}),
    Change("method", None, {"rank": 8}),
    Change("training", {"epochs": 1}, {"epochs": 2}),
    Change("parallelism", {}, {"workers": 2}),
    Change("tuning", None, {"parameters": [{"name": "method.rank", "values": [4, 8]}]}),
    Change("script", None, {"source": "configmap://sft", "command": ["python", "sft.py"]}),
    Change("resources", {"limits": {"cpu": 1}}, {"limits": {"cpu": 2}}),
    Change("pod", {}, {"runtimeClassName": "nvidia"}),
    Change("storage", {}, {"profile": "fast"}),
    Change("preset", "small", None),
    Change("evaluation", {}, {"limit": 10}),
    Change("serving", None, {}),
    Change("serving", {}, None),
    Change("activeDeadlineSeconds", 1, 2),
    Change("pendingDeadlineSeconds", None, 2),
    Change("backoffLimit", None, 4),
    Change("priorityClassName", "low", "high"),
    Change("queueName", "a", None),
    Change("tensorboard", None, {}),
)
_EVALUATION_CHANGES = (
    Change("mode", None, "predict"),
    Change("metrics", ["cola"], ["rouge"]),
    Change("gate", [], [_DELTA]),
    Change("limit", None, 5),
    Change("custom", [], [_CUSTOM]),
    Change("tasks", [], [_TASK]),
    Change("maxLength", 512, 1024),
    Change("generation", {}, {"stop": ["."]}),
    Change("bootstrapSamples", 100, 200),
    Change("seed", 1, 2),
    Change("candidates", [{"name": "base", "jobRef": "a"}], [{"name": "base", "jobRef": "b"}]),
    Change("dataset", {"source": "a"}, {"source": "b"}),
    Change("output", None, {"claimName": "a"}),
    Change("resources", {}, {"requests": {"cpu": "500m"}}),
    Change("pod", {}, {"env": [{"name": "A", "value": "1"}]}),
    Change("storage", {}, {"adapter": {"size": "1Gi"}}),
    Change("activeDeadlineSeconds", None, 9),
    Change("pendingDeadlineSeconds", 9, None),
    Change("backoffLimit", 0, 1),
    Change("priorityClassName", None, "high"),
    Change("queueName", "a", "b"),
)
_RELOCATION_CHANGES = (
    Change("source", "hf://a/b", "hf://a/c"),
    Change("revision", None, "main"),
    Change("secretRef", {"name": "a"}, {"name": "b"}),
    Change("endpoint", "http://a", None),
    Change("checksum", None, "sha256:" + "0" * 64),
    Change("include", [], ["*.json"]),
    Change("exclude", ["*.bin"], []),
    Change("size", None, "1Gi"),
    Change("profile", "a", "b"),
    Change("volume", {}, {"size": "2Gi"}),
    Change("backoffLimit", 1, 2),
)
FIXED_FIELDS: Mapping[str, tuple[Change, ...]] = {
    "FineTuningJob": _JOB_CHANGES,
    "EvaluationJob": _EVALUATION_CHANGES,
    "Relocation": _RELOCATION_CHANGES,
    "InferenceServer": (Change("model", _MODEL, {"source": "hf://owner/other"}), Change("port", 8000, 9000)),
}
CHANGEABLE_FIELDS: Mapping[str, tuple[Change, ...]] = {
    "FineTuningJob": (
        Change("suspend", before=None, after=True),
        Change("ttlSecondsAfterFinished", None, 60),
        Change("serving", {"replicas": 1}, {"replicas": 3}),
        Change("serving", {"replicas": 1}, {"replicas": 1, "canary": {"name": "live", "weight": 10}}),
        Change("notifications", [], [{"type": "slack", "secretRef": {"name": "a"}}]),
        Change("exports", [], [{"name": "merged"}]),
        Change("tracking", {"mlflowUri": "http://a"}, {"mlflowUri": "http://b", "weights": True}),
        Change("tracking", None, {"mlflowUri": "https://a"}),
    ),
    "EvaluationJob": (Change("suspend", before=True, after=False), Change("ttlSecondsAfterFinished", 60, None)),
    "Relocation": (Change("ttlSecondsAfterUnused", 60, 30),),
    "InferenceServer": (
        Change("tokenizer", None, _MODEL),
        Change("adapters", [], [{"name": "a", "jobRef": "b"}]),
        Change("canary", None, _CANARY),
        Change("variant", "builtin", "nim"),
        Change("image", "a:1", "a:2"),
        Change("command", [], ["serve"]),
        Change("env", [], [{"name": "A"}]),
        Change("replicas", 1, 0),
        Change("preStart", [], [["prepare", "--all"]]),
        Change("autoscaling", None, _BY_CPU),
        Change("disruption", {"maxUnavailable": 1}, {"minAvailable": 1}),
        Change("revisionHistoryLimit", 2, 0),
        Change("idleShutdownMinutes", None, 30),
        Change("health", {}, {"path": "/ready", "timeoutSeconds": 9, "startupSeconds": 60}),
        Change("expose", before=False, after=True),
        Change("authSecretRef", None, {"name": "a"}),
        Change("resources", {}, {"limits": {"cpu": 1}}),
        Change("pod", {}, {"sharedMemorySize": "1Gi"}),
        Change("storage", {}, {"profile": "fast"}),
        Change("priorityClassName", "a", None),
    ),
}

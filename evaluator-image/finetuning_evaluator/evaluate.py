"""One evaluation from its RunConfig to its report."""

import hashlib
import platform
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from finetuning_api.metrics import Metric, Task
from finetuning_api.runconfig import CustomMetricInput, EvaluateConfig, EvaluateResult
from finetuning_evaluator import custom, gate, report, warnings
from finetuning_evaluator.analysis import ANALYSIS_VERSION, Resampling, adjusted, analyse, judge
from finetuning_evaluator.candidates import Measured, NumberFormat, Runner, number_format
from finetuning_evaluator.metrics.built_in import built_in_digest
from finetuning_evaluator.metrics.general import passages
from finetuning_evaluator.metrics.rouge import RougeTokenizer, choose_tokenizer
from finetuning_evaluator.observations import Observed, ObservedByMetric, observe, observe_own, observe_tasks
from finetuning_evaluator.outputs import speed, summarise
from finetuning_evaluator.overlap import Overlap, measure
from finetuning_evaluator.parts import PARTS_FOLDER, Parts, digest_of
from finetuning_evaluator.progress import Progress
from finetuning_evaluator.results import (
    SCHEMA_VERSION,
    CandidateSummary,
    DatasetSummary,
    Environment,
    Results,
    Settings,
)
from finetuning_workload.candidates import adapter_digest, require_distinct
from finetuning_workload.data import training_rows
from finetuning_workload.evaluated import CandidateInputs, read_inputs, tasks_of
from finetuning_workload.hardware import choose_device, set_threads
from finetuning_workload.memory import explained_memory_errors
from finetuning_workload.program import Context

DISTRIBUTION = "finetuning-operator"
_MEMORY_HINT = "Lower evaluation.maxLength or evaluation.generation.maxNewTokens, or give the job more memory."
_ROWS_BETWEEN_NOTES = 1000


def evaluate(config: EvaluateConfig, context: Context) -> EvaluateResult:
    """Evaluate the candidates, decide the gate, and write the report; a finished one is returned at once.

    Raises UserError: CANDIDATES_IDENTICAL, METRIC_UNAVAILABLE, SPLIT_EMPTY, and what reading models and data raises;
    Interrupted when asked to stop.
    """
    folder = Path(config.output_path)
    digest = config_digest(config)
    finished = report.find_finished(folder, config_digest=digest)
    if finished is not None:
        return finished.summary()
    require_distinct(config.candidates)
    started = time.monotonic()
    threads = set_threads(context.environment)
    inputs = read_inputs(config, config.dataset, general_text=passages())
    lasting = None if config.cache_path is None else Path(config.cache_path)
    parts = Parts(folder / PARTS_FOLDER, job=config.job, lasting=lasting)
    device, tasks = choose_device(), tasks_of(config.metrics)
    chosen = number_format(parts, device)
    reporter = context.reporter("evaluate")
    try:
        progress = Progress(reporter, context.stop, tasks=tasks, candidates=len(inputs))
        shared = _overlap(config, inputs[0], progress)
        runner = Runner(config, tasks=tasks, parts=parts, device=device, number_format=chosen, progress=progress)
        with explained_memory_errors("the evaluation", hint=_MEMORY_HINT):
            measured = runner.measure(inputs)
        for metric in config.custom:
            progress.note(metric.name)
            _add_custom(config, metric, measured, context)
        progress.note("intervals")
        environment = _environment(device, chosen, threads)
        dataset = _dataset(config, inputs[0], shared)
        results, observed = _results(
            config, measured, environment=environment, dataset=dataset, config_digest=digest, started=started
        )
        reporter.update(1.0, note="done")
    finally:
        reporter.close()
    report.write(folder, results, measured=measured, observed=observed, parts=parts)
    return results.summary()


def _add_custom(
    config: EvaluateConfig, metric: CustomMetricInput, measured: Sequence[Measured], context: Context
) -> None:
    """Add what a user's own metric makes of the outputs to them."""
    written = {
        found.inputs.candidate.name: [output.text for output in found.parts[Task.GENERATION].outputs]
        for found in measured
    }
    scores = custom.score(metric, written, rows=measured[0].inputs.rows, dataset=config.dataset, context=context)
    for found in measured:
        part = found.parts[Task.GENERATION]
        own = part.custom | {metric.name: scores[found.inputs.candidate.name]}
        found.parts[Task.GENERATION] = part.model_copy(update={"custom": own})


def config_digest(config: EvaluateConfig) -> str:
    """Return the identity of an evaluation: equal means that the same numbers and decisions would come out."""
    data = config.model_dump(mode="json", exclude={"job", "output_path", "cache_path", "candidates", "dataset"})
    data["schema"] = SCHEMA_VERSION
    data["analysis"] = ANALYSIS_VERSION
    data["builtIn"] = built_in_digest()
    data["dataset"] = [config.dataset.provenance.digest, config.dataset.rows.model_dump(mode="json")]
    data["candidates"] = [
        [
            candidate.name,
            candidate.model.provenance.digest,
            candidate.model.tokenizer_provenance.digest,
            adapter_digest(candidate),
        ]
        for candidate in config.candidates
    ]
    return f"sha256:{digest_of(data)}"


def _results(
    config: EvaluateConfig,
    measured: Sequence[Measured],
    *,
    environment: Environment,
    dataset: DatasetSummary,
    config_digest: str,
    started: float,
) -> tuple[Results, ObservedByMetric]:
    inputs = [found.inputs for found in measured]
    tokenizer = choose_tokenizer([row.completion for row in inputs[0].rows])
    observed = _observe(config, measured, tokenizer)
    metrics = adjusted(config.gate, analyse(observed, inputs, Resampling(config.bootstrap_samples, config.seed)))
    gates = judge(config.gate, metrics)
    candidates = tuple(_candidate(found) for found in measured)
    results = Results(
        job=config.job,
        config_digest=config_digest,
        created_at=datetime.now(UTC),
        wall_seconds=time.monotonic() - started,
        verdict=gate.overall([decision.result for decision in gates]),
        environment=environment,
        dataset=dataset,
        settings=_settings(config, measured),
        candidates=candidates,
        metrics=metrics,
        gates=gates,
        warnings=warnings.collect(
            metrics, inputs, candidates=candidates, rouge_tokenizer=tokenizer, overlap=dataset.overlap
        ),
    )
    return results, observed


def _observe(config: EvaluateConfig, measured: Sequence[Measured], tokenizer: RougeTokenizer) -> ObservedByMetric:
    observed: dict[str, dict[str, Observed]] = {}
    for metric in config.metrics:
        for found in measured:
            part, name = found.parts[metric.facts.task], found.inputs.candidate.name
            if metric is Metric.CUSTOM:
                for own in config.custom:
                    observed.setdefault(own.name, {})[name] = observe_own(own, found.inputs, part)
            elif metric is Metric.TASKS:
                for own_name, scored in observe_tasks(found.inputs, part, max_length=config.max_length):
                    observed.setdefault(own_name, {})[name] = scored
            else:
                scored = observe(metric, found.inputs, part=part, tokenizer=tokenizer, max_length=config.max_length)
                observed.setdefault(metric, {})[name] = scored
    return observed


def _overlap(config: EvaluateConfig, inputs: CandidateInputs, progress: Progress) -> Overlap | None:
    training = []
    for row in training_rows(config.dataset, inputs.tokenizer):
        training.append(row)
        if len(training) % _ROWS_BETWEEN_NOTES == 0:
            progress.note(f"read {len(training)} training rows")
    progress.note(f"looking for held-out rows in {len(training)} training rows")
    return measure(inputs.rows, training) if training else None


def _dataset(config: EvaluateConfig, inputs: CandidateInputs, overlap: Overlap | None) -> DatasetSummary:
    rows = inputs.rows
    listing = "\n".join(row.row_id for row in rows)
    return DatasetSummary(
        provenance=config.dataset.provenance,
        rows=len(rows),
        groups=inputs.groups,
        row_ids_digest=f"sha256:{hashlib.sha256(listing.encode()).hexdigest()}",
        limit=config.limit,
        overlap=overlap,
    )


def _settings(config: EvaluateConfig, measured: Sequence[Measured]) -> Settings:
    limits = {
        found.inputs.candidate.name: found.parts[Task.GENERATION].max_new_tokens
        for found in measured
        if Task.GENERATION in found.parts
    }
    return Settings(
        max_length=config.max_length,
        max_new_tokens={name: limit for name, limit in limits.items() if limit is not None},
        stop=tuple(config.generation.stop),
        bootstrap_samples=config.bootstrap_samples,
        seed=config.seed,
    )


def _candidate(found: Measured) -> CandidateSummary:
    candidate = found.inputs.candidate
    written, references = found.parts.get(Task.GENERATION), [row.completion for row in found.inputs.rows]
    return CandidateSummary(
        name=candidate.name,
        model=candidate.model.provenance,
        tokenizer=candidate.model.tokenizer_provenance,
        adapter_digest=adapter_digest(candidate),
        parameters=found.facts.parameters,
        load_seconds=found.facts.load_seconds,
        seconds={task: part.seconds for task, part in found.parts.items()},
        reused={str(task): origin for task, origin in found.reused.items()},
        speed=speed(found.parts),
        outputs=None if written is None else summarise(written.outputs, references),
    )


def _environment(device: torch.device, chosen: NumberFormat, threads: int) -> Environment:
    versions: Mapping[str, str] = {name: _version(name) for name in (DISTRIBUTION, "torch", "transformers", "peft")}
    return Environment(
        python=platform.python_version(),
        finetuning_operator=versions[DISTRIBUTION],
        torch=versions["torch"],
        transformers=versions["transformers"],
        peft=versions["peft"],
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or device.type,
        dtype=chosen.dtype,
        dtype_reason=chosen.why,
        threads=threads,
    )


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "unknown"

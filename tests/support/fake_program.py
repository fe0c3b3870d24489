"""A stand-in for the programs, for tests of what starts them: it keeps the process contract and does no work.

``FAKE_PROGRAM_FAULTS`` names a JSON file that maps a RunConfig kind to the faults of its first attempts, in order:
``user``, ``environment``, ``silent``, ``kill``, ``hang`` (until SIGTERM, then interrupted) or ``deaf`` (until SIGKILL).
"""

import json
import os
import signal
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path

from finetuning_api.metrics import EvaluationRow, GateResult, Metric, Verdict
from finetuning_api.reasons import Reason
from finetuning_api.runconfig import (
    ArtifactResult,
    ContractModel,
    ConvertConfig,
    DatasetCounts,
    EvaluateConfig,
    EvaluateResult,
    MeasureResult,
    PreflightResult,
    RelocateConfig,
    RunConfig,
    TrainConfig,
    TrainResult,
    VerifyConfig,
)
from finetuning_workload.artifact import Manifest, write_manifest
from finetuning_workload.errors import EnvironmentFault, Interrupted, UserError
from finetuning_workload.program import Context, run_program

FAULTS_ENV = "FAKE_PROGRAM_FAULTS"
_COUNTS = DatasetCounts(rows=10, train_rows=8, test_rows=2, columns=("message", "triage"))


def work(config: RunConfig, context: Context) -> ContractModel:
    """Misbehave as this attempt was told to, then pretend."""
    reporter = context.reporter(f"fake {config.kind}")
    reporter.update(0.5, metrics={"step": 1, "total_steps": 2, "loss": 1.5})
    _misbehave(_next_fault(config.kind), context)
    reporter.update(1.0)
    reporter.close()
    return _result(config)


def _next_fault(kind: str) -> str:
    path = os.environ.get(FAULTS_ENV)
    if not path:
        return ""
    faults = json.loads(Path(path).read_text())
    fault = faults[kind].pop(0) if faults.get(kind) else ""
    Path(path).write_text(json.dumps(faults))
    return str(fault)


def _misbehave(fault: str, context: Context) -> None:
    match fault:
        case "user":
            raise UserError(Reason.COLUMN_NOT_FOUND, "a fake column is missing", "Use a real program.")
        case "environment":
            raise EnvironmentFault(Reason.NETWORK_UNREACHABLE, "a fake network is down", "Wait.")
        case "silent":
            os._exit(1)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "hang" | "deaf":
            _hang(context, deaf=fault == "deaf")


def _hang(context: Context, *, deaf: bool) -> None:
    tick = threading.Event()
    while deaf or not context.stop:
        tick.wait(0.01)
    message = "a fake checkpoint was saved"
    raise Interrupted(message)


def _result(config: RunConfig) -> ContractModel:
    match config:
        case RelocateConfig() | ConvertConfig():
            return _artifact(Path(config.destination)).result(transferred_bytes=7)
        case VerifyConfig():
            return ArtifactResult(digest=f"sha256:{'1' * 64}", size_bytes=7, files=1, format="files")
        case TrainConfig():
            manifest = _artifact(Path(config.output_path))
            return TrainResult(digest=manifest.digest, size_bytes=manifest.total_bytes, steps=2, dataset=_COUNTS)
        case EvaluateConfig():
            return _evaluation(config)
        case _ if config.kind == "measure":
            return MeasureResult(size_bytes=7, files=1)
    return PreflightResult(dataset=_COUNTS, parameters=10, trainable_parameters=1, total_steps=2, memory_bytes=10)


def _artifact(folder: Path) -> Manifest:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "content").write_text("fake\n")
    return write_manifest(
        folder,
        source="fake",
        resolved_revision=None,
        content_format="files",
        created_at=datetime.now(UTC),
        tool="fake",
    )


def _evaluation(config: EvaluateConfig) -> EvaluateResult:
    row = EvaluationRow(metric=Metric.EXACT_MATCH, base=0.1, tuned=0.9, delta=0.8, ci_low=0.7, ci_high=0.9, samples=2)
    gates = tuple(GateResult(metric=rule.metric, verdict=Verdict.PASS, message="fake") for rule in config.gate)
    return EvaluateResult(rows=(row,), gates=gates, verdict=Verdict.PASS if gates else None)


if __name__ == "__main__":
    sys.exit(run_program(work))

"""The output folder: results, samples and reports as one artifact, complete when its manifest is there."""

import shutil
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from finetuning_api.runconfig import MANIFEST_NAME
from finetuning_evaluator.candidates import Measured
from finetuning_evaluator.observations import ObservedByMetric
from finetuning_evaluator.parts import Parts
from finetuning_evaluator.report_html import render_html
from finetuning_evaluator.report_markdown import render_markdown
from finetuning_evaluator.results import Results
from finetuning_evaluator.samples import SAMPLES_FOLDER, sample_files
from finetuning_workload.artifact import damaged_files, read_manifest, write_manifest
from finetuning_workload.errors import UserError
from finetuning_workload.files import write_atomically

RESULTS_NAME = "results.json"
MARKDOWN_NAME = "report.md"
HTML_NAME = "report.html"
_TOOL = "finetuning_evaluator"


def find_finished(folder: Path, *, config_digest: str) -> Results | None:
    """Return the results of an intact, finished evaluation of the same configuration, else None."""
    try:
        manifest = read_manifest(folder)
        if manifest is None or damaged_files(folder, manifest):
            return None
        results = Results.model_validate_json((folder / RESULTS_NAME).read_bytes())
    except (UserError, ValidationError, OSError):
        # Damaged: it is made again.
        return None
    return results if results.config_digest == config_digest else None


def write(
    folder: Path,
    results: Results,
    *,
    measured: Sequence[Measured],
    observed: ObservedByMetric,
    parts: Parts,
) -> None:
    """Write everything, and the manifest last."""
    (folder / MANIFEST_NAME).unlink(missing_ok=True)
    # An earlier evaluation in this folder may have had other tasks.
    shutil.rmtree(folder / SAMPLES_FOLDER, ignore_errors=True)
    files = sample_files(measured, observed)
    write_atomically(folder / RESULTS_NAME, results.model_dump_json(by_alias=True, indent=2))
    for file in files:
        lines = (f"{sample.model_dump_json(by_alias=True)}\n" for sample in file.samples)
        write_atomically(folder / file.path, "".join(lines))
    write_atomically(folder / MARKDOWN_NAME, render_markdown(results, files))
    write_atomically(folder / HTML_NAME, render_html(results, files))
    parts.clear()
    write_manifest(
        folder,
        source=f"evaluation://{results.job.kind}/{results.job.name}",
        resolved_revision=results.config_digest,
        content_format="evaluation",
        created_at=datetime.now(UTC),
        tool=_TOOL,
    )

"""`finetune prompt`: one text, answered by the base model and by the tuned one."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from finetuning_api.base import Resource
from finetuning_api.finetuningjob import AdapterArtifact, FineTuningJob, MethodType
from finetuning_api.reasons import ExitCode, Reason
from finetuning_api.runconfig import (
    RUN_CONFIG_ENV,
    TERMINATION_LOG_ENV,
    CandidateInput,
    JobIdentity,
    LastWords,
    ModelInput,
    PromptConfig,
    Provenance,
)
from finetuning_cli.commands.inspect import find_job
from finetuning_cli.local.credentials import offline
from finetuning_cli.local.layout import Layout
from finetuning_cli.local.steps import PROGRAMS, last_log_line, read_last_words
from finetuning_cli.local.store import Key
from finetuning_cli.local.trust import require_adapter
from finetuning_operator.reconcile.needs import Role, job_needs, model_input
from finetuning_operator.reconcile.plan import ImageRole, Observed, Settings
from finetuning_workload.errors import UserError


class Answer(BaseModel):
    """One line that the program writes."""

    candidate: str
    text: str
    tokens: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked, and how it is rendered."""

    text: str
    chat: bool = False
    max_new_tokens: int = 128


def ask(name: str, text: str, *, state: Path, chat: bool, raw: bool, max_new_tokens: int) -> None:
    """Print the answers of base and tuned model side by side. Raises UserError when there is no tuned model."""
    layout = Layout.at(state)
    job, objects = find_job(name, layout)
    if not isinstance(job, FineTuningJob):
        raise UserError(Reason.INVALID_SPEC, f"{name} is an {job.kind}: it has no adapter", "Name a FineTuningJob.")
    question = render(job, text, chat=chat, raw=raw, max_new_tokens=max_new_tokens)
    config = prompt_config(job, question, objects=objects, layout=layout)
    console = Console()
    answers = _answers(config)
    if not console.is_terminal:
        for answer in answers:
            console.print(f"{answer.candidate}: {answer.text}", markup=False, soft_wrap=True, highlight=False)
        return
    with console.status("loads the model ..."):
        collected = list(answers)
    table = Table(*(escape(answer.candidate) for answer in collected), show_lines=False, expand=True)
    table.add_row(*(escape(answer.text) for answer in collected))
    table.add_row(*(f"[dim]{answer.tokens} tokens in {answer.seconds:.1f} s[/dim]" for answer in collected))
    console.print(table)


def render(job: FineTuningJob, text: str, *, chat: bool, raw: bool, max_new_tokens: int) -> Question:
    """Return the question as the job's rows were rendered: through its template, or as a chat.

    A text is put into the template when that has exactly one column. Raises UserError when it has several.
    """
    dataset = job.spec.dataset
    if raw or chat:
        return Question(text, chat=chat, max_new_tokens=max_new_tokens)
    if dataset.messages is not None:
        return Question(text, chat=True, max_new_tokens=max_new_tokens)
    if dataset.prompt is None:
        return Question(text, max_new_tokens=max_new_tokens)
    from finetuning_workload.data.templates import parse_template

    template = parse_template(dataset.prompt, field="spec.dataset.prompt")
    columns = tuple(dict.fromkeys(template.columns))
    if len(columns) != 1:
        named = ", ".join(columns) or "none"
        message = f"the prompt template of {job.metadata.name} has not one column but: {named}"
        raise UserError(Reason.INVALID_SPEC, message, "Write the whole prompt yourself and add --raw.")
    return Question(template.render({columns[0]: text}), max_new_tokens=max_new_tokens)


def prompt_config(
    job: FineTuningJob, question: Question, *, objects: Mapping[Key, Resource], layout: Layout
) -> PromptConfig:
    """Return what the program is told. Raises UserError when the job has no result, or a damaged one."""
    name = job.metadata.name
    adapter = job.status.artifacts.adapter
    base = _base(job, objects, layout)
    if adapter is None or base is None:
        hint = f"See how far it is: finetune status {name}"
        raise UserError(Reason.WAITING, f"{name} has no tuned model yet ({job.status.phase.value})", hint)
    require_adapter(layout, job)
    candidates = (CandidateInput(name="base", model=base), _tuned(job, base, adapter, layout=layout))
    return PromptConfig(
        job=JobIdentity(kind=job.kind, name=name, namespace=job.metadata.namespace, uid=job.metadata.uid),
        candidates=candidates,
        prompt=question.text,
        chat=question.chat,
        max_new_tokens=question.max_new_tokens,
        stop=tuple(job.spec.evaluation.generation.stop),
    )


def _base(job: FineTuningJob, objects: Mapping[Key, Resource], layout: Layout) -> ModelInput | None:
    needs = {wanted.role: wanted for wanted in job_needs(job.spec)}
    return model_input(
        needs[Role.MODEL],
        needs.get(Role.TOKENIZER),
        observed=Observed(resources=dict(objects)),
        settings=Settings(volumes_root=str(layout.volumes), local=True),
    )


def _tuned(job: FineTuningJob, base: ModelInput, adapter: AdapterArtifact, *, layout: Layout) -> CandidateInput:
    folder = str(layout.volumes / adapter.claim_name / adapter.path)
    if job.spec.method.type is not MethodType.FULL:
        return CandidateInput(name="tuned", model=base, adapter_path=folder, adapter_digest=adapter.digest)
    provenance = Provenance(source=f"pvc://{adapter.claim_name}/{adapter.path}", digest=adapter.digest)
    model = base.model_copy(update={"path": folder, "provenance": provenance})
    return CandidateInput(name="tuned", model=model)


def _answers(config: PromptConfig) -> Iterator[Answer]:
    """Run the program and yield what it answers, each as soon as it is there. Raises UserError when it fails."""
    with tempfile.TemporaryDirectory(prefix="finetune-prompt-") as scratch:
        folder = Path(scratch)
        (folder / "config.json").write_text(config.to_json(), encoding="utf-8")
        environment = offline(os.environ) | {
            RUN_CONFIG_ENV: str(folder / "config.json"),
            TERMINATION_LOG_ENV: str(folder / "last-words.json"),
        }
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", PROGRAMS[ImageRole.SERVER]],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                encoding="utf-8",
            )
        with process:
            for line in process.stdout or ():
                yield Answer.model_validate_json(line)
        if process.returncode != ExitCode.DONE:
            raise _failure(read_last_words(folder / "last-words.json"), folder / "log")


def _failure(words: LastWords | None, log: Path) -> UserError:
    if words is None:
        return UserError(Reason.INTERNAL, f"the program ended without a word: {last_log_line(log)}", "")
    return UserError(words.reason, words.message, words.hint)

"""`finetune prompt`: one text, answered by the base model and by the tuned one."""

from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, TypeAdapter

from finetuning_api.finetuningjob import FineTuningJob
from finetuning_api.reasons import ExitCode, Reason
from finetuning_api.runconfig import PromptConfig
from finetuning_cli.answers import Answer, Piece, show
from finetuning_cli.commands.inspect import find_job
from finetuning_cli.local.layout import Layout
from finetuning_cli.local.models import candidates_of, identity
from finetuning_cli.local.program import running
from finetuning_client.models import Question
from finetuning_workload.errors import UserError


class _PieceLine(BaseModel):
    """A line that the program writes while it answers."""

    candidate: str
    piece: str

    def event(self) -> Piece:
        return Piece(self.candidate, self.piece)


class _AnswerLine(BaseModel):
    """A line that the program writes once an answer is whole."""

    candidate: str
    text: str
    tokens: int
    seconds: float

    def event(self) -> Answer:
        return Answer(self.candidate, self.text, self.tokens, self.seconds)


_LINE: TypeAdapter[_AnswerLine | _PieceLine] = TypeAdapter(_AnswerLine | _PieceLine)


def ask(  # one keyword for each option of the command
    name: str, text: str, *, state: Path, chat: bool, raw: bool, max_new_tokens: int, as_json: bool
) -> None:
    """Print the answers of base and tuned model. Raises UserError when there is no tuned model."""
    layout = Layout.at(state)
    job, objects = find_job(name, layout)
    if not isinstance(job, FineTuningJob):
        raise UserError(Reason.INVALID_SPEC, f"{name} is an {job.kind}: it has no adapter", "Name a FineTuningJob.")
    question = render(job, text, chat=chat, raw=raw, max_new_tokens=max_new_tokens)
    config = PromptConfig(
        job=identity(job),
        candidates=candidates_of(job, objects=objects, layout=layout),
        prompt=question.text,
        chat=question.chat,
        max_new_tokens=question.max_new_tokens,
        stop=tuple(job.spec.evaluation.generation.stop),
    )
    show(_answers(config), as_json=as_json)


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


def _answers(config: PromptConfig) -> Iterator[Piece | Answer]:
    """Run the program and yield what it answers, as it comes. Raises UserError when it fails."""
    with running(config) as program:
        for line in program.process.stdout or ():
            yield _LINE.validate_json(line).event()
        if program.process.wait() != ExitCode.DONE:
            raise program.failure()

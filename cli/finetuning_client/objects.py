"""The objects of one kind, typed."""

from collections.abc import Iterator, Mapping
from typing import Any, Generic, TypeVar, cast

from finetuning_api.base import Resource
from finetuning_api.validation import (
    InvalidResourceError,
    cluster_only_errors,
    parse_stored,
    validate_manifest,
)
from finetuning_client.api import Api, Kind, Object, kind_of
from finetuning_client.errors import Cause, ClusterError, NotFoundError, RefusedError, WaitFailedError
from finetuning_client.following import Deadline, first, follow
from finetuning_client.logs import LogChoice, log_lines
from finetuning_client.progress import Progress
from finetuning_client.results import Results
from finetuning_client.waiting import Goal, Standing, has_ended, outcome_text, standing

R = TypeVar("R", bound=Resource)


class Objects(Generic[R]):
    """The objects of one kind in one namespace."""

    def __init__(self, api: Api, resource: type[R]) -> None:
        self._api = api
        self._kind: Kind = kind_of(resource)

    def create(self, resource: R) -> R:
        """Create an object. Raises RefusedError with every mistake, and ConflictError where it exists."""
        return self._typed(self._api.create(self._kind, checked_content(resource)))

    def apply(self, resource: R, *, force: bool = False, dry_run: bool = False) -> R:
        """Create or change an object; ``force`` takes over fields that others set. Raises RefusedError."""
        name = resource.metadata.name
        content = checked_content(resource)
        return self._typed(self._api.apply(self._kind, content, name=name, force=force, dry_run=dry_run))

    def get(self, name: str) -> R:
        """Return an object. Raises NotFoundError."""
        return self._typed(self._api.get(self._kind, name))

    def list(self, *, labels: str = "") -> "list[R]":
        """Return all objects, or those that a label selector chooses."""
        return [self._typed(item) for item in self._api.list(self._kind, labels=labels)["items"]]

    def delete(self, name: str) -> None:
        """Delete an object: what it runs is stopped, what it owns is removed. Raises NotFoundError."""
        self._api.delete(self._kind, name)

    def suspend(self, name: str) -> R:
        """Stop a job after a checkpoint; `resume` lets it go on there."""
        return self._set_suspend(name, value=True)

    def resume(self, name: str) -> R:
        """Let a suspended job go on."""
        return self._set_suspend(name, value=False)

    def watch(self, name: str, *, timeout: float | None = None) -> Iterator[R]:
        """Yield an object now and after every change until it has ended. Raises WaitTimeoutError, NotFoundError."""
        for item in follow(self._api, self._kind, name, deadline=Deadline(timeout)):
            yield self._typed(item)
            if has_ended(item):
                return

    def wait(self, name: str, timeout: float | None = None, *, goal: Goal | None = None) -> R:
        """Return an object as soon as it is done, or as a goal is reached; without ``timeout`` however long it takes.

        Raises WaitFailedError with the reason when that can never be, and WaitTimeoutError.
        """
        wanted = goal or Goal()
        items = follow(self._api, self._kind, name, deadline=Deadline(timeout))
        try:
            item = first(items, lambda each: standing(each, wanted) is not Standing.OPEN)
        except NotFoundError as error:
            raise WaitFailedError(error.message) from error
        if standing(item, wanted) is Standing.NEVER:
            raise WaitFailedError(f"{self._kind.name} {name}: {outcome_text(item, wanted)}")
        return self._typed(item)

    def progress(self, name: str, *, timeout: float | None = None) -> Progress:
        """Return the progress of a job: iterate over it, call its ``show()``, or let a notebook display it."""
        return Progress(self.watch(name, timeout=timeout))

    def logs(
        self, name: str, stage: str | None = None, *, follow: bool = False, tail: int | None = None, worker: int = 0
    ) -> Iterator[str]:
        """Yield the lines of a stage's log; without a stage, of the latest one. Raises NotFoundError, ClusterError."""
        choice = LogChoice(stage, worker=worker, follow=follow, tail=tail)
        return log_lines(self._api, self.get(name), choice)

    def results(self, name: str) -> Results:
        """Return the results of a job. Raises ClusterError while there are none."""
        return Results.of(self.get(name))

    def _set_suspend(self, name: str, *, value: bool) -> R:
        if self._kind.name not in {"FineTuningJob", "EvaluationJob"}:
            raise ClusterError(f"a {self._kind.name} cannot be suspended", "Delete it, or set its replicas to 0.")
        return self._typed(self._api.merge(self._kind, name, {"spec": {"suspend": value}}))

    def _typed(self, item: Object) -> R:
        return cast("R", typed(item))


def typed(item: Object) -> Resource:
    """Return an object as its type. Raises ClusterError for one that this version cannot read."""
    try:
        return parse_stored(item)
    except InvalidResourceError as error:
        name = (item.get("metadata") or {}).get("name", "")
        message = f"{item.get('kind')} {name} cannot be read by this version: {error.errors[0]}"
        raise ClusterError(message, "It was written by a newer operator: upgrade finetuning-operator here.") from error


def checked_content(resource: Resource) -> Mapping[str, Any]:
    """Return what is sent of an object: what its author set. Raises RefusedError with every mistake in it."""
    content = sent_content(resource)
    errors = [*validate_manifest(content), *cluster_only_errors(resource)]
    if errors:
        causes = tuple(Cause(error.path, str(error).removeprefix(f"{error.path}: ")) for error in errors)
        lines = "\n".join(f"  {error}" for error in errors)
        raise RefusedError(f"{resource.kind} {resource.metadata.name} is not valid:\n{lines}", causes=causes)
    return content


def sent_content(resource: Resource) -> Mapping[str, Any]:
    """Return an object with the fields that were set: a default that nobody chose stays the cluster's to fill in."""
    fields = resource.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_unset=True)
    metadata = fields.get("metadata", {})
    kept = {key: metadata[key] for key in ("name", "labels", "annotations") if metadata.get(key)}
    head = {"apiVersion": resource.api_version, "kind": resource.kind, "metadata": kept}
    return head | {"spec": fields.get("spec", {})}

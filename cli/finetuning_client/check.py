"""Tell whether an installation works.

Asks for each kind of the API, then creates a suspended job, which runs nothing, and waits until the operator has
answered it. With --job it also waits until that job is complete and served, and prints what each of its models answers.
Goes where kubectl would go; in a pod, to the pod's own cluster and namespace.
"""

import argparse
import secrets
import sys
from collections.abc import Sequence
from contextlib import suppress
from http.client import HTTPConnection
from urllib.parse import urlsplit

from finetuning_api.base import ConditionType, ObjectMeta
from finetuning_api.evaluationjob import EvaluationJob
from finetuning_api.finetuningjob import FineTuningJob, FineTuningJobSpec
from finetuning_api.inferenceserver import InferenceServer
from finetuning_api.relocation import Relocation
from finetuning_client.client import Client
from finetuning_client.errors import ClusterError, NotFoundError, WaitTimeoutError
from finetuning_client.models import ModelServer, Question
from finetuning_client.waiting import Goal

_ANSWER_SECONDS = 300.0


def parser() -> argparse.ArgumentParser:
    """Return what reads the command line."""
    made = argparse.ArgumentParser(
        prog="python -m finetuning_client.check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--namespace", help="where jobs are looked for and made")
    made.add_argument("--timeout", type=float, default=60.0, help="seconds to wait for each answer (default: 60)")
    made.add_argument("--job", help="a job that is to be complete and served")
    made.add_argument("--prompt", default="Hello", help="what its models are asked (default: Hello)")
    return made


def main(arguments: Sequence[str] = ()) -> int:
    """Print what works; return 0 when everything does, else 1 with the reason on standard error."""
    chosen = parser().parse_args(arguments)
    try:
        client = Client(namespace=chosen.namespace)
        _say(kinds_served(client))
        _say(operator_answers(client, timeout=chosen.timeout))
        if chosen.job is not None:
            for line in job_answers(client, chosen.job, prompt=chosen.prompt, timeout=chosen.timeout):
                _say(line)
    except ClusterError as error:
        sys.stderr.write("\n".join(filter(None, (f"error: {error.message}", error.hint))) + "\n")
        return 1
    return 0


def kinds_served(client: Client) -> str:
    """Return how many objects of each kind there are. Raises KindsMissingError where the API server knows one not."""
    counts = {
        FineTuningJob: len(client.jobs.list()),
        EvaluationJob: len(client.evaluations.list()),
        Relocation: len(client.relocations.list()),
        InferenceServer: len(client.servers.list()),
    }
    told = ", ".join(f"{count} {kind.__name__}" for kind, count in counts.items())
    return f"the cluster serves every kind; {client.connection.place} holds {told}"


def operator_answers(client: Client, *, timeout: float) -> str:
    """Let the operator answer a suspended job, and remove it again. Raises ClusterError where nobody answers."""
    name = f"installation-check-{secrets.token_hex(4)}"
    spec = {"model": {"source": "hf://example/model", "revision": "main"}, "dataset": {"source": "configmap://example"}}
    job = FineTuningJob(
        metadata=ObjectMeta(name=name), spec=FineTuningJobSpec.model_validate({**spec, "suspend": True})
    )
    client.jobs.create(job)
    try:
        client.jobs.wait(name, timeout, goal=Goal(ConditionType.SUSPENDED))
    except WaitTimeoutError as error:
        message = f"the operator did not answer within {timeout:g} s; it may not run, or not serve this namespace"
        raise ClusterError(message, "See its log: kubectl logs -n NAMESPACE deployment/NAME") from error
    finally:
        with suppress(NotFoundError):
            client.jobs.delete(name)
    return "the operator answers: it accepted a suspended job"


def job_answers(client: Client, name: str, *, prompt: str, timeout: float) -> Sequence[str]:
    """Return what each model of a job answers once the job is complete. Raises ClusterError when it fails."""
    client.jobs.wait(name, timeout)
    server = client.servers.get(name)
    address = urlsplit(server.status.url)
    http = HTTPConnection(address.hostname or "", address.port, timeout=_ANSWER_SECONDS)
    models = ModelServer(http, f"the server of {name}", hint=f"See why: kubectl describe infs {name}")
    answers = ((model, "".join(models.answer(model, Question(prompt)))) for model in models.models())
    return [f"{model} answers: {answer.strip()}" for model, answer in answers]


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

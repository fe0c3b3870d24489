"""What kubectl shows of a job in each of its stages, as a user meets it: docs/kubectl.md has the same, word for word.

`make stages` writes the page anew.
"""

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.support import pods
from tests.support.cluster import Cluster, Object
from tests.support.lifecycle import DATASET, is_running, job, stage, stage_message, wait_for_events
from tests.support.operator_process import OperatorProcess, free_port
from tests.support.processes import REPOSITORY

from finetuning_api.reasons import Reason
from finetuning_api.runconfig import LastWords

RunOperator = Callable[..., OperatorProcess]
PAGE = REPOSITORY / "docs" / "kubectl.md"
WRITES_PAGE = "FINETUNING_WRITE_PAGE"
"""Set by `make stages`: the page is written, not compared."""
WHOLE_OUTPUT = "FINETUNING_WHOLE_OUTPUT"
"""A file that gets everything that kubectl printed, with the specs that the page leaves out."""
_BLOCK = re.compile(r"^```\n(?P<shown>\$ kubectl .*?)^```$", re.MULTILINE | re.DOTALL)
_SPEC = re.compile(r"^Spec:\n.*?(?=^Status:)", re.MULTILINE | re.DOTALL)
_PASSING = re.compile(r"^ +Warning +VolumeUnavailable .*\n", re.MULTILINE)
"""Told of a pod that was looked at before its new claim was bound, which depends on the cluster's speed."""
_DIFFERS = (
    (re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+(?:Z|\+00:00)"), "TIME"),
    (re.compile(r"(?<=[ (])(?:(?:\d+[dhms])+|<invalid>)(?=[ )\n])"), "AGE"),
    (re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}"), "UID"),
    (re.compile(r"(?<=Resource Version:) +\d+"), " VERSION"),
    (re.compile(r" +"), " "),
    (re.compile(r" $", re.MULTILINE), ""),
)
"""What two runs do not have in common, and the width of columns that comes of it."""
SHOWN_NAMESPACE = "team-training"
"""As wide as the namespace of a test, so that columns keep their places."""
GATE = [{"metric": "exact-match", "minDelta": 0.2}]
WRONG_COLUMN = LastWords(
    reason=Reason.COLUMN_NOT_FOUND,
    message="spec.dataset.prompt: the data has no column for {mesage}; its columns are message, triage",
    hint="Did you mean 'message'?",
)


@dataclass(slots=True)
class Screen:
    """A user's kubectl in one namespace, and everything that it showed."""

    cluster: Cluster
    namespace: str
    shown: list[str] = field(default_factory=list)

    def kubectl(self, *arguments: str) -> str:
        """Run kubectl and return what it printed."""
        printed = self.cluster.kubectl("--namespace", self.namespace, *arguments).stdout
        text = "".join(f"{line.rstrip()}\n" for line in printed.rstrip().splitlines())
        self.shown.append(f"$ kubectl {' '.join(arguments)}\n{text}".replace(self.namespace, SHOWN_NAMESPACE))
        return text

    def show(self, kinds: str, name: str = "demo") -> dict[str, str]:
        """Show objects and describe a job; return the job's row by its headings."""
        rows = self.kubectl("get", kinds)
        self.kubectl("describe", "ftj", name)
        return row(rows, name)


def row(table: str, name: str) -> dict[str, str]:
    """Return the cells of a named line of ``kubectl get`` that are not empty; cells stand below their headings."""
    lines = table.splitlines()
    line = next(line for line in lines if re.match(rf"(?:finetuningjob\.finetuning\.dev/)?{name} ", line))
    head = lines[0]
    starts = [match.start() for match in re.finditer(r"\S+", head)]
    cells = {head[a:b].strip(): line[a:b].strip() for a, b in zip(starts, [*starts[1:], None], strict=True)}
    return {heading: cell for heading, cell in cells.items() if cell and heading not in {"NAME", "AGE"}}


@dataclass(frozen=True, slots=True)
class Story:
    """A job whose pods do nothing but what is played."""

    cluster: Cluster
    namespace: str

    def run(self, step: str, *, count: int = 1) -> list[Object]:
        """Let the pods of a step run."""
        waiting = pods.wait_for_pods(self.cluster, self.namespace, count=count, labels=f"finetuning.dev/step={step}")
        return [pods.run(self.cluster, pod) for pod in waiting]

    def end(self, running: list[Object]) -> None:
        """Let programs end well."""
        for pod in running:
            pods.succeed(self.cluster, pod)

    def report(self, pod: Object, percent: int, *, seconds: int, **metrics: object) -> None:
        """Report as the program of a pod does."""
        told = [{"name": name, "value": str(value)} for name, value in metrics.items()]
        status = {"progressPercentage": percent, "estimatedRemainingSeconds": seconds, "metrics": told}
        pods.report(self.cluster, pod, json.dumps({"trainerStatus": status}).encode()).raise_for_status()

    def wait(self, where: Callable[[Object], bool], name: str = "demo") -> Object:
        """Return a job once it is as it should be."""
        return self.cluster.wait_for_object("FineTuningJob", name, self.namespace, where=where)

    def wait_for_percent(self, step: str, percent: int) -> None:
        """Wait until the job says how far its stage is."""
        self.wait(lambda found: is_running(step)(found) and stage(found, step)["percent"] == percent)


@pytest.fixture
def story(cluster: Cluster, hold_namespace: str, run_operator: RunOperator) -> Story:
    """An operator with a progress endpoint, for a namespace in which pods wait until everything is played."""
    port = str(free_port())
    env = {
        "FINETUNING_NAMESPACES": hold_namespace,
        "FINETUNING_STATUS_DELAY": "0.2",
        "FINETUNING_PROGRESS_URL": f"https://localhost:{port}",
        "FINETUNING_PROGRESS_PORT": port,
    }
    run_operator(env=env).wait_ready()
    return Story(cluster, hold_namespace)


def test_each_stage_is_shown_as_the_page_says(story: Story) -> None:
    cluster, namespace = story.cluster, story.namespace
    screen = Screen(cluster, namespace)
    cluster.create(job(namespace, evaluation={"metrics": ["exact-match"], "gate": GATE}, serving={}))

    story.end(story.run("measure", count=2))
    bringing = story.run("relocate", count=2)
    for pod in bringing:
        story.report(pod, 40, seconds=90)
    story.wait_for_percent("relocate", 40)
    assert screen.show("ftj,reloc") == {"PHASE": "Relocating", "STAGE": "relocate", "PROGRESS(%)": "40"}
    story.end(bringing)

    checking = story.run("preflight")
    story.wait(is_running("preflight"))
    assert screen.show("ftj") == {"PHASE": "Preparing", "STAGE": "preflight"}
    story.end(checking)

    training = story.run("train")
    story.report(training[0], 42, seconds=126, step=41, total_steps=98, loss=0.5, tokens_per_second=510)
    story.wait_for_percent("train", 42)
    assert screen.show("ftj") == {"PHASE": "Training", "STAGE": "train", "PROGRESS(%)": "42", "ETA(S)": "126"}
    story.end(training)

    evaluating = story.run("evaluate")
    story.report(evaluating[0], 60, seconds=30)
    story.wait_for_percent("evaluate", 60)
    assert screen.show("ftj,evj") == {
        "PHASE": "Evaluating",
        "STAGE": "evaluate",
        "PROGRESS(%)": "60",
        "ETA(S)": "30",
    }
    story.end(evaluating)

    starting = pods.wait_for_pod(cluster, namespace, labels="finetuning.dev/kind=InferenceServer")
    story.wait(lambda found: stage_message(found, "serve") == "0 of 1 replicas answer")
    results = {"METRIC": "exact-match", "BASE": "0.1", "TUNED": "0.9", "VERDICT": "Pass"}
    assert screen.show("ftj,infs") == {"PHASE": "Serving", "REASON": "Pending", **results}
    pods.run(cluster, starting)

    screen.kubectl("wait", "--for=condition=Complete", "ftj/demo", "--timeout=60s")
    wait_for_events(cluster, namespace, ("Normal", "Succeeded"))
    assert screen.show("ftj,infs") == {"PHASE": "Complete", **results}

    cluster.create(job(namespace, "wrong", dataset=DATASET | {"prompt": "{mesage}"}))
    for pod in story.run("preflight"):
        pods.finish(cluster, pod, exit_code=1, message=WRONG_COLUMN)
    screen.kubectl("wait", "--for=condition=Failed", "ftj/wrong", "--timeout=60s")
    wait_for_events(cluster, namespace, ("Warning", "ColumnNotFound"), name="wrong")
    assert screen.show("ftj", "wrong") == {"PHASE": "Failed", "REASON": "ColumnNotFound"}

    screen.kubectl("explain", "ftj.spec.evaluation.gate")
    screen.kubectl("explain", "ftj.spec.training.maxLength")
    compare_or_write(screen)


def compare_or_write(screen: Screen) -> None:
    """Compare everything that was shown with the page, or write the page anew."""
    if whole := os.environ.get(WHOLE_OUTPUT):
        Path(whole).write_text("\n".join(screen.shown))
    shown = [_PASSING.sub("", _SPEC.sub("Spec:\n  ...\n", each)) for each in screen.shown]
    page = PAGE.read_text()
    blocks = [match["shown"] for match in _BLOCK.finditer(page)]
    assert [command(each) for each in blocks] == [command(each) for each in shown]
    if os.environ.get(WRITES_PAGE):
        waiting = iter(shown)
        PAGE.write_text(_BLOCK.sub(lambda _: f"```\n{next(waiting)}```", page))
        return
    for block, each in zip(blocks, shown, strict=True):
        assert same(block) == same(each), "`make stages` writes docs/kubectl.md anew"


def command(block: str) -> str:
    """Return the command of a block."""
    return block.partition("\n")[0]


def same(text: str) -> str:
    """Return a text without what differs from run to run."""
    for pattern, word in _DIFFERS:
        text = pattern.sub(word, text)
    return text

"""The examples of docs/server.md work word for word."""

import json
import re
import subprocess
from collections.abc import Iterator

import pytest
from tests.support.processes import REPOSITORY
from tests.support.scripted_engine import ScriptedEngine
from tests.support.served import Served, served

PAGE = (REPOSITORY / "docs" / "server.md").read_text()
EXAMPLES = re.findall(r"```sh\n(curl .*?)```", PAGE, flags=re.DOTALL)


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served(ScriptedEngine()) as running:
        yield running


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_each_example_is_answered(server: Served, example: str) -> None:
    command = example.replace("localhost:8000", f"127.0.0.1:{server.port}")

    said = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True, timeout=60).stdout

    if '"stream": true' in example:
        assert said.endswith("data: [DONE]\n\n")
    else:
        assert set(json.loads(said)) & {"data", "choices", "response"}


def test_the_page_has_an_example_of_each_way_to_ask() -> None:
    asked = {path for example in EXAMPLES for path in re.findall(r"localhost:8000(\S+)", example)}

    assert asked == {"/v1/models", "/v1/chat/completions", "/v1/completions", "/prompt"}


def test_every_metric_of_the_page_is_told(server: Served) -> None:
    with server.http() as client:
        told = client.get("/metrics").text
    table = PAGE.partition("## Metrics")[2].partition("## ")[0]
    names = re.findall(
        r"`([a-z_]+)`", "\n".join(line.split("|")[1] for line in table.splitlines() if line.count("|") > 2)
    )

    assert len(names) == 10
    assert [name for name in names if f"# TYPE finetuning_server_{name.removesuffix('_total')}" not in told] == []

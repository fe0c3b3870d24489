"""What the operator reads and scales by is what the server's metrics are called."""

from finetuning_operator.cluster.idle import Use, read_use
from finetuning_operator.cluster.render.companions import REQUESTS_IN_FLIGHT
from finetuning_server.engine.base import Load
from finetuning_server.http.metrics import Meters


def test_the_operator_reads_the_use_of_a_server_from_its_metrics() -> None:
    meters = Meters(lambda: Load(running=1, waiting=0, cached_tokens=0))
    before = read_use(meters.exposition().decode())
    with meters.in_flight():
        meters.count_prompt("base", 7)
        meters.count_prompt("triage", 5)
        meters.count("/healthz", model=None, status=200, seconds=0.1)
        during = read_use(meters.exposition().decode())

    assert (before, during) == (Use(0, 0), Use(in_flight=1, prompt_tokens=12))


def test_an_autoscaler_follows_a_metric_that_servers_have() -> None:
    meters = Meters(lambda: Load(running=0, waiting=0, cached_tokens=0))
    assert f"\n{REQUESTS_IN_FLIGHT} 0.0\n" in meters.exposition().decode()

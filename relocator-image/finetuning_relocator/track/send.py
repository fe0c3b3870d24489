"""Writing a job to its run."""

import logging
import math
from collections.abc import Sequence
from datetime import datetime
from functools import partial
from typing import Final

from finetuning_api.runconfig import TrackConfig, TrackResult
from finetuning_relocator.credentials import Credentials
from finetuning_relocator.fetch import ask
from finetuning_relocator.track.course import files_of, parameters_of, points_of, tags_of
from finetuning_relocator.track.server import Point, Run, TrackingServer
from finetuning_relocator.watch import Watch
from finetuning_workload.program import Context

_LOG = logging.getLogger(__name__)
UID_TAG: Final = "finetuning.dev/uid"
"""By this the run of a job is found again."""


def track(config: TrackConfig, context: Context) -> TrackResult:
    """Write a job to the run that has its uid, which is made where it is not there.

    Whoever calls it again adds what is lacking, and nothing twice. Raises ProgramError for everything that can go
    wrong.
    """
    # A server that is silent is noticed by the client's time-outs; here only a request to stop counts.
    watch = Watch(context.stop, math.inf)
    credentials = Credentials(environment=context.environment, secret=config.secret)
    with TrackingServer(config.uri, credentials) as server:
        experiment = ask(partial(server.experiment, config.experiment), watch=watch, what=config.uri)
        run = ask(partial(_write, server, experiment, config), watch=watch, what=config.uri)
        lacking = _store(server, run, config, watch=watch)
        end = partial(
            server.end_run,
            run,
            name=config.run_name,
            status="FAILED" if config.failed else "FINISHED",
            ended=_milliseconds(config.finished_at),
        )
        ask(end, watch=watch, what=config.uri)
    _LOG.info("%s is run %s of experiment %s on %s", config.job.name, run.id, experiment, config.uri)
    return TrackResult(experiment_id=experiment, run_id=run.id, lacking=lacking)


def _write(server: TrackingServer, experiment: str, config: TrackConfig) -> Run:
    """Make the run where there is none, and add what it lacks: after a fault it is looked at what has arrived."""
    tags = tags_of(config) | {UID_TAG: config.job.uid}
    run = server.find_run(experiment, tag=UID_TAG, value=config.job.uid)
    if run is None:
        run = server.create_run(
            experiment,
            name=config.run_name,
            started=_milliseconds(config.started_at),
            tags={UID_TAG: config.job.uid},
        )
    server.log_texts(run, parameters=parameters_of(config), tags=tags)
    server.log_points(run, _lacking(server, run, points_of(config)))
    return run


def _lacking(server: TrackingServer, run: Run, points: Sequence[Point]) -> tuple[Point, ...]:
    """Return the points that a run does not have. Some stores keep a point twice that is sent twice."""
    known = {key: server.steps_of(run, key) for key in sorted({point.key for point in points} & run.metrics)}
    return tuple(point for point in points if point.step not in known.get(point.key, ()))


def _store(server: TrackingServer, run: Run, config: TrackConfig, *, watch: Watch) -> str:
    """Store the files of a job; return why that cannot be, empty where it can."""
    files, folder = tuple(files_of(config)), server.artifact_folder(run)
    if folder is None:
        why = f"no file is stored: the server keeps files at {run.artifact_uri}, which it does not take itself"
        return f"{why} (start it with --serve-artifacts)" if files else ""
    for path, file in files:
        ask(partial(server.put, folder, path, file), watch=watch, what=config.uri)
    return ""


def _milliseconds(time: datetime) -> int:
    return round(time.timestamp() * 1000)

"""Bringing one artifact to its destination."""

import logging
import math
from abc import abstractmethod
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Protocol

from finetuning_api.reasons import Reason
from finetuning_api.runconfig import PushConfig, PushResult
from finetuning_api.sources import Scheme
from finetuning_relocator.credentials import Credentials
from finetuning_relocator.fetch import ask
from finetuning_relocator.meter import Meter
from finetuning_relocator.sources.base import Request
from finetuning_relocator.watch import Watch
from finetuning_workload.artifact import Manifest, require_intact
from finetuning_workload.errors import UserError
from finetuning_workload.program import Context

_LOG = logging.getLogger(__name__)
_MODULES = {Scheme.OCI: ("registry", "RegistryDestination"), Scheme.HF: ("hub", "HubDestination")}


class Destination(Protocol):
    """Where an artifact goes. Whoever pushes the same once more changes nothing there."""

    @abstractmethod
    def push(self, folder: Path, manifest: Manifest, on_bytes: Callable[[int], None]) -> str:
        """Bring the files of an artifact; return the revision that pins them. ``on_bytes`` is told what was sent."""


def push(config: PushConfig, context: Context) -> PushResult:
    """Push an artifact that is whole and the one that was asked for; its own manifest stays, as each place has another.

    Raises ProgramError for everything that can go wrong.
    """
    folder = Path(config.path)
    manifest = require_intact(folder, digest=config.digest)
    destination, what = _open(config, context), config.destination.parsed.canonical
    reporter = context.reporter(f"push to {what}")
    try:
        meter = Meter(reporter)
        meter.expect(total_bytes=manifest.total_bytes, total_files=len(manifest.files))
        # What stalls is ended by the client, which knows whether a byte was taken; here only a request to stop counts.
        watch = Watch(context.stop, math.inf)
        revision = ask(lambda: destination.push(folder, manifest, meter.arrived), watch=watch, what=what)
        reporter.update(1.0, note=f"{len(manifest.files)} files")
    finally:
        reporter.close()
    _LOG.info("pushed %s to %s as %s", config.path, what, revision)
    return PushResult(revision=revision, transferred_bytes=meter.transferred)


def _open(config: PushConfig, context: Context) -> Destination:
    ref = config.destination
    if ref.parsed.scheme not in _MODULES:
        message = f"nothing can be pushed to {ref.parsed.canonical}"
        raise UserError(Reason.INVALID_SPEC, message, "Use oci://registry/repository:tag or hf://owner/name.")
    module, name = _MODULES[ref.parsed.scheme]
    request = Request(
        ref=ref,
        credentials=Credentials.of(ref, context.environment),
        environment=context.environment,
        revision=ref.revision,
        mount=None,
        stall_seconds=config.stall_seconds,
    )
    opened: Destination = getattr(import_module(f"finetuning_relocator.push.{module}"), name)(request)
    return opened

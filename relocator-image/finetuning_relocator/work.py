"""What the relocator does for each kind of RunConfig."""

import os

from finetuning_api.reasons import Reason
from finetuning_api.runconfig import (
    ArtifactResult,
    MeasureConfig,
    MeasureResult,
    NotifyConfig,
    NotifyResult,
    PushConfig,
    PushResult,
    RelocateConfig,
    RunConfig,
    TrackConfig,
    TrackResult,
    VerifyConfig,
)
from finetuning_relocator.notify.send import notify
from finetuning_relocator.push.send import push
from finetuning_relocator.relocate import measure, relocate
from finetuning_relocator.track.send import track
from finetuning_relocator.trust import trust_extra_authorities
from finetuning_relocator.verify import verify
from finetuning_workload.errors import EnvironmentFault
from finetuning_workload.program import Context


def work(
    config: RunConfig, context: Context
) -> MeasureResult | ArtifactResult | PushResult | NotifyResult | TrackResult:
    """Measure, relocate or verify a source, push an artifact, send a notification, or track a job."""
    trust_extra_authorities(os.environ)
    match config:
        case MeasureConfig():
            return measure(config, context)
        case RelocateConfig():
            return relocate(config, context)
        case VerifyConfig():
            return verify(config, context)
        case PushConfig():
            return push(config, context)
        case NotifyConfig():
            return notify(config, context)
        case TrackConfig():
            return track(config, context)
        case _:
            message = f"the relocator was given a RunConfig of kind {config.kind!r}"
            raise EnvironmentFault(Reason.INTERNAL, message, "Operator and image must be of one release.")

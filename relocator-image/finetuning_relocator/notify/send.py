"""Sending one notification."""

import logging

from finetuning_api.notification import NotificationType
from finetuning_api.runconfig import NotifyConfig, NotifyResult
from finetuning_relocator.notify.keys import Keys
from finetuning_relocator.notify.mail import mail
from finetuning_relocator.notify.web import post
from finetuning_workload.program import Context

_LOG = logging.getLogger(__name__)


def notify(config: NotifyConfig, context: Context) -> NotifyResult:
    """Tell one receiver of one event. Whoever calls it again sends it again, with the same id.

    Raises UserError where trying again cannot help, EnvironmentFault where it may.
    """
    keys = Keys.of(config, context.environment)
    send = mail if config.type is NotificationType.EMAIL else post
    host = send(config, keys)
    _LOG.info("%s of %s %s was told to %s", config.event.value, config.job.kind, config.job.name, host)
    return NotifyResult(host=host)

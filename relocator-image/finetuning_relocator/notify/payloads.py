"""What is sent over HTTP, in the form that each kind of receiver reads."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC
from typing import Any, Final

from finetuning_api.base import GROUP, VERSION
from finetuning_api.notification import NotificationType
from finetuning_api.runconfig import NotifyConfig
from finetuning_relocator.notify.text import plain, sentences, table, title

_JSON: Final = "application/json"
_HEADER_CHARACTERS: Final = 150
_SECTION_CHARACTERS: Final = 3000
"""Slack refuses blocks with longer texts as a whole."""


@dataclass(frozen=True, slots=True)
class Payload:
    """A body and what it is."""

    content_type: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


def payload(config: NotifyConfig) -> Payload:
    """Return what a receiver of HTTP gets."""
    match config.type:
        case NotificationType.SLACK:
            return Payload(_JSON, _encode(slack(config)))
        case NotificationType.CLOUDEVENTS:
            return Payload("application/cloudevents+json; charset=utf-8", _encode(cloudevent(config)))
    return Payload(_JSON, _encode(facts(config) | {"title": title(config), "text": plain(config)}))


def facts(config: NotifyConfig) -> dict[str, Any]:
    """Return what a notification tells to programs, in the names of the API."""
    told = config.model_dump(mode="json", by_alias=True, exclude_none=True, exclude={"kind", "type", "secret"})
    return told | {"time": _time(config)}


def cloudevent(config: NotifyConfig) -> dict[str, Any]:
    """Return an event in the structured mode of CloudEvents 1.0."""
    job = config.job
    return {
        "specversion": "1.0",
        "id": config.id,
        "source": f"/apis/{GROUP}/{VERSION}/namespaces/{job.namespace}/{job.kind.lower()}s/{job.name}",
        "type": f"dev.finetuning.{job.kind.lower()}.{config.event.value.lower()}",
        "subject": job.name,
        "time": _time(config),
        "datacontenttype": _JSON,
        "data": facts(config),
    }


def slack(config: NotifyConfig) -> dict[str, Any]:
    """Return a message of blocks; ``text`` is what notifications and old clients show."""
    numbers = table(config.evaluation)
    sections = [_mrkdwn(_escaped(text)) for text in sentences(config)]
    if numbers:
        room = _SECTION_CHARACTERS - len("``````\n\n")
        sections.append(_mrkdwn(f"```\n{_clipped(_escaped(numbers), room)}\n```"))
    header = {"type": "header", "text": {"type": "plain_text", "text": _clipped(title(config), _HEADER_CHARACTERS)}}
    context = {"type": "context", "elements": [{"type": "mrkdwn", "text": _time(config)}]}
    return {"text": _escaped(title(config)), "blocks": [header, *sections, context]}


def _mrkdwn(text: str) -> dict[str, Any]:
    return {"type": "section", "text": {"type": "mrkdwn", "text": _clipped(text, _SECTION_CHARACTERS)}}


def _escaped(text: str) -> str:
    """Return a text in which nothing is a link, a mention or a markup of Slack's."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _clipped(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 4]} ..."


def _time(config: NotifyConfig) -> str:
    return config.time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _encode(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()

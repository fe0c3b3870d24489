"""Logs as JSON, one line each, with the object that they are about."""

import json
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import TextIO

from finetuning_operator.cluster.keys import ObjectKey

_LONGEST_ERROR = 8192
"""In characters; the end of a traceback says what happened."""

_OBJECT: ContextVar[ObjectKey | None] = ContextVar("object", default=None)

_SECRETS = (
    (re.compile(r"(?i)\b(bearer|basic)\s+[a-z0-9._~+/=-]{8,}"), r"\1 ***"),
    (re.compile(r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*"), "***"),
    (re.compile(r"\bhf_[A-Za-z0-9]{8,}"), "***"),
    (re.compile(r"://[^/\s@]+@"), "://***@"),
)
"""Shapes of credentials. The operator holds none but its own token; this is for what libraries and servers quote."""


@contextmanager
def about(key: ObjectKey) -> Iterator[None]:
    """Let every log line of this context, and of tasks started in it, name the object."""
    token = _OBJECT.set(key)
    try:
        yield
    finally:
        _OBJECT.reset(token)


class JsonFormatter(logging.Formatter):
    """Formats a record as one line: time, level, logger, message, and the object and the error where there are any."""

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, UTC)
        line = {
            "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": without_secrets(record.getMessage()),
            **_object_of(record),
        }
        if record.exc_info and record.exc_info[0] is not None:
            line["error"] = without_secrets(self.formatException(record.exc_info))[-_LONGEST_ERROR:]
        return json.dumps(line, ensure_ascii=False)


def configure(level: str, stream: TextIO | None = None) -> None:
    """Make every logger of the process, kopf's included, write JSON to ``stream``, by default to standard error."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    # Every probe and every progress report would be a line.
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)


def without_secrets(text: str) -> str:
    """Return the text with everything that has the shape of a credential replaced."""
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


def _object_of(record: logging.LogRecord) -> dict[str, str]:
    reference = getattr(record, "k8s_ref", None)
    if isinstance(reference, Mapping):
        # kopf's own lines about an object carry it themselves.
        fields = ("kind", "namespace", "name")
        return {field: str(reference[field]) for field in fields if reference.get(field)}
    key = _OBJECT.get()
    return {} if key is None else key._asdict()

"""Structured logs on stderr: one line each, logfmt or JSON."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime


class Logfmt(logging.Formatter):
    """time=2026-01-02T03:04:05.678Z level=info logger=shoal.api msg="..." """

    def format(self, record: logging.LogRecord) -> str:
        fields = fields_of(record, self)
        return " ".join(f"{name}={_quoted(value)}" for name, value in fields.items())


FORMATS = ("logfmt", "json")


class Json(logging.Formatter):
    """The same fields as one JSON object."""

    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(fields_of(record, self), ensure_ascii=False)


def fields_of(record: logging.LogRecord, formatter: logging.Formatter) -> dict[str, str]:
    time = datetime.fromtimestamp(record.created, UTC)
    fields = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S.") + f"{int(record.msecs):03d}Z",
        "level": record.levelname.lower(),
        "logger": record.name,
        "msg": record.getMessage(),
    }
    if record.exc_info:
        fields["trace"] = formatter.formatException(record.exc_info)
    return fields


def _quoted(value: str) -> str:
    plain = value and all(c.isalnum() or c in "-_.:/+" for c in value)
    return value if plain else json.dumps(value, ensure_ascii=False)


def set_up(kind: str, level: int | str = logging.INFO) -> None:
    """Everything of this process goes to stderr, as "logfmt" or "json"."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Json() if kind == "json" else Logfmt())
    logging.basicConfig(level=level, handlers=[handler], force=True)

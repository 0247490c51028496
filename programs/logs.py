"""The log of a program: one JSON object a line on standard error, of libraries too."""

import json
import logging
import sys

import structlog


def set_up_logs(level: str = "info") -> None:
    """Send structlog and what libraries log to standard error."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Line())
    logging.basicConfig(handlers=[handler], level=logging.WARNING)


class _Line(logging.Formatter):
    """One line for what a library logs, whatever bytes somebody made it quote."""

    def format(self, record: logging.LogRecord) -> str:
        line = {"event": f"{record.name}: {record.getMessage()}", "level": record.levelname.lower()}
        if record.exc_info is not None:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)

"""How TorchServe's frontend writes its log, and what its workers print: Log4j's configuration, and JSON of the rest.

Java libraries that do not use Log4j (gRPC, by java.util.logging) and the JVM itself print text where they like.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import BinaryIO
from xml.sax.saxutils import quoteattr

from lookalike import logs

# What the handler logs as JSON (`logs.JsonFormatter`) passes as it is; of whatever else is written JSON is made.
_READY = r'\{"time": .*\}'
_MADE = (
    """{"time": "%d{yyyy-MM-dd'T'HH:mm:ss.SSSXXX}{UTC}", "level": "%p", "logger": "torchserve.%c", """
    """"message": "%enc{%m}{JSON}", "traceback": "%enc{%ex}{JSON}"}%n"""
)


def _appender(name: str, pattern: str, inside: str = "", always_write_exceptions: str = "true") -> str:
    layout = f'<PatternLayout alwaysWriteExceptions="{always_write_exceptions}" pattern={quoteattr(pattern)}/>'
    return f'<Console name="{name}" target="SYSTEM_OUT">{inside}{layout}</Console>'


def _filter(accept: str, otherwise: str) -> str:
    return f'<RegexFilter regex={quoteattr(_READY)} onMatch="{accept}" onMismatch="{otherwise}"/>'


def _configuration(appenders: Mapping[str, str]) -> str:
    # TorchServe itself writes twenty lines a request below WARN. MODEL_LOG is what workers print, tracebacks among it.
    references = "".join(f'<AppenderRef ref="{name}"/>' for name in appenders)
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<Configuration status="error">
  <Appenders>{"".join(appenders.values())}</Appenders>
  <Loggers>
    <Logger name="MODEL_LOG" level="info"/>
    <Root level="warn">{references}</Root>
  </Loggers>
</Configuration>
"""


LOG_CONFIGS: Mapping[logs.Format, str] = {
    "text": _configuration({"OUT": _appender("OUT", "%d{ISO8601} %-5p %t %c - %m%n")}),
    "json": _configuration(
        {
            "READY": _appender("READY", "%m%n", _filter("ACCEPT", "DENY")),
            "MADE": _appender("MADE", _MADE, _filter("DENY", "ACCEPT"), "false"),
        }
    ),
}


def as_json(lines: Iterable[str], out: BinaryIO) -> None:
    """Copy lines that are JSON already and make JSON of the others, until they end.

    `out` is unbuffered. What cannot be written, on a full disk, is dropped: else whoever prints it would wait for ever.
    """
    formatter = logs.JsonFormatter()
    for line in lines:
        text = line.rstrip("\r\n")
        if not text:
            continue
        if not re.fullmatch(_READY, text):
            about = {"name": "torchserve.output", "levelname": "WARNING", "msg": text}
            text = formatter.format(logging.makeLogRecord(about))
        with suppress(OSError):
            out.write(f"{text}\n".encode())

"""Log lines of the command: time, level, message on stderr; what others wrote cannot forge a line or a colour."""

from __future__ import annotations

import logging
import sys

from pgqueue.cli.output import printable
from pgqueue.config import mask_password

CHATTY = ("alembic", "asyncio", "psycopg", "sqlalchemy")


def configure(level: str) -> None:
    """Send log lines of `level` and above to stderr; libraries only warn, unless it is DEBUG."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.DEBUG if level == "DEBUG" else logging.WARNING)
    # Set here and not inherited: whoever asks whether pgqueue debugs gets the answer of this command line.
    logging.getLogger("pgqueue").setLevel(level)


class LineFormatter(logging.Formatter):
    """One line per message, passwords masked, control characters escaped; a traceback's lines are indented."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """The line."""
        return printable(mask_password(super().formatMessage(record)))

    def formatException(self, ei: object) -> str:  # noqa: N802 - logging's name
        """The traceback."""
        lines = super().formatException(ei).splitlines()  # type: ignore[arg-type]
        return "\n".join(f"  {printable(mask_password(line))}" for line in lines)

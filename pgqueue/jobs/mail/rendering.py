"""Renders a mail's subject, text and HTML from Jinja2 templates, the package's or those of a directory.

Owns where templates are looked for and how they are checked. Promises that what a payload holds is escaped in HTML
and cannot make a second line of a subject. A mail `<name>` has two templates: `<name>.txt`, whose first line is
`Subject: ...`, and `<name>.html`. Sends nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from importlib import import_module
from pathlib import Path
from typing import Any

from pgqueue.errors import ConfigurationError
from pgqueue.jobs.mail.models import MAILS, MailInput

_SUBJECT = "Subject:"
# Not strftime's: that one speaks the process's language, the templates speak English.
_MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
_WHOLE_CURRENCIES = frozenset(["BIF", "CLP", "DJF", "GNF", "ISK", "JPY", "KMF", "KRW", "PYG", "RWF", "UGX", "VND"])


@dataclass(frozen=True, slots=True)
class Rendered:
    """What a mail says."""

    subject: str
    text: str
    html: str


class MailRenderer:
    """Renders the nine mails.

    Args:
        directory: templates in it take the place of the package's, file by file; None: the package's alone.

    Raises:
        ConfigurationError: Jinja2 is not installed, there is no such directory, or a template is broken.
    """

    def __init__(self, directory: str | Path | None = None) -> None:
        jinja2 = require("jinja2")
        loaders = [jinja2.PackageLoader("pgqueue.jobs.mail")]
        if directory is not None:
            if not Path(directory).is_dir():
                raise ConfigurationError(f"mail templates: there is no directory {str(directory)!r}")
            loaders.insert(0, jinja2.FileSystemLoader(directory))
        self._environment = jinja2.Environment(
            loader=jinja2.ChoiceLoader(loaders),
            autoescape=jinja2.select_autoescape(["html"], default=False),
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._environment.filters |= {"money": money, "moment": moment}
        self._error = jinja2.TemplateError
        for mail in MAILS:
            for kind in ("txt", "html"):
                self._check(f"{mail.name}.{kind}")

    def render(self, name: str, mail: MailInput) -> Rendered:
        """Render the mail `name` with the fields of `mail`.

        Raises:
            ConfigurationError: a template names what the mail does not have, or has no subject.
        """
        values = {field: getattr(mail, field) for field in type(mail).model_fields}
        first, _, text = self._render(f"{name}.txt", values).lstrip().partition("\n")
        if not first.startswith(_SUBJECT) or not (subject := " ".join(first.removeprefix(_SUBJECT).split())):
            raise ConfigurationError(f"mail template {name}.txt: its first line must be `{_SUBJECT} ...`")
        return Rendered(subject, text.strip() + "\n", self._render(f"{name}.html", values))

    def _check(self, template: str) -> None:
        try:
            self._environment.get_template(template)
        except self._error as error:
            raise self._broken(template, error) from None

    def _render(self, template: str, values: dict[str, Any]) -> str:
        try:
            return str(self._environment.get_template(template).render(values))
        except self._error as error:
            raise self._broken(template, error) from None

    @staticmethod
    def _broken(template: str, error: Any) -> ConfigurationError:
        where = getattr(error, "filename", None) or template
        line = getattr(error, "lineno", None)
        return ConfigurationError(f"mail template {where}{f', line {line}' if line else ''}: {error.message}")


def require(name: str) -> Any:
    """The module `name` of the extra `[mail]`.

    Raises:
        ConfigurationError: it is not installed; names the extra.
    """
    try:
        return import_module(name)
    except ModuleNotFoundError:
        raise ConfigurationError(
            f"mail needs the package {name}, which is not installed: pip install 'pgqueue[mail]'"
        ) from None


def money(amount: Decimal, currency: str) -> str:
    """An amount as people write it: `1,249.50 EUR`, `1,200 JPY`."""
    least = 0 if currency in _WHOLE_CURRENCIES else 2
    places = max(least, -int(amount.normalize().as_tuple().exponent))
    return f"{amount:,.{places}f} {currency}"


def moment(time: datetime) -> str:
    """A time as people read it, in UTC: `25 November 2026, 19:54 UTC`."""
    utc = time.astimezone(UTC)
    return f"{utc.day} {_MONTHS[utc.month - 1]} {utc.year}, {utc:%H:%M} UTC"

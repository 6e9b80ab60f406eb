"""A `Job` of which only what is always needed is set; the rest is made when somebody asks for it.

Equal to a `Job` of the same values, copied and pickled as one. For where jobs are made by the thousand: an attribute
that is never read is not decoded, and a list that nobody looks at is no work for the garbage collector.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import TYPE_CHECKING, Any, ClassVar

from pgqueue.job import Job

_values = attrgetter(*(field.name for field in dataclasses.fields(Job)))


class LazyJob(Job):
    """A subclass says how each attribute that it leaves unset is made of `row`, and makes jobs by `__new__`."""

    __slots__ = ("row",)
    row: Any
    LATER: ClassVar[Mapping[str, Callable[[Any], Any]]]

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """An attribute that was not set yet."""
            make = self.LATER.get(name)
            if make is None:
                raise AttributeError(f"a job has no attribute {name!r}")
            value = make(self.row)
            setattr(self, name, value)
            return value

    def __eq__(self, other: object) -> bool:
        return bool(_values(self) == _values(other)) if isinstance(other, Job) else NotImplemented

    __hash__ = None  # type: ignore[assignment] # as a Job's

    def __repr__(self) -> str:
        return repr(Job(*_values(self)))

    def __reduce__(self) -> tuple[Any, ...]:
        return Job, _values(self)

"""The check-up behind `pgqueue doctor`: what is wrong with this queue and its database, and what to do about it.

Read only. `examination` runs the checks, `finding` says what one is; the judgements are pure functions of what the
database answered, by noun: `leadership`, `work`, `schedules`, `application`, `tables`,
`server`.
"""

from __future__ import annotations

from pgqueue.doctor.examination import APPLICATION_CHECKS, CHECKS, chosen, examine
from pgqueue.doctor.finding import Check, Finding, Verdict

__all__ = ["APPLICATION_CHECKS", "CHECKS", "Check", "Finding", "Verdict", "chosen", "examine"]

"""A registry whose jobs succeed, fail, or fail for now, for tests of jobs that wait for others."""

from __future__ import annotations

from pgqueue import Registry


class Family(Registry):
    """`ok` completes, `bad` fails, `flaky` fails until `recovered`; each run is recorded in `runs`."""

    def __init__(self):
        super().__init__()
        self.runs = []
        self.recovered = False
        self.register("ok", self._ok)
        self.register("bad", self._bad)
        self.register("flaky", self._flaky)

    def _ok(self, job, _context):
        self.runs.append(job.id)
        return job.payload

    def _bad(self, job, _context):
        self.runs.append(job.id)
        raise ValueError("no")

    def _flaky(self, job, _context):
        self.runs.append(job.id)
        if not self.recovered:
            raise ValueError("not yet")

"""Metrics for Prometheus: gauges read from the database at each scrape, counters from the events of this process.

`collector` asks `Inspector`; `counters` subscribes to an `EventBus`; `endpoint` puts both into one exposition, for the
HTTP API's `/metrics` or a port of its own. Needs the extra `metrics` (or `web`). docs/http_api.md lists the names.
"""

from __future__ import annotations

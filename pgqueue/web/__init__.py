"""The HTTP API: FastAPI over Queue's operations and `Inspector`, served by uvicorn in a thread of its own.

`app` composes, `server` serves; `gate` stands before every request (host, origin, rate, token, body), `access` knows
tokens, `problems` what an error becomes; a file of routes per noun. Holds no SQL and no rules of the queue. The
dashboard comes on top of it. Needs the extra `web`; nothing here is imported unless the server is wanted.
"""

from __future__ import annotations

"""The leader's side: election, dispatch, promotion, reaping, pruning, and the `Dispatcher` made of them."""

from __future__ import annotations

from pgqueue.dispatcher.dispatcher import Dispatcher

__all__ = ["Dispatcher"]

"""Handlers that log in three ways, wherever they run."""

from __future__ import annotations

import logging

import structlog

from pgqueue import Registry

registry = Registry()


def _say(context, where):
    context.logger.info("hello from %s", where)
    logging.getLogger("somebody.else").info("hello from %s", where)
    structlog.get_logger("modern").info(f"hello from {where}")


@registry.executor("say_inline")
async def say_inline(_job, context):
    _say(context, "async")


@registry.executor("say_thread")
def say_thread(_job, context):
    _say(context, "sync")


@registry.executor("say_process", isolation="process")
def say_process(_job, context):
    _say(context, "isolated")


@registry.executor("say_badly")
async def say_badly(_job, _context):
    raise ValueError("an error of its own")

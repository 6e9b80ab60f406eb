"""Logistics: a small application that finds dedicated lanes in its shipments, on pgqueue's public API alone.

Its tables live in a schema of its own, `logistics`, with migrations and a version table of its own.
"""

"""Errors of the benchmark itself; em's own come from em.errors."""


class BenchmarkError(Exception):
    """A benchmark that cannot run or whose two sides do not do the same; the message names the fix."""

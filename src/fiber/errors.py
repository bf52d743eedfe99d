"""Errors that name what is wrong and where: known ones end a run in one line, faults of samples are counted."""

from __future__ import annotations

import re


class SampleFault(Exception):
    """One sample is unusable. `reason` is a short countable word ("undecodable_image"), the message says the rest."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple:
        return type(self), (self.reason, str(self))


class KnownError(Exception):
    """An error whose message says all that a user needs: one line, no traceback, exit status 2."""


class DataFaultError(KnownError, RuntimeError):
    """More samples are unusable than the run tolerates; names the last shard and key."""


class ShardError(KnownError, ValueError):
    """A set of shards is missing, out of date or misused; one line that says what to do."""


class ConfigError(KnownError, ValueError):
    """A configuration that cannot run; the message is one line naming the key and the fix."""


class WeightsError(KnownError, ValueError):
    """Weights that do not fit a model, or a file that is not what it is taken for; the message says what to do."""


class NonFiniteError(KnownError, RuntimeError):
    """The loss or the gradient is not finite more often than tolerated; names the step and the samples."""


def without_secrets(text: str) -> str:
    """A text whose URLs have lost user, password and query (signatures), for messages and what is published."""
    return re.sub(r"(\w://)[^\s/@]*@", r"\1", re.sub(r"(\w://[^\s?'\"]*)\?[^\s'\"]*", r"\1", text))

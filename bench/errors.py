"""The errors a user can mend; the command line prints their message and exits with their code."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input. The message names the input, what was expected and what to do, in one paragraph."""

    exit_code = 2


class ConfigError(UserError):
    """A plan, a recipe or an option that cannot be used."""


class DataError(UserError):
    """A data set that is missing, damaged or inconsistent."""


class ModelError(UserError):
    """A network whose outputs cannot be trained or evaluated."""


class RecordError(UserError):
    """A record or a results folder that cannot be read or written."""


class UnwritableError(RecordError):
    """A record, or a results folder, that cannot be written: what was computed is not kept."""

    exit_code = 17


class DeviceError(UserError):
    """A device that this machine does not have."""


def did_you_mean(word: str, possible: Iterable[str]) -> str:
    """`` Did you mean 'x'?``, or nothing where no possible word is near."""
    near = difflib.get_close_matches(word, list(possible), n=2, cutoff=0.6)
    return f" Did you mean {' or '.join(map(repr, near))}?" if near else ""

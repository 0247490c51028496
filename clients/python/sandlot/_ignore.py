"""What a `.dockerignore` leaves out of a context: by the node's own rules, so that what is not sent is not missed."""

from sandlot import _globs
from sandlot.errors import ConfigurationError


class PatternError(ConfigurationError):
    """It is no pattern."""


class Ignore(_globs.Ignore):
    """The rules of a `.dockerignore`: the last one that fits decides. PatternError."""

    def __init__(self, text: str) -> None:
        try:
            super().__init__(text)
        except _globs.PatternError as error:
            raise PatternError(str(error)) from None

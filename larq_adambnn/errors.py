"""What a user gave that cannot work, as one line."""

__all__ = ["SplitError", "UsageError"]


class UsageError(Exception):
    """What the user gave cannot work; the message is one line that says what would."""


class SplitError(UsageError):
    """The data set is there, but not the split that was asked for."""

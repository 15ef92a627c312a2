"""Errors meant for the user, which `configs.console.command` shows as one line; all others are faults of ours."""


class UserError(ValueError):
    """A mistake of the user's, or of what lies on his disk, in one line: where, expected, got, what to do."""


class DiskError(UserError, OSError):
    """A disk that refuses, in words of our own."""

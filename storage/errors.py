"""Errors that are a person's to mend: the command line prints their message alone."""


class UserError(Exception):
    """The message says what is wrong and what to do about it."""


class TrainingError(UserError, ValueError):
    """A model cannot be trained, or not go on so."""

"""Errors that are a person's to mend: the command line prints their message alone."""


class UserError(Exception):
    """The message says what is wrong and what to do about it."""


class DamagedError(UserError, ValueError):
    """A file of ours is not as it was written, or gone."""

    def __init__(self, uri: str, reason: object = ""):
        said = str(reason).strip().splitlines()
        self.uri, self.reason = uri, said[0][:160] if said else ""
        super().__init__(
            f"{uri}: damaged or gone{f' ({self.reason})' if said else ''}; `tokenmill verify CONFIG --repair` sets it "
            "aside, and the next run does again what hangs on it"
        )

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (self.uri, self.reason)


class TrainingError(UserError, ValueError):
    """A model cannot be trained, or not go on so."""

"""The error of both trainings, of tokenizers and of language models."""


class TrainingError(ValueError):
    """A model cannot be trained, or not go on so; the message says what to change."""

"""docs/reference.md is what the config's models and the command line are."""

from pathlib import Path

from tokenmill.pipeline.commands.reference import reference

PAGE = Path(__file__).resolve().parents[3] / "docs" / "reference.md"


def test_the_reference_is_not_stale():
    assert PAGE.read_text() == reference(), "python -m tokenmill.pipeline.commands.reference > docs/reference.md"

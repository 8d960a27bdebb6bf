"""The API reference is what the docstrings say, and says all that is public."""

import glprune
from tests.api import PAGE, page


def test_the_reference_is_up_to_date():
    assert PAGE.read_text(encoding="utf-8") == page(), "run python -m tests.api"


def test_every_public_name_is_described():
    text = page()
    for name in glprune.__all__:
        _, _, entry = text.partition(f"glprune.{name}`\n")
        described = entry.split("\n### ")[0]
        assert len(described.strip()) > 20 or name == "__version__", name

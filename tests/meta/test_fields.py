"""docs/fields.md says which fields are supported today."""

from __future__ import annotations

from tests.meta.fields import PAGE, page


def test_the_page_of_fields_is_fresh() -> None:
    assert PAGE.read_text() == page(), "run `make proto`"

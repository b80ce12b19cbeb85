"""Text that others chose, on a terminal."""

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from mlimages.core import escape_unprintable


@given(st.text(st.characters(categories=("Cc", "Cf", "Cs", "Zl", "Zp", "Lu", "Nd"))))
def test_nothing_that_moves_the_cursor_or_turns_the_text_is_left(text: str) -> None:
    left = {unicodedata.category(char) for char in escape_unprintable(text) if char not in "\u200c\u200d"}
    assert not left & {"Cc", "Cf", "Cs", "Zl", "Zp"}


@given(st.text(st.characters(categories=("L", "M", "N", "P", "S", "Zs"))))
def test_text_that_people_read_stays_as_it_is(text: str) -> None:
    assert escape_unprintable(text) == text

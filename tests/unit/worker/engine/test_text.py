"""Text's promises: nothing certain is held back, nothing of a stop text is sent, nothing is lost."""

from hypothesis import given
from hypothesis import strategies as st

from paceline_worker.engine.text import Piece, StopTexts


def feed(text: str, *stop: str) -> tuple[list[str], str]:
    stops = StopTexts(stop)
    pieces = []
    for letter in text:
        piece = stops.add(letter)
        pieces.append(piece.text)
        if piece.stop_text:
            return pieces, piece.stop_text
    return [*pieces, stops.release()], ""


def test_text_without_stop_goes_out_at_once() -> None:
    assert feed("abc") == (["a", "b", "c", ""], "")


def test_stop_text_is_not_part_of_the_answer() -> None:
    pieces, stop = feed("one END two", "END")
    assert "".join(pieces) == "one " and stop == "END"


def test_possible_stop_is_held_until_it_is_certain() -> None:
    pieces, stop = feed("aEND", "ENDE")
    assert pieces == ["a", "", "", "", "END"] and stop == ""


def test_earliest_of_several_stops_wins() -> None:
    pieces, stop = feed("xaby", "b", "ab")
    assert "".join(pieces) == "x" and stop == "ab"


def test_empty_stop_texts_are_ignored() -> None:
    assert StopTexts([""]).add("a") == Piece("a")


@given(st.text("ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_answer_is_the_text_before_the_first_stop(text: str, stops: list[str]) -> None:
    pieces, stop = feed(text, *stops)
    answer = "".join(pieces)
    assert text.startswith(answer + stop)
    assert not any(other in answer for other in stops)
    if not stop:
        assert answer == text

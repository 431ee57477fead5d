"""Who is held out, and in which order pairs come."""

from collections.abc import Iterator

import numpy as np

from tokenmill.training.captioner.pairs import Example, is_held_out, loaded, order


def test_a_medium_never_changes_sides():
    ids = [f"{number:032x}" for number in range(4000)]
    small = {each for each in ids if is_held_out(each, 0.05)}
    assert 130 < len(small) < 270
    assert small < {each for each in ids if is_held_out(each, 0.2)}
    assert is_held_out(ids[0], 1.0 - 1e-12) and not is_held_out(ids[0], 1e-12)


def test_each_pass_shows_every_pair_once_in_an_order_of_its_own():
    first, second = ([n for step in range(at, at + 5) for n in order(20, 4, 7, step)] for at in (0, 5))
    assert sorted(first) == sorted(second) == list(range(20))
    assert first != second and first == [n for step in range(5) for n in order(20, 4, 7, step)]
    assert sorted(order(3, 6, 0, 0)) == [0, 0, 1, 1, 2, 2]  # a batch may be larger than the corpus
    assert order(20, 4, 8, 0) != order(20, 4, 7, 0)


class Some:
    """Pairs of which every third cannot be opened."""

    def __len__(self) -> int:
        return 9

    def texts(self) -> Iterator[str]:
        yield from ()

    def load(self, number: int) -> Example | None:
        return None if number % 3 == 2 else Example([np.zeros((2, 2, 3), np.uint8)], "?", str(number))


def test_what_cannot_be_opened_is_left_out_and_the_order_stays():
    found = list(loaded(Some(), iter([[4, 2, 0], [8, 5], [1]]), loaders=3))
    assert [[each.caption for each in batch] for batch in found] == [["4", "0"], [], ["1"]]

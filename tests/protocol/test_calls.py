"""Elements are taken on a thread of their own, in order, and no further than they are wanted."""

import threading

import pytest

from ddib_fed.protocol.calls import Late, ReadAhead


def test_the_elements_come_in_order():
    """All of them."""
    with ReadAhead(range(100), 3, "ahead") as ahead:
        assert list(ahead.each()) == list(range(100))


def test_the_next_element_is_made_while_one_is_used():
    """And not the one after the next."""
    made, second = [], threading.Event()

    def elements():
        for number in range(10):
            made.append(number)
            if number == 2:
                second.set()
            yield number

    with ReadAhead(elements(), 1, "ahead") as ahead:
        assert next(ahead.each()) == 0
        assert second.wait(10)
        assert made == [0, 1, 2]


def test_an_error_of_the_iterator_is_raised_after_the_elements_before_it():
    """Where the elements are taken."""

    def elements():
        yield 1
        raise KeyError("broken")

    with ReadAhead(elements(), 1, "ahead") as ahead:
        taken = ahead.each()
        assert next(taken) == 1
        with pytest.raises(KeyError, match="broken"):
            next(taken)


def test_an_element_that_does_not_come_in_time_ends_the_waiting():
    """The thread ends with the element."""
    come = threading.Event()

    def elements():
        come.wait(10)
        yield 1

    with ReadAhead(elements(), 1, "ahead") as ahead, pytest.raises(Late):
        next(ahead.each(lambda: 0.01))
    come.set()


def test_an_iterator_that_is_left_is_closed():
    """Its thread does not wait for a place in the queue."""
    closed = threading.Event()

    def elements():
        try:
            while True:
                yield 0
        finally:
            closed.set()

    with ReadAhead(elements(), 1, "ahead") as ahead:
        assert next(ahead.each()) == 0
    assert closed.wait(10)

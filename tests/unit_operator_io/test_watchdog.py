"""When is a watch dead? Listings and copies by resourceVersion, on a clock that the test turns."""

from __future__ import annotations

from kubedistill_operator.handlers.watchdog import Lag


def test_copies_that_are_as_new_as_the_listing_are_not_behind() -> None:
    lag = Lag()
    assert lag.update({"a": "5"}, {"a": "5"}, now=0) == set()
    assert lag.update({"a": "5"}, {"a": "7"}, now=60) == set()
    assert lag.seconds(60) == 0


def test_a_change_that_never_comes_is_missing_since_it_was_first_listed() -> None:
    lag = Lag()
    assert lag.update({"a": "5"}, {"a": "4"}, now=0) == {"a"}
    lag.update({"a": "5"}, {"a": "4"}, now=60)
    lag.update({"a": "9"}, {"a": "4"}, now=120)
    assert lag.seconds(200) == 200


def test_an_object_that_changes_all_the_time_is_not_mistaken_for_a_dead_watch() -> None:
    lag = Lag()
    for minute in range(10):
        lag.update({"a": str(10 * minute + 5)}, {"a": str(10 * minute)}, now=60.0 * minute)
    assert lag.seconds(60 * 9) == 0


def test_a_new_object_and_a_deleted_one_are_missed_alike() -> None:
    lag = Lag()
    assert lag.update({"new": "5"}, {"old": "4"}, now=0) == {"new", "old"}
    assert lag.seconds(10) == 10
    lag.update({"new": "5"}, {"new": "5"}, now=60)
    assert lag.seconds(60) == 0


def test_what_caught_up_is_forgotten() -> None:
    lag = Lag()
    lag.update({"a": "5"}, {}, now=0)
    lag.update({"a": "5"}, {"a": "5"}, now=60)
    lag.update({"a": "6"}, {"a": "5"}, now=120)
    assert lag.seconds(130) == 10

"""Weights that change over the epochs; the papers' own series are with the golden data of their methods."""

import pytest

from kdtable.recipes.schedule import CONSTANT, Schedule
from kdtable.typed import read


def test_a_constant_changes_nothing() -> None:
    assert {CONSTANT.at(epoch) for epoch in range(1, 300)} == {1.0}
    assert CONSTANT.identity() == {}


def test_steps_count_from_the_epoch_itself_and_off_lasts_through_the_epoch() -> None:
    schedule = Schedule(off_until=3, steps=(2, 5), factor=0.5)
    assert [schedule.at(epoch) for epoch in (1, 2, 3, 4, 5, 6)] == [0, 0, 0, 0.5, 0.25, 0.25]


def test_a_ramp_is_zero_in_the_first_epoch() -> None:
    assert [Schedule(ramp=4).at(epoch) for epoch in (1, 2, 3, 4, 5, 9)] == [0, 0.25, 0.5, 0.75, 1, 1]


@pytest.mark.parametrize(
    ("schedule", "scaled"),
    [
        (Schedule(off_until=60, steps=(60, 160), factor=0.9), Schedule(off_until=3, steps=(3, 8), factor=0.9)),
        (Schedule(ramp=20), Schedule(ramp=1)),
        (CONSTANT, CONSTANT),
    ],
)
def test_it_is_shortened_with_the_training(schedule: Schedule, scaled: Schedule) -> None:
    assert schedule.scaled(10, 200) == scaled
    assert read(Schedule, scaled.identity()) == scaled

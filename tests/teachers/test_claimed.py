"""When a teacher falls short of its claim."""

import math

import pytest

from kdtable.teachers.claimed import falls_short, standard_error


def test_the_standard_error_is_the_binomial_ones() -> None:
    assert standard_error(92.72, 1017) == pytest.approx(100 * math.sqrt(0.9272 * 0.0728 / 1017))
    assert standard_error(0.0, 10) == standard_error(100.0, 10) == 0.0


@pytest.mark.parametrize(
    ("top1", "images", "whole", "falls"),
    [
        (71.85, 10000, True, False),
        (71.83, 10000, True, True),  # 0.51 points, 1.1 standard errors
        (71.83, 10000, False, False),
        (71.43, 10000, False, True),  # 0.91 points, 2.01 standard errors
        (71.45, 10000, False, False),  # 0.89 points, 1.97 standard errors
        (71.85, 10**9, False, False),  # many standard errors, and less than half a point
        (99.0, 10, True, False),
    ],
)
def test_half_a_point_and_on_a_part_two_standard_errors(top1: float, images: int, whole: bool, falls: bool) -> None:
    assert falls_short(top1, 72.34, images, whole=whole) == falls

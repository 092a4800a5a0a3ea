"""Hyper-parameters that are number lists, written as text such as ``0.1,0,0.3``."""


def numbers(name: str, given: str) -> tuple[float, ...]:
    """The numbers of a list: ``numbers("alphas", "0.1,0.3")`` is ``(0.1, 0.3)``.

    Args:
        name: the hyper-parameter's name, for the message.
        given: its text.

    Raises:
        ValueError: the text holds anything but numbers.
    """
    try:
        return tuple(float(part) for part in given.split(","))
    except ValueError:
        raise ValueError(f"{name} takes a number or a list like 0.1,0,0.3, not '{given}'") from None


def one_each(name: str, given: str, count: int) -> tuple[float, ...]:
    """``count`` numbers of a list; a single number is repeated.

    Raises:
        ValueError: the list has neither one number nor ``count``.
    """
    found = numbers(name, given)
    if len(found) == 1:
        return found * count
    if len(found) != count:
        raise ValueError(f"{name} has {len(found)} numbers for {count} places: give one for each, or one for all")
    return found


def check_fractions(name: str, given: str) -> None:
    """Raise `ValueError` for a number outside [0, 1]."""
    for number in numbers(name, given):
        if not 0 <= number <= 1:
            raise ValueError(f"{name} lies in [0, 1], not {number:g}")

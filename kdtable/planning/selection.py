"""Parse the pairs, rows and seeds that a user selects."""

from collections.abc import Sequence
from typing import Final

from kdtable import models, papers
from kdtable.errors import BadRequest, unknown
from kdtable.models.foreign import split_names
from kdtable.models.sums import canonical_teacher
from kdtable.papers import Pair, Paper

#: A larger count is probably a single seed.
MOST_SEEDS: Final = 1000


def parse_pairs(texts: Sequence[str], paper: Paper) -> list[Pair]:
    """Parse pairs: ``all``, table names, and TEACHER:STUDENT in any accepted spelling; TEACHER may be several with +.

    Raises:
        BadRequest: an unknown or ambiguous name.
    """
    found: dict[Pair, None] = {}
    for text in texts:
        for pair in _pairs_of(text, paper):
            found.setdefault(pair)
    if not found:
        raise BadRequest("nothing to run: name at least one pair, as TEACHER:STUDENT")
    return list(found)


def _pairs_of(text: str, paper: Paper) -> list[Pair]:
    if text == "all":
        return [pair for table in paper.tables.values() for pair in table.pairs]
    if text in paper.tables:
        return list(paper.tables[text].pairs)
    names = split_names(text)
    if len(names) == 1:
        known = [
            "all",
            *paper.tables,
            *(str(pair) for table in paper.tables.values() for pair in table.pairs),
        ]
        raise unknown("pair", text, known, "pairs")
    if len(names) > 2:
        raise BadRequest(f"pair '{text}' names {len(names)} networks: write TEACHER:STUDENT")
    teacher, student = names
    return [Pair(canonical_teacher(teacher.strip()), models.checked(student.strip()))]


def parse_selection(
    paper: str | None, pairs: str | None, methods: str | None, seeds: str | None, data: str | None = None
) -> tuple[str, list[str], list[str], list[int]]:
    """Parse a selection: a paper's name, and lists of pairs, rows and seeds; the paper fills in what is ``None``.

    An empty list of rows selects each table's own rows. The data set, as the user names it, says which paper it is
    where none is named.

    Raises:
        BadRequest: pairs or rows are missing and no paper is named, or a text cannot be parsed.
    """
    if paper is None and (pairs is None or methods is None):
        lacking = "--pairs" if pairs is None else "--methods"
        raise BadRequest(f"nothing to run: {lacking} is missing; name it, or a paper with --paper for all that it has")
    rows = split(methods or "")
    if methods is not None and not rows:
        raise BadRequest("nothing to run: name at least one method and one seed")
    chosen = papers.load(paper or papers.default_paper(data))
    numbers = parse_seeds(seeds) if seeds is not None else list(chosen.seeds)
    return (
        chosen.name,
        ["all"] if pairs is None else split(pairs),
        rows,
        numbers,
    )


def split(text: str) -> list[str]:
    """The parts of a comma-separated list."""
    return [part.strip() for part in text.split(",") if part.strip()]


def parse_seeds(text: str) -> list[int]:
    """Parse seeds: ``3`` means seeds 1, 2, 3; ``7,8,9`` and ``7,`` name them.

    Raises:
        BadRequest: anything else, or no seed at all.
    """
    try:
        numbers = [int(part) for part in split(text)]
    except ValueError as error:
        raise BadRequest(f"--seeds takes a count (3) or a list (7,8,9), not '{text}'") from error
    if "," not in text and numbers:
        if numbers[0] > MOST_SEEDS:
            raise BadRequest(f"--seeds {text} is a count of more than {MOST_SEEDS}; to name one seed write {text},")
        numbers = list(range(1, numbers[0] + 1))
    if not numbers or min(numbers) < 0:
        raise BadRequest(f"--seeds {text} asks for no run: use a count of at least 1, or a list such as 7,8,9")
    return list(dict.fromkeys(numbers))

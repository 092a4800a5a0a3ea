"""Does this working tree train to the same bits as another commit?

Both sides train the same cases through the command line. Runs are matched by pair, row and seed; every number of every
epoch and every tensor of the trained students and teachers is compared to the bit. Exit code: 0 all is equal, 1
something differs or could not be trained, 2 bad input.
"""

import argparse
import signal
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn

from compare_cases import CASES
from compare_differences import Tally, compare_stores, compare_teachers
from compare_readers import Unreadable
from compare_training import ROOT, BadInput, Code, Failed, Side, about, other_code
from rich.console import Console
from rich.table import Table


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"compare_commits: {message}\n")


def parse(words: Sequence[str]) -> argparse.Namespace:
    made = Parser(prog="compare_commits", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("commit", nargs="?", help="a commit of this repository, or a folder with a checkout of one")
    made.add_argument("--cases", type=names, default=list(CASES), help=f"comma-separated ({', '.join(CASES)})")
    made.add_argument("--cache", type=Path, metavar="DIR", help="keep the other commit's results here for next time")
    made.add_argument(
        "--baseline", action="store_true", help="train the other commit's cases into --cache, and no more"
    )
    made.add_argument("--keep", type=Path, metavar="DIR", help="keep this working tree's results here to look into")
    made.add_argument("--shared", type=Path, metavar="DIR", default=ROOT.parent / "shared", help="(%(default)s)")
    made.add_argument("--show", type=int, default=10, metavar="N", help="differences named per case (%(default)s)")
    made.add_argument("--stores", nargs=2, type=Path, metavar=("HERE", "THERE"), help="compare two results folders")
    options = made.parse_args(words)
    if (options.commit is None) == (options.stores is None):
        made.error("name one commit to compare with, or two results folders after --stores")
    if options.baseline and not options.cache:
        made.error("--baseline trains into a folder that is kept: name it with --cache")
    return options


def names(text: str) -> list[str]:
    """The cases that are asked for, in the order in which they run."""
    asked = [name.strip() for name in text.split(",") if name.strip()]
    if unknown := [name for name in asked if name not in CASES] or ([] if asked else [text]):
        raise argparse.ArgumentTypeError(f"unknown case '{unknown[0]}': use some of {', '.join(CASES)}")
    return [name for name in CASES if name in asked]


def possible(asked: Sequence[str], shared: Path) -> list[str]:
    """The cases whose files are there, with the teachers that they need; says which are left out.

    Raises:
        BadInput: no case is left.
    """
    left = []
    for name in asked:
        if missing := CASES[name].missing(shared):
            tell(f"{name} is left out: there is no {missing[0]} (--shared DIR)")
        else:
            left.append(name)
    if not left:
        raise BadInput("no case is left to compare: the files that they read are not there")
    if any(CASES[name].taught for name in left) and "teachers" not in left:
        left.insert(0, "teachers")
    return left


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def compared(name: str, here: Side, there: Side) -> tuple[Tally, list[float]]:
    """What differs in a case, and how long each side trained."""
    tally, seconds = Tally(), [0.0, 0.0]
    try:
        folders = [side.trained(name, tell) for side in (there, here)]
        seconds = [about(folder)["seconds"] for folder in folders]
        tally.notes += about(folders[1])["notes"]
        theirs, ours = folders
        for store in dict.fromkeys(step.results for step in CASES[name].steps):
            compare_stores(ours / "results" / store, theirs / "results" / store, tally)
        if CASES[name].trains_teachers:
            compare_teachers(ours / "teachers", theirs / "teachers", tally)
    except (Failed, Unreadable) as error:
        tally.unequal.append(str(error))
    tell(f"{name}: {f'UNEQUAL {tally.unequal[0]}' if tally.unequal else 'equal'}")
    return tally, seconds


def trained(name: str, side: Side) -> Tally:
    """A case that is trained and not compared; the tally has the reason if it could not be."""
    tally = Tally()
    try:
        tell(f"{name}: {about(side.trained(name, tell))['seconds']:.0f} s")
    except Failed as error:
        tell(f"{name}: {error}")
        tally.unequal.append(str(error))
    return tally


def compare_commits(options: argparse.Namespace) -> dict[str, Tally]:
    """Train and compare; a tally for each case."""
    with ExitStack() as stack:
        code = other_code(options.commit, stack)
        shared = options.shared.resolve()
        cases = possible(options.cases, shared)
        temporary = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="compare-commits-")))
        place = temporary / "there"
        if options.cache and code.commit:
            place = options.cache.resolve() / code.commit[:12]
        elif options.baseline:
            raise BadInput(f"{options.commit} is not exactly a commit: its results cannot be kept")
        elif options.cache:
            tell(f"{options.commit} is not exactly a commit: its results are not kept")
        if options.keep and any((options.keep / name).exists() for name in cases):
            raise BadInput(f"{options.keep} has results of an earlier comparison: name another folder after --keep")
        own = (options.keep or temporary / "here").resolve()
        here = Side(Code("this working tree", None, lambda: ROOT), own, shared, kept=False, disturbed=True)
        there = Side(code, place, shared, kept=True, disturbed=False)
        if options.baseline:
            return {name: trained(name, there) for name in cases}
        found = {name: compared(name, here, there) for name in cases}
    show(found, code.name, options.show)
    return {name: tally for name, (tally, _) in found.items()}


def compare_folders(options: argparse.Namespace) -> dict[str, Tally]:
    """Compare two results folders that are there already."""
    tally = Tally()
    try:
        here, there = options.stores
        compare_stores(here, there, tally)
    except Unreadable as error:
        raise BadInput(str(error)) from error
    show({"stores": (tally, [0.0, 0.0])}, str(options.stores[1]), options.show)
    return {"stores": tally}


def show(found: dict[str, tuple[Tally, list[float]]], other: str, differences: int) -> None:
    """A table of what was compared, then notes and the first differences."""
    console = Console(width=120, highlight=False, markup=False, soft_wrap=True)
    table = Table(title=f"this working tree (here) and {other} (there)", min_width=90)
    for header in ("case", "runs", "trained", "epochs", "numbers", "tensors", "unequal", "s there", "s here"):
        table.add_column(header, justify="left" if header == "case" else "right")
    for name, (tally, seconds) in found.items():
        counts = (tally.runs, tally.trained, tally.epochs, tally.numbers, tally.tensors, len(tally.unequal))
        table.add_row(name, *map(str, counts), *(f"{value:.0f}" if value else "" for value in seconds))
    console.print(table)
    for name, (tally, _) in found.items():
        for text in tally.notes:
            console.print(f"{name}: {text}")
        for text in tally.unequal[:differences]:
            console.print(f"{name}: UNEQUAL {text}")
        if (more := len(tally.unequal) - differences) > 0:
            console.print(f"{name}: {more} more")


def main(words: Sequence[str] | None = None) -> int:
    options = parse(sys.argv[1:] if words is None else words)
    try:
        tallies = compare_folders(options) if options.stores else compare_commits(options)
    except BadInput as error:
        tell(f"compare_commits: {error}")
        return 2
    except KeyboardInterrupt:
        tell("compare_commits: interrupted")
        return 130
    return 1 if any(tally.unequal for tally in tallies.values()) else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started and made is removed
    sys.exit(main())

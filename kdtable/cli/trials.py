"""Print the trials of a sweep: what they are, what they reached, and the commands of the final runs."""

import shlex
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final

import typer
from rich.table import Table

from kdtable.cli.console import print_line, print_table, shown
from kdtable.errors import counted
from kdtable.planning.sweep import Settings, Sweep, in_words, necessary, options
from kdtable.report.sweep import MethodResult, SweepResult, TrialResult

#: Options of a sweep that the commands of final runs do not take over.
_OWN: Final = ("methods", "seeds", "overrides", "trials", "output", "dry_run")
#: Seeds of final runs, where the sweep had fewer.
_FINAL_SEEDS: Final = 3


def print_trials(sweep: Sweep) -> None:
    """Print the settings of every trial, and where they were drawn from."""
    for method, varied in sweep.varied.items():
        own = [trial for trial in sweep.trials if trial.method == method]
        table = Table("trial", *varied, title=f"{method}: {counted(len(own), 'trial')}", title_justify="left")
        for number, trial in enumerate(own, start=1):
            table.add_row(str(number), *(shown(sweep.value(trial, key)) for key in varied))
        print_table(table)
        _print_ranges(sweep, method)


def _print_ranges(sweep: Sweep, method: str) -> None:
    if ranges := sweep.ranges[method]:
        where = "; ".join(f"{key} from {words}" for key, words in ranges.items())
        print_line(f"Trial 1 has the own settings of {method}; the others are drawn log-uniformly: {where}.")


def print_result(
    result: SweepResult, sweep: Sweep, context: typer.Context, plan: Callable[[str, Settings], object]
) -> None:
    """Print a table for each method, the rule of the choice, and the commands of the final runs.

    ``plan`` returns what identifies the runs of a method's settings.
    """
    for method in result.methods:
        print_table(_table(method, sweep, result))
        _print_ranges(sweep, method.method)
    over = counted(result.seeds, "seed") + (f" and {len(result.pairs)} pairs" if len(result.pairs) > 1 else "")
    print_line(
        f"{result.metric.words[0].upper()}{result.metric.words[1:]} on {counted(result.held_out, 'training image')} "
        f"held out: mean ± sample standard deviation over {over}; * = best of its method, chosen. The test images "
        "were not looked at."
    )
    for method in result.methods:
        if method.best is None:
            print_line(f"{method.method}: no trial is finished, so there is nothing to choose.")
            continue
        chosen = (*sweep.fixed[method.method], *method.best.trial.settings)
        settings = necessary(chosen, partial(plan, method.method))
        print_line(f"Final runs of {method.method} ({in_words(method.best.trial.settings)}):", bold=True)
        print(f"  {_final_command(method.method, options(settings), result.seeds, context)}")


def _table(method: MethodResult, sweep: Sweep, result: SweepResult) -> Table:
    pairs = result.pairs if len(result.pairs) > 1 else ()
    title = f"{method.method}: {counted(len(method.trials), 'trial')}"
    unit = f" ({result.metric.unit})" if result.metric.unit else ""
    table = Table("trial", *method.varied, *pairs, f"validation{unit}", title=title, title_justify="left")
    for one in method.trials:
        settings = [sweep.value(one.trial, key) for key in method.varied]
        of_pairs = ["—" if (value := one.by_pair.get(pair)) is None else f"{value:.2f}" for pair in pairs]
        table.add_row(*map(shown, (one.number, *settings, *of_pairs, _reached(one, method))))
    return table


def _reached(one: TrialResult, method: MethodResult) -> str:
    if one.mean is None:
        return str(one.lacking)
    spread = "" if one.std is None else f" ± {one.std:.2f}"
    return f"{one.mean:.2f}{spread}{' *' if one is method.best else ''}"


def _final_command(method: str, settings: Iterator[str], seeds: int, context: typer.Context) -> str:
    """The command that trains the chosen settings, with the sweep's own options."""
    given = context.params["seeds"]
    wanted = given if given and seeds >= _FINAL_SEEDS else str(max(_FINAL_SEEDS, seeds))
    return shlex.join(["kdtable", "run", "--methods", method, "--seeds", wanted, *_taken_over(context), *settings])


def _taken_over(context: typer.Context) -> Iterator[str]:
    """The options that the user gave the sweep, and that its final runs have too."""
    for parameter in context.command.params:
        name, value = str(parameter.name), context.params[str(parameter.name)]
        if name in _OWN or _from(context, name) != "COMMANDLINE":
            continue
        for one in value if isinstance(value, list | tuple) else [value]:
            yield from (parameter.opts[0],) if one is True else (parameter.opts[0], _text(one))


def _from(context: typer.Context, name: str) -> str:
    source = context.get_parameter_source(name)
    return "" if source is None else source.name


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)

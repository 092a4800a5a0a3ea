"""``kdtable sweep``."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdtable.cli import completion
from kdtable.cli import options as opt
from kdtable.errors import counted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from kdtable.report.sweep import SweepResult


def sweep(
    context: typer.Context,
    pairs: Annotated[
        str | None,
        opt.what(metavar="LIST", autocompletion=completion.pairs, help="As of 'kdtable run'."),
    ] = None,
    methods: Annotated[
        str | None,
        opt.what(
            "--methods",
            "--method",
            metavar="LIST",
            autocompletion=completion.last_of_list(completion.methods),
            help="Rows to tune, each with as many trials; comma-separated.",
        ),
    ] = None,
    validation: opt.Validation = None,
    trials: Annotated[
        int | None,
        opt.what(
            metavar="N",
            parser=opt.whole,
            help="Search at random: N trials of each method, the first with its own settings, the others from the "
            "ranges that it declares.",
        ),
    ] = None,
    seeds: Annotated[
        str | None, opt.what(metavar="N|LIST", help="Of every trial, as of 'kdtable run'; by default the paper's.")
    ] = None,
    paper: Annotated[
        str | None,
        opt.what(
            metavar="NAME",
            autocompletion=completion.one_of(completion.papers),
            help="Whose recipe and settings are used; crd by default.",
        ),
    ] = None,
    data: opt.Data = None,
    image_size: opt.ImageSize = None,
    epochs: opt.Epochs = None,
    iterations: opt.Iterations = None,
    batch_size: opt.BatchSize = None,
    lr: opt.LearningRate = None,
    overrides: Annotated[
        list[str] | None,
        opt.recipe(
            "--set",
            metavar="KEY=V,V",
            help="A setting's values to choose between; one value is for all trials. Values that have commas "
            "themselves (milestones): --set once for each. With --trials a range, lr=0.01..0.2; repeatable.",
        ),
    ] = None,
    teacher: opt.TeacherFiles = None,
    start: opt.Starts = None,
    device: opt.Device = "auto",
    jobs: opt.Jobs = "1",
    precision: opt.PrecisionName = "fp32",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the trials and the plan of their runs; change nothing.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="A heat map of two settings: a file that ends in .pdf, .svg or .png."
        ),
    ] = None,
    keep: opt.Keep = "last",
    results: opt.Results = opt.RESULTS,
    store: opt.StoreUrl = None,
    teachers_dir: opt.Teachers = opt.TEACHERS,
    data_root: opt.DataRoot = opt.DATA_ROOT,
    reading: opt.Reading = "code",
    skip_unreadable: opt.SkipUnreadable = False,
    input_mean: opt.InputMeans = None,
    input_std: opt.InputStds = None,
    accumulate: opt.Accumulate = 1,
    cuda_graphs: opt.CudaGraphs = "auto",
    teacher_cache: opt.TeacherCache = "off",
) -> None:
    """Tune methods on held-out training images, with equal budgets, and print the commands of the final runs.

    Examples:
        kdtable sweep --pairs crd-1 --methods kd,at --trials 8 --validation 5000
        kdtable sweep --pairs crd-1 --methods dkd --set beta=2,4,8 --validation 5000

    Trials are ordinary runs of the same store: what it has is not trained again. The best trial of a method has the
    best mean validation accuracy over seeds and pairs; test images are not looked at.

    Exit code: 0 all done, 1 some run failed, 2 bad request, 130 interrupted.
    """
    from kdtable.planning.request import Changes, DataRequest, Request
    from kdtable.planning.requested import plan_requests
    from kdtable.planning.run import Sharding
    from kdtable.planning.selection import parse_selection
    from kdtable.planning.sweep import Trial, plan_sweep

    chosen, pair_names, rows, seed_list = parse_selection(paper, pairs, methods, seeds, data)
    request = Request(
        pairs=pair_names,
        methods=rows,
        seeds=seed_list,
        paper=chosen,
        reading=reading,
        data=DataRequest(data, data_root, image_size, skip_unreadable, validation),
        changes=Changes(epochs, batch_size, lr, overrides or [], iterations=iterations),
        precision=precision,
        teacher_cache=teacher_cache,
        sharding=Sharding(accumulate=accumulate),
    )
    planned_sweep = plan_sweep(request, trials)
    if output is not None:
        from kdtable.report.figures import check_file

        planned_sweep.check_two_settings()
        check_file(output)
    given = opt.given_weights(teacher, input_mean, input_std, start)
    requests = [trial.request(request, planned_sweep.fixed[trial.method]) for trial in planned_sweep.trials]
    planned = plan_requests(requests, teachers_dir, given, allow_missing=dry_run)
    runs = list({one.run.id: one for of_trial in planned for one in of_trial}.values())
    opt.print_notes(one.run.data for one in runs)
    if dry_run:
        from kdtable.cli.dry_run import print_plan
        from kdtable.cli.trials import print_trials

        print_trials(planned_sweep)
        if not print_plan(runs, results, store, device, jobs, cuda_graphs):
            raise typer.Exit(1)
        return
    from kdtable.cli.training import train

    failed = train(runs, results, device, data_root, store, keep, jobs, cuda_graphs=cuda_graphs)
    from kdtable.cli.trials import print_result
    from kdtable.report.sweep import stored_result

    found = stored_result(planned_sweep, planned, results, store)

    def plan(method: str, settings: tuple[tuple[str, str], ...]) -> list[str]:
        of_trial = Trial(method).request(request, settings)
        return [one.run.id for one in plan_requests([of_trial], teachers_dir, given)[0]]

    print_result(found, planned_sweep, context, plan)
    if output is not None:
        from kdtable.report.figures import save

        save(lambda: _heat_map(found), output)
    if failed:
        print(f"kdtable: {counted(failed, 'run')} failed; 'kdtable status' has the reasons", file=sys.stderr)
        raise typer.Exit(1)


def _heat_map(found: "SweepResult") -> "Figure":
    from kdtable.report.figures.heatmap import draw

    return draw(found)

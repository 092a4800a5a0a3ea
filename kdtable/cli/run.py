"""``kdtable run``."""

import os
import sys
from typing import Annotated

import typer

from kdtable.cli import completion
from kdtable.cli import options as opt
from kdtable.errors import BadRequest, counted


def run(
    pairs: Annotated[
        str | None,
        opt.what(
            metavar="LIST",
            autocompletion=completion.pairs,
            help="all, tables (crd-1), or TEACHER:STUDENT; comma-separated. TEACHER+TEACHER:STUDENT has several "
            "teachers. With --paper all by default.",
        ),
    ] = None,
    methods: Annotated[
        str | None,
        opt.what(
            metavar="LIST",
            autocompletion=completion.methods,
            help="Rows such as vanilla,kd,crd (kdtable list methods), or X+Y for the terms of both (crd+kd, at+sp); "
            "comma-separated. With --paper all of its tables' rows by default.",
        ),
    ] = None,
    seeds: Annotated[
        str | None,
        opt.what(metavar="N|LIST", help="A count (3: seeds 1, 2, 3) or a list (7,8,9); by default the paper's."),
    ] = None,
    paper: Annotated[
        str | None,
        opt.what(
            metavar="NAME",
            autocompletion=completion.one_of(completion.papers),
            help="Whose recipe, settings and tables are used (kdtable list papers); crd by default.",
        ),
    ] = None,
    data: opt.Data = None,
    image_size: opt.ImageSize = None,
    validation: opt.Validation = None,
    epochs: opt.Epochs = None,
    iterations: opt.Iterations = None,
    batch_size: opt.BatchSize = None,
    lr: opt.LearningRate = None,
    overrides: opt.Set = None,
    teacher: opt.TeacherFiles = None,
    start: opt.Starts = None,
    device: opt.Device = "auto",
    jobs: opt.Jobs = "1",
    devices: opt.Devices = None,
    on: opt.On = "local",
    cluster: opt.Cluster = None,
    detach: opt.Detach = False,
    precision: opt.PrecisionName = "fp32",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan and about how long it would take; change nothing.")
    ] = False,
    retrain: opt.Retrain = False,
    keep: opt.Keep = "last",
    log: opt.Log = None,
    results: opt.Results = opt.RESULTS,
    store: opt.StoreUrl = None,
    checkpoints: opt.Checkpoints = None,
    teachers_dir: opt.Teachers = opt.TEACHERS,
    data_root: opt.DataRoot = opt.DATA_ROOT,
    reading: opt.Reading = "code",
    skip_unreadable: opt.SkipUnreadable = False,
    input_mean: opt.InputMeans = None,
    input_std: opt.InputStds = None,
    accumulate: opt.Accumulate = 1,
    sync_batch_norm: opt.SyncBatchNorm = False,
    cuda_graphs: opt.CudaGraphs = "auto",
    teacher_cache: opt.TeacherCache = "off",
) -> None:
    """Train every missing run of a grid of pairs, methods and seeds, and print its table.

    Examples:
        kdtable run --pairs resnet56:resnet20 --methods vanilla,kd,crd --seeds 3
        kdtable run --pairs crd-1 --methods vanilla,kd --seeds 3 --dry-run
        kdtable run --pairs resnet14:resnet8 --seeds 3 --data npz:mine.npz

    What the store has is not trained again; what was interrupted continues from its last epoch.

    Exit code: 0 all done, 1 some run failed, 2 bad request, 130 interrupted.
    """
    from kdtable.execution.loggers import parse_loggers
    from kdtable.planning.request import Changes, DataRequest, Request
    from kdtable.planning.requested import plan_request
    from kdtable.planning.run import Sharding
    from kdtable.planning.selection import parse_selection

    process_group = None
    if devices is not None or "RANK" in os.environ:
        from kdtable.cli.training import gather

        process_group = gather(devices, device, jobs, sync_batch_norm=sync_batch_norm)
        if dry_run and process_group is not None and process_group.started:
            raise BadRequest("--dry-run plans for one process: leave out torchrun")
        if process_group is None:  # this was one of torchrun's ranks above 0
            return
        device = process_group.devices[0]
    from kdtable.cli.cluster import checkpoints_url, engine_of, print_submission

    engine = engine_of(on, cluster, device, jobs, process_group, detach=detach)
    place = checkpoints_url(checkpoints, on, cluster)
    loggers = parse_loggers(log, results)
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
        sharding=Sharding(process_group.size if process_group else 1, accumulate, sync_batch_norm),
    )
    given = opt.given_weights(teacher, input_mean, input_std, start)
    planned_runs = plan_request(request, teachers_dir, given, allow_missing=dry_run)
    opt.print_notes(planned.run.data for planned in planned_runs)
    if teacher_cache != "off":
        from kdtable.cli.caches import show_caches
        from kdtable.numerics.precision import choose_device

        show_caches(planned_runs, results, store, choose_device(device), err=not dry_run)
    if dry_run and engine is not None:
        print_submission(planned_runs, results, store, engine, retrain=retrain)
        return
    if dry_run:
        from kdtable.cli.dry_run import print_plan

        if not print_plan(planned_runs, results, store, device, jobs, cuda_graphs, retrain=retrain):
            raise typer.Exit(1)
        return
    from kdtable.cli.training import train

    failed = train(
        planned_runs,
        results,
        device,
        data_root,
        store,
        keep,
        jobs,
        process_group,
        cuda_graphs,
        loggers,
        engine,
        retrain=retrain,
        detach=detach,
        checkpoints=place,
    )
    if detach:
        return
    from kdtable.cli.report import print_planned

    print_planned(planned_runs, results, store)
    if failed:
        print(f"kdtable: {counted(failed, 'run')} failed; 'kdtable status' has the reasons", file=sys.stderr)
        raise typer.Exit(1)

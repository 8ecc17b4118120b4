"""The commands, nothing else.

Heavy imports stay inside the commands that need them, so that planning works on a login node.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from io import TextIOWrapper
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from rankrl.console import MEASURED, as_text, batch_line, optimizer_line, print_rows, terminal, value_text, warn
from rankrl.parser import parser
from rankrl.recipe.allocation import Importance
from rankrl.recipe.first_step import DRAWS
from rankrl.recipe.idle import evaluated_apart, idle_axes, idle_settings
from rankrl.recipe.load import Experiment, load_experiment
from rankrl.recipe.plan import Run, plan
from rankrl.recipe.require import require
from rankrl.recipe.shipped import TO_START_FROM, copy_shipped, install_words
from rankrl.report.visible import visible

if TYPE_CHECKING:
    pass


def _plan(args: argparse.Namespace) -> int:
    from rankrl.recipe.estimate import estimates, legend, likely_parallel_runs, sweep_hours, table

    experiment = load_experiment(args.recipe, args.overrides)
    runs = plan(experiment)
    warn([*idle_settings(runs), *idle_axes(runs), *evaluated_apart(experiment.scale)])
    rows = [run.row() for run in runs]
    if args.json:
        print(json.dumps(rows))
        return 0
    shown = [{key: value for key, value in row.items() if key != "axes"} for row in rows]
    print_rows([{key: MEASURED if value is None else value for key, value in row.items()} for row in shown])
    samples = sum(run.samples for run in runs)
    steps = " or ".join(map(str, sorted({run.recipe.steps for run in runs})))
    print(f"{len(runs)} runs of {steps} steps at scale {runs[0].scale.name}: {samples:,} samples")
    packed = experiment.execution.parallel_runs or likely_parallel_runs(runs)
    print(sweep_hours(runs, packed))
    print(table(estimates(runs, packed)))
    print(legend(runs[0]))
    return 0


def _cells(experiment: Experiment) -> list[Run]:
    """The first run of each arm and rank."""
    return list({(run.arm, run.rank): run for run in reversed(plan(experiment))}.values())[::-1]


def _explain(args: argparse.Namespace) -> int:
    from rich.table import Table

    from rankrl.recipe.evidence import settings

    explained: set[str] = set()
    for planned in _cells(load_experiment(args.recipe, args.overrides)):
        run = _with_cached(planned, Path(args.runs))
        share = run.trainable_params / run.scale.model.base_params
        title = f"{run.arm + ', ' if run.arm else ''}rank {run.rank}: {run.trainable_params:,} parameters, {share:.3%} of the base"
        critics = ("no critic", "a critic", "two critics")[run.critics]
        title += f"; advantage by {run.recipe.advantage.method}, {critics}"
        table = Table(title=title, title_justify="left", box=None)
        for column in ("knob", "value", "rule", "formula", "reference point", "source", "evidence"):
            table.add_column(column, no_wrap=column == "value")
        for name, knob in run.knobs.items():
            cells = (
                name,
                value_text(knob, planned.knobs[name].pending),
                knob.rule,
                knob.formula,
                knob.reference,
                knob.source,
                knob.evidence(name),
            )
            table.add_row(*cells)
        terminal().print(table)
        if run.arm not in explained:
            explained.add(run.arm)
            others = Table("setting", "value", "evidence", box=None)
            for row in settings(run.recipe):
                others.add_row(*row)
            terminal().print(others)
        print(f"batch: {batch_line(run)}")
        print(f"correction of engine and trainer: {run.recipe.correction}")
        region = f"; trust region: {run.recipe.trust_region}" if run.recipe.trust_region.on else ""
        print(f"optimizer: {optimizer_line(run)}{region}\n")
    return 0


def _with_cached(run: Run, directory: Path) -> Run:
    """`run` with what has been measured of it under `directory` already."""
    if not run.pending:
        return run
    from rankrl.sweep.first_step_cache import cached

    found = cached(run, directory)
    return run.at(found) if found else run


def _measure(args: argparse.Namespace) -> int:
    from rankrl.sweep.measure import measured_rows

    experiment = load_experiment(args.recipe, args.overrides)
    rows = measured_rows(plan(experiment), Path(args.runs))
    if args.json:
        print(json.dumps(rows))
        return 0
    print_rows([as_text(row) for row in rows])
    print("KL to the base in nats per response token: of the reference rate, and (kl_at_rule) of the rate lr.")
    print(f"95 % t intervals over {DRAWS} draws of A, of the logarithm; none where A does not depend on the seed")
    return 0


def _adapter(args: argparse.Namespace) -> int:
    from rankrl.recipe.allocation import read_importance

    experiment = load_experiment(args.recipe, [*args.overrides, f"ranks=[{args.rank}]"])
    cells = _cells(experiment)
    values = {run.recipe.allocation.value for run in cells if run.recipe.allocation.value}
    kind, measured = read_importance(Path(args.importance), values) if args.importance else (None, None)
    for run in cells:
        section = run.recipe.allocation
        importance = measured if section.value == kind else None
        print(f"{run.arm or experiment.name}, rank {run.rank}, scale {run.scale.name}, seed {run.seed}")
        if section.measured and importance is None:
            print(
                f"{section.label}: waits for a measurement (--importance FILE); at most {run.trainable_params:,} parameters\n"
            )
            continue
        _print_allocation(run, importance, args.all, args.to and Path(args.to) / run.arm)
    return 0


def _print_allocation(run: Run, importance: Importance | None, every: bool, to: Path | None) -> None:
    from rankrl.recipe.allocation import allocation_document, allocation_table, module_shapes
    from rankrl.recipe.rank_table import as_json
    from rankrl.report import rank_rows

    shapes = module_shapes(run.scale)
    table = allocation_table(run.recipe, run.scale.reference, run.rank, shapes, run.seed, importance)
    content = allocation_document(run.recipe.allocation, run.rank, shapes, table)
    if to:  # before printing: whoever reads the output may close the pipe
        from rankrl.report.figures.modules import rank_map

        to.mkdir(parents=True, exist_ok=True)
        (to / "allocation.json").write_text(as_json(content))
        print(f"written: {to / 'allocation.json'}, {rank_map(content, to)} and .png")
    print("\n".join(rank_rows.weight(content, run.scale)))
    for rows in (
        rank_rows.by_type(content),
        rank_rows.by_layer(content),
        rank_rows.by_module(content) if every else [],
    ):
        print()
        if rows:
            print_rows(rows)


def _sweep(args: argparse.Namespace) -> int:
    from rankrl.sweep.local import sweep

    experiment = load_experiment(args.recipe, args.overrides)
    runs = plan(experiment)
    warn([*idle_settings(runs), *idle_axes(runs), *evaluated_apart(experiment.scale)])
    return sweep(runs, Path(args.runs), experiment.execution)


def _run(args: argparse.Namespace) -> int:
    from rankrl.sweep.local import sweep

    experiment = load_experiment(args.recipe, args.overrides)
    runs = {run.run_id: run for run in plan(experiment)}
    names = args.run_id.split(",")
    for name in names:
        require(name in runs, "RUN_ID", name, f"{next(iter(runs))} ... {next(reversed(runs))}", "see rankrl plan")
    return sweep([runs[name] for name in names], Path(args.runs), experiment.execution, report=False)


def _tasks(args: argparse.Namespace) -> int:
    from rankrl.sweep.tasks import print_tasks

    print(print_tasks(plan(load_experiment(args.recipe, args.overrides)), Path(args.runs)), file=sys.stderr)
    return 0


def _outcome(args: argparse.Namespace) -> int:
    from rankrl.sweep.tasks import outcome

    print(outcome(Path(args.root), args.run_ids.split(","), Path(args.begun)))
    return 0


def _status(args: argparse.Namespace) -> int:
    from rankrl.report.ledger import find_roots, ledger, rows

    entries = {root.name: ledger(root) for root in find_roots(Path(args.dir))}
    if args.json:
        print(json.dumps({name: rows(found) for name, found in entries.items()}))
        return 0
    for name, found in entries.items():
        _print_status(name, found)
    return 0


def _print_status(name: str, entries: list) -> None:
    from rankrl.report.ledger import counts, shown

    print(f"{visible(name)}: {len(entries)} runs, " + ", ".join(f"{n} {state}" for state, n in counts(entries).items()))
    print_rows(shown(entries))


def _report(args: argparse.Namespace) -> int:
    from rankrl.report.build import build_all, print_table
    from rankrl.report.statistics.limits import Limits

    limits = Limits(args.margin, args.reference, args.risk)
    if args.against is not None:
        from rankrl.report.against import against, print_against

        print_against(against(Path(args.dir), Path(args.against), limits))
        return 0
    reports, refused = build_all(Path(args.dir), limits, args.tables_only)
    for summary in reports:
        print_table(summary)
    return int(bool(refused))


def _curve(args: argparse.Namespace) -> int:
    from rankrl.report.reference_curve import reference_curve, write_curve

    curve = reference_curve(Path(args.dir), args.cell)
    if args.to:
        write_curve(curve, Path(args.to))
    facts = ", ".join(f"{key} {value}" for key, value in curve.items() if key != "kl_step")
    print(f"{facts}\ntrust_region.curve={json.dumps(curve['kl_step'], separators=(',', ':'))}")
    return 0


def _samples(args: argparse.Namespace) -> int:
    from rankrl.report.showing import Asked, shown
    from rankrl.sweep.questions import questions

    require(not (args.gained and args.lost), "--gained", "with --lost", "one of the two")
    moved = "gained" if args.gained else "lost" if args.lost else None
    asked, run = Asked(args.step, args.verdict, args.source, args.training, moved, args.limit), Path(args.run_dir)
    asked.check()
    console = terminal()
    if isinstance(sys.stdout, TextIOWrapper):  # a terminal that is not UTF-8 gets escapes
        sys.stdout.reconfigure(errors="backslashreplace")
    for block in shown(run, asked, lambda: questions(run)):
        console.print(block, soft_wrap=True)
    return 0


def _next(args: argparse.Namespace) -> int:
    from rankrl.report.read import read_sweeps
    from rankrl.report.statistics.sequential import propose_more

    sweeps, refused = read_sweeps(Path(args.dir))
    found = {sweep.name: propose_more(sweep.counted, args.budget, sweep.confirming) for sweep in sweeps}
    if args.json:
        print(json.dumps(found))
        return int(bool(refused))
    for name, said in found.items():
        print(f"{visible(name)}: {'stop: ' if said['stop'] else ''}{said['why']}")
        rows = [row | {"seeds": " ".join(map(str, row["seeds"]))} for row in said["cells"]]
        if rows:
            print_rows(rows)
    return int(bool(refused))


def _init(args: argparse.Namespace) -> int:
    to = Path(args.dir)
    copy_shipped(to)
    print(f"copied to {to}: {', '.join(TO_START_FROM)}")
    print(f"next: cd {quote(str(to))} && rankrl plan recipes/demo.yaml && rankrl doctor")
    return 0


def _export(args: argparse.Namespace) -> int:
    from rankrl.adapter.export import export
    from rankrl.report.model_card import card
    from rankrl.report.read import divergence

    run = Path(args.run_dir)
    name, text = ("adapter_average" if args.average else "adapter"), partial(card, run, average=args.average)
    to = export(run, Path(args.to), text, name)
    if note := divergence(run):
        print(f"note: {note}", file=sys.stderr)
    print(f"exported to {to}: PEFT and vLLM load it; peft/ holds the unpadded original")
    return 0


def _doctor(args: argparse.Namespace) -> int:
    from rankrl.doctor import doctor
    from rankrl.recipe.load import doctor_words

    return doctor(*doctor_words(args.overrides), Path(args.runs))


def _data(args: argparse.Namespace) -> int:
    from rankrl.data.mixture import build
    from rankrl.data.prompt import short_enough
    from rankrl.recipe.load import scale_of_words

    scale = scale_of_words(args.overrides)
    print(f"{build(scale, Path(args.to), short_enough)}\nwritten: {args.to}")
    return 0


def _scale(args: argparse.Namespace) -> int:
    from rankrl.doctor.scale_file import write_scale

    to = Path(args.to)
    scale = write_scale(args.model, to, args.train, args.evaluation, args.gpus, args.gpu_memory)
    print(f"written: {to}; adapts {', '.join(scale.model.modules)}. Next: rankrl doctor {to}")
    return 0


def _eval(args: argparse.Namespace) -> int:
    from rankrl.recipe.load import scale_of_words
    from rankrl.sweep.evaluate import evaluate

    return evaluate(args.model, scale_of_words(args.overrides), Path(args.runs), args.json)


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "plan": _plan,
    "explain": _explain,
    "measure": _measure,
    "adapter": _adapter,
    "sweep": _sweep,
    "run": _run,
    "tasks": _tasks,
    "outcome": _outcome,
    "status": _status,
    "eval": _eval,
    "next": _next,
    "init": _init,
    "export": _export,
    "data": _data,
    "doctor": _doctor,
    "scale": _scale,
    "report": _report,
    "curve": _curve,
    "samples": _samples,
}


def _not_installed(command: str, error: ModuleNotFoundError) -> int:
    """Says how to install the training stack, which planning and reading do without."""
    package = (error.name or "rankrl").partition(".")[0]
    if find_spec(package):  # it is there, and lacks a part
        raise error
    print(f"rankrl: {command} needs {package}, which is not installed: {install_words()}", file=sys.stderr)
    return 1


def main(words: list[str] | None = None) -> int:
    args, rest = parser().parse_known_args(words)
    try:
        if rest:  # overrides that stand after an option
            options = [word for word in rest if word.startswith("-") or not hasattr(args, "overrides")]
            require(not options, "option", " ".join(options), f"see rankrl {args.command} --help")
            args.overrides += rest
        return COMMANDS[args.command](args)
    except ValueError as error:
        told = getattr(error, "cause", error)  # the error of a remote worker, without its traceback
        print(f"rankrl: {visible(' '.join(str(told).split()))}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        return _not_installed(args.command, error)
    except BrokenPipeError:
        return 141
    except OSError as error:  # a full disk, a directory without permission
        print(f"rankrl: {visible(str(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())

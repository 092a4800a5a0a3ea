"""The reference pages of the site, made from the code: a hook of mkdocs (``mkdocs.yml``).

Nothing here is written to disk: the pages exist in the site alone, so they cannot grow old.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from textwrap import dedent
from typing import Any, Final, get_args

import torch
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from typer.main import get_command

from kdtable import models, papers
from kdtable.cli import app
from kdtable.data.spec import BUILT_IN, STREAMED
from kdtable.escaping import markdown
from kdtable.methods import METHODS
from kdtable.methods.catalogue import About, grouped
from kdtable.methods.documented import meanings
from kdtable.methods.objective import Params, SoftTargetParams
from kdtable.models.names import ALIASES, KINDS, NETWORKS
from kdtable.papers import Paper
from kdtable.papers.listing import View, combined, readings, views
from kdtable.recipes.metrics import METRICS
from kdtable.report.captions import SYMBOLS
from kdtable.report.rendering.latex import LEGEND

#: Classes for which parameters are counted: CIFAR-100's.
CLASSES: Final = 100
#: What cells hold besides: the captions explain these case by case.
OTHER_SYMBOLS: Final = (
    "N/A = the method cannot be run on the pair; the caption says why",
    "[75.48, +0.12] = with --compare: the published number, and ours minus it",
    "method (key=value) = a row whose setting is not its default",
)

Lines = Iterator[str]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Called by mkdocs: add the pages."""
    for name, lines in PAGES.items():
        files.append(File.generated(config, f"reference/{name}.md", content="\n".join(lines()) + "\n"))
    return files


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Lines:
    yield ""
    yield f"| {' | '.join(heads)} |"
    yield f"|{'---|' * len(heads)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"
    yield ""


def _code(text: str) -> str:
    return f"`{text}`"


def _codes(texts: Iterable[str]) -> str:
    return ", ".join(map(_code, texts))


# --- commands -----------------------------------------------------------------------------------------------------


def commands() -> Lines:
    """Each command's help."""
    yield "# Commands"
    yield ""
    yield "The help of each command, as `kdtable COMMAND --help` prints it."
    yield ""
    root: Any = get_command(app)
    for name, command in root.commands.items():
        if found := getattr(command, "commands", None):
            yield from _heading(f"kdtable {name}", command, 2)
            for own, each in found.items():
                yield from _command(f"kdtable {name} {own}", each, 3)
        else:
            yield from _command(f"kdtable {name}", command, 2)


def _heading(name: str, command: Any, level: int) -> Lines:
    yield f"{'#' * level} {name}"
    yield ""
    for paragraph in _plain(command.help).split("\n\n"):
        example = dedent(paragraph.removeprefix("Example: ").removeprefix("Examples:\n"))
        yield markdown(paragraph) if example == paragraph else f"```text\n{example}\n```"
        yield ""


def _command(name: str, command: Any, level: int) -> Lines:
    yield from _heading(name, command, level)
    rows = [(_given(param), _help(param)) for param in command.params if not param.hidden]
    yield from _table(("argument or option", "meaning"), rows)


def _given(param: Any) -> str:
    values = param.metavar or "|".join(map(str, get_args(param.type_descriptor.annotation)))
    values = values.replace("|", r"\|")  # a bar would end the cell, in code too
    if not param.opts[0].startswith("-"):
        return _code(values)
    takes = "" if getattr(param, "is_flag", False) else f" {values}"
    return _code(", ".join(param.opts) + takes)


def _help(param: Any) -> str:
    required = "Required." if param.required else ""
    default = f"By default `{param.default}`." if isinstance(param.default, str | int | float | Path) else ""
    default = "" if param.default is False else default
    variable = f"Also by the variable `{param.envvar}`." if param.envvar else ""
    return " ".join(filter(None, (markdown(_plain(param.help or "")), required, default, variable)))


def _plain(text: str) -> str:
    """Help without the escapes of rich's markup."""
    return text.replace("\\[", "[")


# --- methods ------------------------------------------------------------------------------------------------------


def methods() -> Lines:
    """Each method: its paper and formula, its hyper-parameters, and its settings in each paper."""
    yield "# Methods"
    yield ""
    yield (
        "By kind, in each the oldest first. The text of a method is that of its file in `kdtable/methods`. Its "
        "settings are those of the released code on the paper's own data set; `kdtable list methods --paper NAME` "
        "prints other data sets and readings too. [Methods of each paper](../methods.md) has the differences in words."
    )
    yield ""
    yield "Every method has these hyper-parameters of its KD term, should it have one:"
    yield from _hyper(Params)
    settings = _settings()
    for kind, entries in grouped().items():
        yield f"## {kind.capitalize()}"
        yield ""
        for name, about in entries:
            yield from _method(name, about, settings.get(name, []))


def _method(name: str, about: About, settings: Sequence[Sequence[str]]) -> Lines:
    method = METHODS[name]
    yield f"### {name}"
    yield ""
    year = f"Published {about.year}. " if about.year else ""
    yield f"{year}Reads {markdown(about.needs)}." if about.needs else f"{year}Reads nothing beyond the logits."
    yield ""
    yield f"```text\n{(import_module(method.__module__).__doc__ or '').strip()}\n```"
    yield ""
    if method.hyper not in (Params, SoftTargetParams):
        yield from _hyper(method.hyper, Params)
    yield from _table(("paper", "loss", "settings"), settings)


def _hyper(kind: type[Params], without: type | None = None) -> Lines:
    left_out = {field.name for field in fields(without)} if without else set()
    about = {name: markdown(text) for name, text in meanings(kind).items()}
    rows = [
        (_code(field.name), _code(str(field.default)) if field.default != "" else "", about.get(field.name, ""))
        for field in fields(kind)
        if field.name not in left_out
    ]
    yield from _table(("hyper-parameter", "default", "meaning"), rows)


def _settings() -> dict[str, list[tuple[str, str, str]]]:
    """For each row its paper, loss and settings, in words."""
    found: dict[str, list[tuple[str, str, str]]] = {}
    for paper in _papers():
        view = _own(paper)
        words = view.words()
        for name in paper.rows:
            loss, settings = words[name]
            texts = (paper.name, markdown(loss), "<br>".join(map(markdown, settings)))
            found.setdefault(name, []).append(texts)
    return found


def _papers() -> list[Paper]:
    return [papers.load(name) for name in papers.names()]


def _own(paper: Paper) -> View:
    return views(paper, None)[0]


# --- papers and tables --------------------------------------------------------------------------------------------


def tables() -> Lines:
    """Each paper with its recipe and its tables."""
    yield "# Papers and tables"
    yield ""
    yield "What `--paper` and `--table` take. Every table names the source of its published numbers."
    for paper in _papers():
        own = _own(paper)
        yield ""
        yield f"## {paper.name}"
        yield ""
        yield markdown(paper.title)
        yield ""
        yield f"- On {own.paper.kind}: {markdown(own.recipe())}"
        yield from (f"- {markdown(text)}" for text in (*combined(own.paper), *readings(paper)))
        yield ""
        for table in paper.tables.values():
            yield f"### {table.name}"
            yield ""
            yield f"{markdown(table.title)}, on {table.data}. Source: {markdown(table.source)}."
            yield ""
            yield f"- Shows {', '.join(METRICS[name].words for name in table.metrics)} of the {table.epoch} epoch."
            yield f"- Pairs: {_codes(map(str, table.pairs))}"
            yield f"- Rows trained here: {_codes(table.trained)}"
            if table.published_only:
                yield f"- Published only: {_codes(table.published_only)}"
            yield ""


# --- names of networks, metrics, data sets ------------------------------------------------------------------------


def networks() -> Lines:
    """Each network with its other names and its size."""
    yield "# Networks"
    yield ""
    yield f"Parameters are those with {CLASSES} classes and images of 32 by 32 pixels. Case, `-` and `_` do not matter."
    rows = [
        (
            _code(name),
            _codes(alias for alias, names in ALIASES.items() if names == (name,)),
            f"{_parameters(name):,}",
            _code(f"{entry.module.replace('.', '/')}.py"),
        )
        for name, entry in ((name, NETWORKS[name]) for name in NETWORKS)
    ]
    yield from _table(("network", "also", "parameters", "file"), rows)
    yield "These names stand for several networks, and are refused with theirs:"
    yield from _table(("name", "networks"), [(_code(a), _codes(n)) for a, n in ALIASES.items() if len(n) > 1])
    yield "A network's name may end in one of these, for extra classifiers:"
    rows_of_kinds = [(_code(f"NETWORK+{name}"), _codes(kind.bases) or "any network") for name, kind in KINDS.items()]
    yield from _table(("name", "networks"), rows_of_kinds)


def _parameters(name: str) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in models.build(name, CLASSES).parameters())


def metrics() -> Lines:
    """What ``--metric`` takes."""
    yield "# Metrics"
    yield ""
    yield (
        "What `--metric` takes, of classification. Those from `agreement` on are measured once, of the student at the "
        "end of its run."
    )
    rows = [
        (_code(metric.name), markdown(metric.words), metric.unit, "higher" if metric.higher_is_better else "lower")
        for metric in METRICS.values()
    ]
    yield from _table(("name", "metric", "unit", "better"), rows)


def datasets() -> Lines:
    """What ``--data`` takes."""
    yield "# Data sets"
    yield ""
    yield "What `--data` takes. [Data](../data.md) has the layout of your own sets."
    rows = [
        (
            _code(spec.name),
            f"{spec.num_classes}",
            f"{spec.image_size}",
            f"{spec.train_count:,}",
            f"{spec.test_count:,}",
            "yes" if spec.flip else "no",
            ", ".join(map(str, spec.mean)),
            ", ".join(map(str, spec.std)),
        )
        for spec in (BUILT_IN[name] for name in BUILT_IN)
    ]
    heads = (
        "data set",
        "classes",
        "pixels a side",
        "training images",
        "test images",
        "mirrored",
        "mean",
        "standard deviation",
    )
    yield from _table(heads, rows)
    own = {"npz:PATH": "arrays in a file", "folder:PATH": "images of one size in folders"}
    own |= dict.fromkeys(STREAMED.values(), "large images in folders, cropped to `--image-size`")
    yield from _table(("your own", "holds"), [(_code(name), about) for name, about in own.items()])


# --- symbols ------------------------------------------------------------------------------------------------------


def symbols() -> Lines:
    """The marks of tables."""
    yield "# Symbols in tables"
    yield ""
    yield "The caption of a table explains those that it uses. In a terminal, in Markdown and on the page:"
    rows = [text.partition(" = ") for text in (*SYMBOLS.values(), *OTHER_SYMBOLS)]
    words = {"words": "above/below (better/worse, of an error)", "versus": "the row --versus (KD by default)"}
    yield from _table(("symbol", "meaning"), [(sign, markdown(text.format(**words))) for sign, _, text in rows])
    yield "A raised number is a footnote under the table. In LaTeX:"
    latex = [text.partition(": ") for _, text in LEGEND]
    yield from _table(("symbol", "meaning"), [(_sign(sign), markdown(_of_latex(words))) for sign, _, words in latex])


def _sign(text: str) -> str:
    return text if text.isalpha() else _code(text)


def _of_latex(words: str) -> str:
    return words.replace(r"\,\%", " %").replace("%s", "the row --versus")


PAGES: Final[dict[str, Callable[[], Lines]]] = {
    "commands": commands,
    "methods": methods,
    "papers": tables,
    "networks": networks,
    "metrics": metrics,
    "datasets": datasets,
    "symbols": symbols,
}

if __name__ == "__main__":
    sys.stdout.write("\n".join(PAGES[sys.argv[1]]()))

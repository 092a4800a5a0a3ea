"""Tables in LaTeX, to be pasted into a paper: booktabs, xcolor and ``\\multicolumn`` alone."""

import re
from collections.abc import Sequence
from itertools import groupby
from math import isnan
from typing import Any, Final, NamedTuple

from kdtable.escaping import latex as escaped
from kdtable.models.foreign import split_names
from kdtable.models.sums import networks_of
from kdtable.recipes.metrics import Metric
from kdtable.report.result_table import BASELINES, Heading, ResultTable

#: Width of text in points: that of LaTeX's article and of LNCS, the narrowest of common styles.
WIDTH: Final = 345.0
#: Rows of one part of a table, so that a part fits a page.
ROWS: Final = 40
#: Space on either side of a column, in points.
GAP: Final = 2.5

MARKS: Final = {"best": r"\textbf{%s}", "tied": r"\textbf{\textit{%s}}", "second": r"\underline{%s}", "": "%s"}
ARROWS: Final = {"better": r"$\uparrow$", "worse": r"$\downarrow$", "": ""}
RULES: Final = {
    "last": "last epoch",
    "best": "best epoch",
    "lowest-loss": "epoch of the lowest loss on the test images",
    "validation": "epoch of the best validation accuracy, measured on the test images once",
}

#: What the caption says of a symbol, if the pattern is found in the table.
LEGEND: Final = (
    (r"\\textbf", r"bold: best; bold italic: tied with it by the paired 95\,\% t-interval"),
    (r"\\underline", "underlined: next best"),
    (r"\\(up|down)arrow", r"$\uparrow$/$\downarrow$: better/worse than %s by the paired 95\,\% t-interval"),
    (r"\\textcolor", "grey: published"),
    (r"\\dag\{", r"\dag{}: published only, not trained here"),
    (r"\(\d+/\d+\)", "(a/b): a of b runs are done"),
    (r"---", "---: no finished run"),
    (r"& N/A", "N/A: the method cannot be run on the pair"),
)

#: Parts of networks' names, without underscores, and the families that they stand for; the first match counts.
FAMILIES: Final = {
    "wrn": "WRN",
    "resnet": "ResNet",
    "vgg": "VGG",
    "mobilenet": "MobileNet",
    "shuffle": "ShuffleNet",
}


class Font(NamedTuple):
    """A font and that of its small print, with the mean widths of their letters in points."""

    name: str
    small: str
    letter: float
    small_letter: float


#: From large to small. The first in which a table fits is used.
FONTS: Final = (Font("footnotesize", "scriptsize", 4.6, 4.1), Font("scriptsize", "tiny", 4.15, 3.5))

_UNSEEN: Final = re.compile(r"\\(?:textbf|textit|underline|scriptsize|textcolor\{gray\})|[{}$^]")
_COMMAND: Final = re.compile(r"\\(?:[a-zA-Z]+|.)")


def latex(tables: Sequence[ResultTable], *, published: bool = True) -> str:
    """Tables as LaTeX, each a ``table`` with caption and notes; the first line names the packages it needs.

    Wide tables are set smaller, and what is still too wide or too long is split into parts.

    Args:
        tables: to print.
        published: whether published numbers, where a table has them, stand in grey beside ours.
    """
    text = "\n\n".join(_table(table, published) for table in tables)
    packages = r"% \usepackage{booktabs}" + (r" \usepackage{xcolor}" if r"\textcolor" in text else "")
    return f"{packages}\n\n{text}\n"


def _table(table: ResultTable, published: bool) -> str:
    found = {(line.row, line.column): _cell(line, table, published) for line in table.cells.itertuples()}
    texts = {row: [found.get((row, i), "") for i in range(len(table.headings))] for row in table.rows}
    font, blocks = _placed(table, texts)
    texts = {row: [text.replace(r"\scriptsize", rf"\{font.small}") for text in cells] for row, cells in texts.items()}
    rows = list(texts.items())
    parts = [
        _tabular(table, block, rows[start : start + ROWS]) for block in blocks for start in range(0, len(rows), ROWS)
    ]
    caption, notes = _caption(table, "\n".join(parts)), _notes(table)
    floats = []
    for number, part in enumerate(parts):
        lines = [r"\begin{table}[tbp]", r"\centering", rf"\{font.name}", rf"\setlength{{\tabcolsep}}{{{GAP}pt}}"]
        lines += [r"\addtocounter{table}{-1}"] if number else []
        lines += [rf"\caption{{{'Continued.' if number else caption}}}", r"\smallskip", part]
        lines += notes if number == len(parts) - 1 else []
        floats.append("\n".join([*lines, r"\end{table}"]))
    return "\n\n".join(floats)


def _cell(line: Any, table: ResultTable, published: bool) -> str:
    """Ours, and the published number behind it; that alone where nothing was asked for."""
    number = f"{line.published:.2f}" if line.printed == "number" else line.printed
    grey = rf"\textcolor{{gray}}{{\scriptsize({number})}}" if published and number else ""
    own = "" if grey and line.state == "none" else _own(line, table)
    return " ".join(filter(None, [own, grey]))


def _own(line: Any, table: ResultTable) -> str:
    if line.state == "published only":
        text = r"\dag{}"
    elif line.state == "not applicable":
        text = "N/A"
    elif isnan(line.mean):
        text = "---" + (rf"{{\scriptsize(0/{line.asked})}}" if line.asked else "")
    else:
        text = MARKS[line.mark] % f"{line.mean:.2f}" + _small(line, table)
    return text + (f"$^{{{','.join(map(str, line.notes))}}}$" if line.notes else "")


def _small(line: Any, table: ResultTable) -> str:
    """What stands in small print behind a mean: spread, missing seeds, arrow."""
    spread = "" if isnan(line.std) else r"$\pm$" + f"{line.std:.2f}".removeprefix("0")
    wanted = max(line.asked, table.seeds)
    missing = f"({line.n}/{wanted})" if line.n < wanted and line.row != "teacher" else ""
    text = spread + missing + ARROWS[_against(line.against, table.headings[line.column].metric)]
    return rf"{{\scriptsize{'' if text[:1] in '$(' else ' '}{text}}}" if text else ""


def _against(side: str, metric: Metric) -> str:
    """``better`` or ``worse`` of ``above`` or ``below``."""
    return {"": "", "above" if metric.higher_is_better else "below": "better"}.get(side, "worse")


def _placed(table: ResultTable, texts: dict[str, list[str]]) -> tuple[Font, list[list[int]]]:
    """The font, and the columns of each part: one part where a font lets it fit, else several."""
    order = _order(table.headings)
    font = next((font for font in FONTS if sum(_widths(table, order, texts, font)) <= WIDTH), FONTS[-1])
    label, *widths = _widths(table, order, texts, font)
    blocks: list[list[int]] = []
    room = 0.0
    for i, width in zip(order, widths, strict=True):
        if not blocks or width > room:
            blocks.append([])
            room = WIDTH - label
        blocks[-1].append(i)
        room -= width
    return font, blocks


def _widths(table: ResultTable, order: Sequence[int], texts: dict[str, list[str]], font: Font) -> list[float]:
    """About how many points wide the columns are, that of labels first."""
    columns = [list(map(escaped, texts))]
    for i in order:
        heading = table.headings[i]
        metric = [heading.metric.words] if len(table.metrics) > 1 else []
        columns.append([*(row[i] for row in texts.values()), *map(escaped, [*_names(heading), *metric])])
    return [max(_width(text, font) for text in column) + 2 * GAP for column in columns]


def _width(text: str, font: Font) -> float:
    """About how many points wide a text is, small print last."""
    large, _, small = text.partition(r"\scriptsize")
    return _letters(large) * font.letter + _letters(small) * font.small_letter


def _letters(text: str) -> int:
    return len(_COMMAND.sub("x", _UNSEEN.sub("", text)))


def _order(headings: Sequence[Heading]) -> list[int]:
    """Columns with equal families side by side, those of one architectural style first."""
    families = [_families(heading) for heading in headings]
    return sorted(range(len(headings)), key=lambda i: (_across(families[i]), families.index(families[i])))


def _families(heading: Heading) -> tuple[str, str]:
    student = _family(heading.student)
    if not heading.teacher:
        return student, student
    return "+".join(dict.fromkeys(map(_family, networks_of(heading.teacher)))), student


def _family(network: str) -> str:
    folded = network.lower().replace("_", "")
    return next((family for part, family in FAMILIES.items() if part in folded), network)


def _across(families: tuple[str, str]) -> bool:
    return families[0] != families[1]


def _tabular(table: ResultTable, columns: Sequence[int], rows: Sequence[tuple[str, list[str]]]) -> str:
    lines = [rf"\begin{{tabular}}{{l{'c' * len(columns)}}}", r"\toprule", *_heads(table, columns), r"\midrule"]
    for label, texts in rows:
        lines.append(" & ".join([escaped(label), *(texts[i] for i in columns)]) + r" \\")
        if label == BASELINES[-1] and label != rows[-1][0]:
            lines.append(r"\midrule")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])


def _heads(table: ResultTable, columns: Sequence[int]) -> list[str]:
    """Lines of heads: styles if there are two, families, teachers, students, and metrics if there are several."""
    headings = [table.headings[i] for i in columns]
    families = [_families(heading) for heading in headings]
    styles = ["different styles" if _across(pair) else "same style" for pair in families]
    found = _ruled("", styles) if len({_across(_families(heading)) for heading in table.headings}) > 1 else []
    found += _ruled("", [r" $\to$ ".join(map(escaped, dict.fromkeys(pair))) for pair in families])
    names = [tuple(map(escaped, _names(heading))) for heading in headings]
    # A student's head spans the metrics of its pair, but not the next pair with an equal student.
    found.append(_line("teacher", [(teacher, teacher) for teacher, _ in names]))
    found.append(
        _line("student", [((*pair, heading.pair), pair[1]) for pair, heading in zip(names, headings, strict=True)])
    )
    if len(table.metrics) > 1:
        found.append(_line("", [(i, escaped(heading.metric.words)) for i, heading in enumerate(headings)]))
    return found


def _names(heading: Heading) -> tuple[str, str]:
    """Teacher and student as the heading's pair names them: with checksum or learning rate where others are equal."""
    names = split_names(heading.pair)
    return names[0] if len(names) > 1 else "--", names[-1]


def _ruled(label: str, texts: Sequence[str]) -> list[str]:
    """A line of heads with a rule below each."""
    rules, start = "", 2
    for _, group in groupby(texts):
        end = start + len(list(group)) - 1
        rules, start = rules + rf"\cmidrule(lr){{{start}-{end}}}", end + 1
    return [_line(label, [(text, text) for text in texts]), rules]


def _line(label: str, heads: Sequence[tuple[Any, str]]) -> str:
    """A line of heads, each given as a key and a text; those with equal keys side by side become one."""
    spans = [list(group) for _, group in groupby(heads, key=lambda head: head[0])]
    cells = [rf"\multicolumn{{{len(span)}}}{{c}}{{\scriptsize {span[0][1]}}}" for span in spans]
    return " & ".join([label, *cells]) + r" \\"


def _caption(table: ResultTable, body: str) -> str:
    """Title, what the numbers are, what the symbols mean, and the recipe."""
    if table.seeds > 1:
        what = rf"Mean $\pm$ sample standard deviation over {table.seeds} seeds, {RULES[table.rule]}"
    else:
        what = f"{'One seed' if table.seeds else 'No finished run'}, {RULES[table.rule]}"
    found = [text for pattern, text in LEGEND if re.search(pattern, body)]
    symbols = "; ".join(found).replace("%s", escaped(table.versus or ""))
    recipe = [escaped(line) for line in table.captions if line.startswith("Recipe: ")]
    return " ".join([f"{escaped(table.title)}.", f"{'; '.join(filter(None, [what, symbols]))}.", *recipe])


def _notes(table: ResultTable) -> list[str]:
    """Captions but the legend and the recipe, and footnotes, as lines below the table."""
    lines = [escaped(line) for line in table.captions[1:] if not line.startswith("Recipe: ")]
    lines += [f"$^{{{number}}}$ {escaped(note)}" for number, note in enumerate(table.footnotes, start=1)]
    return [r"\par\smallskip\raggedright\scriptsize", " \\\\\n".join(lines)] if lines else []

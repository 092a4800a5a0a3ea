"""One row for a method that was trained with different settings on different pairs."""

from collections.abc import Collection
from typing import Final

import pandas as pd

from kdtable.report.labels import labelled

#: Settings that no single pair can have: which weights students start from, and how batches are divided.
_FOR_ALL: Final = frozenset({"start", "pretrained", "from_teacher", "devices", "accumulate", "sync_batch_norm"})


def one_row(cells: pd.DataFrame) -> pd.DataFrame:
    """Give cells of a method one label where each of its pairs was trained with one setting.

    A changed setting joins the row of the paper's own settings, or the other changed ones if there is none, unless
    some pair has it and another setting of the method too: then the table compares settings, each in a row. What all
    of them share stands in the label.

    Args:
        cells: a line per cell with ``comparison``, ``column``, ``row``, ``label`` and ``settings``: those changed from
            the paper's, as ``--set`` takes them.

    Returns:
        The cells, with a footnote in the column ``own`` where the label does not tell the settings; else ``None``.
    """
    cells = cells.assign(own=pd.Series([None] * len(cells), dtype=object, index=cells.index))
    if not cells["settings"].map(len).any():
        return cells
    for (_, row), lines in cells.groupby(["comparison", "row"], sort=False):
        if lines["label"].nunique() > 1:
            joined = lines[lines["label"].isin(_joined(str(row), lines))]
            settings = joined["settings"].tolist()
            common = [text for text in (settings or [()])[0] if all(text in own for own in settings)]
            cells.loc[joined.index, "label"] = labelled(str(row), common)
            notes = [_note([text for text in own if text not in common]) for own in settings]
            cells.loc[joined.index, "own"] = pd.Series(notes, index=joined.index, dtype=object)
    return cells


def _note(settings: Collection[str]) -> str | None:
    return f"Settings of this pair: {', '.join(settings)}." if settings else None


def _joined(row: str, lines: pd.DataFrame) -> Collection[str]:
    """The labels of a method that share a row; empty if none do."""
    columns = {str(label): set(own["column"]) for label, own in lines.groupby("label", sort=False)}
    settings = dict(zip(lines["label"], lines["settings"], strict=True))
    found = {
        label
        for label, of in columns.items()
        if not any(of & others for other, others in columns.items() if other != label)
        and not _FOR_ALL & {text.partition("=")[0] for text in settings[label]}
    }
    found |= {row} & columns.keys()
    return found if len(found) > 1 else ()

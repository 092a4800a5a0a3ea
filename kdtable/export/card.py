"""Model cards, in Markdown."""

from collections.abc import Iterator

from kdtable.checkpoints.student import Origin
from kdtable.escaping import markdown
from kdtable.report.details import Details, Section


def model_card(found: Details, origin: Origin, *, inside: bool) -> str:
    """The model card of a student.

    Args:
        found: everything about its run.
        origin: what its file says of it.
        inside: whether the exported file normalises its input itself.
    """
    run = found.run
    title = f"{origin.network} on {run.data}: {run.row}, seed {run.seed}"
    kept = [section for section in found.sections if section.title not in ("Run", "Older results")]
    lines = [f"# {markdown(title)}", "", *_facts(found, origin, inside=inside)]
    return "\n".join([*lines, *(line for section in kept for line in _section(section))]) + "\n"


def _facts(found: Details, origin: Origin, *, inside: bool) -> Iterator[str]:
    size, result = origin.image_size, found.run.result
    constants = f"mean {_numbers(origin.mean)}, std {_numbers(origin.std)}"
    parameters = f", {result.parameters:,} parameters" if result and result.parameters else ""
    yield f"- Network: {origin.network}{parameters}, {origin.num_classes} classes"
    yield f"- Input: RGB images (N, 3, {size}, {size}), float32 in [0, 1]"
    if inside:
        yield f"- Normalisation, part of this file: {constants}"
    else:
        yield f"- Normalisation, not part of the weights: (input - mean) / std by channel; {constants}"
    yield f"- Output: logits (N, {origin.num_classes})"
    yield f"- Data: {markdown(origin.data)}"
    yield f"- Trained by kdtable, run {origin.run}"
    yield "- Licence: not known; that of the data and of the teacher's weights may bind this student too"


def _section(section: Section) -> Iterator[str]:
    yield from ("", f"## {section.title}", "")
    for label, text in section.lines:
        if section.title == "Command" and not label:
            yield f"    {text}"
        else:
            yield f"- {markdown(label)}: {markdown(text)}" if label else f"- {markdown(text)}"


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)

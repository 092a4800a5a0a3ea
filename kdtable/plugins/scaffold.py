"""Write the files of a new plug-in, with tests that pass as they stand."""

import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Final

from kdtable.errors import BadRequest
from kdtable.plugins.declare import check_name

#: Files by kind: the names to write, and the templates.
FILES: Final[Mapping[str, Mapping[str, str]]] = {
    "method": {"$module.py": "method.py.txt", "test_$module.py": "test_method.py.txt"},
    "network": {"$module.py": "network.py.txt", "test_$module.py": "test_network.py.txt"},
    "paper": {"$name.toml": "paper.toml.txt", "test_$module.py": "test_paper.py.txt"},
}


def scaffold(kind: str, name: str, folder: Path) -> list[Path]:
    """Write a new plug-in and its test; the plug-in comes first.

    Example:
        scaffold("method", "my-dkd", Path())  # my_dkd.py and test_my_dkd.py

    Args:
        kind: of :data:`FILES`.
        name: of the method, network or paper.
        folder: where to write; made if it is missing.

    Raises:
        BadRequest: the name cannot be one, or a file exists already.
    """
    check_name(name)
    module = re.sub(r"\W", "_", name)
    if module[0].isdigit():
        raise BadRequest(f"'{name}' begins with a digit, which a Python file cannot: choose another name")
    words = {
        "name": name,
        "module": module,
        "function": module.lower(),
        "cls": "".join(f"{part[0].upper()}{part[1:]}" for part in module.split("_") if part),
    }
    templates = files("kdtable.plugins") / "templates"
    texts = {
        folder / Template(file).substitute(words): Template((templates / template).read_text(encoding="utf-8"))
        for file, template in FILES[kind].items()
    }
    if there := next((path for path in texts if path.exists()), None):
        raise BadRequest(f"{there} exists already: choose another name or folder, or move it away")
    folder.mkdir(parents=True, exist_ok=True)
    for path, text in texts.items():
        with path.open("x", encoding="utf-8") as file:
            file.write(text.substitute(words))
    return list(texts)

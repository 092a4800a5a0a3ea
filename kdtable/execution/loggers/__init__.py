"""Where a grid is logged beside the store (``kdtable run --log``): loggers by name, each of an optional package.

Nothing here is imported before a user asks for it.
"""

from pathlib import Path
from typing import Any, Final

from kdtable.errors import BadRequest, unknown
from kdtable.execution.loggers.base import Logger
from kdtable.plugins import Registry

#: Each is a class that takes the folder of logs and is a :class:`~kdtable.execution.loggers.base.Logger`.
LOGGERS: Final[Registry[Any]] = Registry(
    "kdtable.loggers",
    {
        "tensorboard": "kdtable.execution.loggers.tensorboard:TensorBoard",
        "wandb": "kdtable.execution.loggers.wandb:Wandb",
        "mlflow": "kdtable.execution.loggers.mlflow:MLflow",
    },
)


def parse_loggers(text: str | None, results: Path) -> dict[str, Logger]:
    """Make the loggers of a comma-separated list, by name. They write nothing before training begins.

    Example:
        parse_loggers("tensorboard,mlflow", Path("results"))

    Args:
        text: the list; ``None`` for no logger.
        results: folder of the store; logs go into ``logs`` there.

    Raises:
        BadRequest: an unknown name, no name, or a package is not installed.
    """
    if text is None:
        return {}
    names = dict.fromkeys(part.strip().lower() for part in text.split(",") if part.strip())
    if not names:
        raise BadRequest(f"--log names no logger: use one or several of {', '.join(LOGGERS)}")
    for name in names:
        if name not in LOGGERS:
            raise unknown("logger", name, LOGGERS)
    return {name: _load(name)((results / "logs").absolute()) for name in names}


def _load(name: str) -> Any:
    try:
        return LOGGERS[name]
    except ImportError as error:
        raise BadRequest(f"--log {name} needs a package ({error}): pip install 'kdtable[{name}]'") from error

"""Fetch the pretrained weights of networks of timm and torchvision, by these libraries' own downloads."""

import json
from pathlib import Path
from typing import Final

from kdtable.errors import Trouble
from kdtable.files.atomic import written_whole
from kdtable.files.tensor_file import safetensors_bytes
from kdtable.models import foreign
from kdtable.teachers.locations import home

#: The data set that such weights are for: that of their classes, as ``imagenet:PATH`` has them.
DATA: Final = "imagenet"


def fetch(name: str, folder: Path) -> Path:
    """Put the library's weights of a network into the folder of teachers, unless they are there; return the path.

    The file says the input normalisation of these weights, so that no option has to.

    Example:
        fetch("timm:resnet18.a1_in1k", Path("teachers"))  # teachers/imagenet/timm:resnet18.a1_in1k.safetensors

    Raises:
        BadRequest: there is no such network.
        Trouble: its weights cannot be downloaded, or the file cannot be written.
    """
    path = home(folder, DATA, name)
    foreign.check(name)
    if path.is_file():
        return path
    try:
        state = foreign.pretrained(name)
    except Exception as error:  # the hubs and their HTTP libraries raise a dozen kinds
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise Trouble(
            f"the weights of {name} cannot be downloaded ({reason}): name a file with --teacher {name}=FILE"
        ) from error
    mean, std = foreign.own_normalisation(name) or ((), ())
    own = {key: value.detach().cpu().contiguous().clone() for key, value in state.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as file:
            file.write(safetensors_bytes(own, {"format": "pt", "mean": json.dumps(mean), "std": json.dumps(std)}))
    except OSError as error:
        raise Trouble(f"{path} cannot be written ({error.strerror})") from error
    return path

"""Networks of which only names and shapes are meaningful."""

from kdtable import models, seeding
from kdtable.models.initialisation import SkipInitialisation
from kdtable.models.network import Network


def uninitialised(name: str, num_classes: int, image_size: int = 32) -> Network:
    """A network with arbitrary weights; initialisation takes most of the time to build one.

    Raises:
        RuntimeError, ValueError: as of :func:`kdtable.models.build`.
    """
    with seeding.global_stream("shapes"), SkipInitialisation():
        return models.build(name, num_classes, image_size=image_size)

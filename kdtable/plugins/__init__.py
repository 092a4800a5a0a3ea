"""Plug-ins: methods, networks, data sets and papers of other people, from files and from installed packages.

A file says what it offers, and ``--plugin FILE.py`` or ``kdtable.toml`` loads it:

    from kdtable import plugins

    @plugins.method("mimic", terms={"ce": 1.0, "mimic": 2.0})
    class Mimic(Method): ...

    @plugins.network("tiny", width=16)
    class Tiny(Network): ...

    @plugins.dataset("rings")
    def rings(): ...

    plugins.paper("mine.toml")

An installed package names its objects as entry points (``kdtable.methods``, ``kdtable.models``, ``kdtable.datasets``,
``kdtable.papers``). The hash of the source of a method or network that is not kdtable's own is part of its runs'
identity.
"""

from kdtable.plugins.configured import configured
from kdtable.plugins.declare import Declaration, dataset, method, network, paper
from kdtable.plugins.files import FORGET, BadPlugin, Plugin, load, load_same, loaded, unload
from kdtable.plugins.registry import Registry

__all__ = [
    "FORGET",
    "BadPlugin",
    "Declaration",
    "Plugin",
    "Registry",
    "configured",
    "dataset",
    "load",
    "load_same",
    "loaded",
    "method",
    "network",
    "paper",
    "unload",
]

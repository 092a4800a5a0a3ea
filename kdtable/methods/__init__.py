"""Distillation methods, one file each.

``METHODS`` is the registry. A plug-in's file adds to it (``kdtable.plugins``), and another package through an entry
point in its ``pyproject.toml``:

    [project.entry-points."kdtable.methods"]
    l1 = "my_package.l1:L1"

``X+kd`` is method ``X`` with a KD term beside its own, and ``X+ls`` compares standardised logits: both name the class
of ``X``. Any other ``X+Y`` is :class:`kdtable.methods.combined.Combined`.
"""

import re
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from kdtable.errors import BadRequest, unknown
from kdtable.methods.combinations import KD_SUFFIX as KD_SUFFIX
from kdtable.methods.combinations import LS_SUFFIX as LS_SUFFIX
from kdtable.methods.combinations import Combination, combination
from kdtable.methods.on_tasks import ON_TASKS as ON_TASKS
from kdtable.methods.on_tasks import class_of, elsewhere, parts_of
from kdtable.plugins import Registry

if TYPE_CHECKING:
    from kdtable.methods.base import Method

#: The task that methods are for unless `ON_TASKS` says otherwise.
CLASSIFICATION: Final = "classification"

METHODS: Final[Registry["type[Method]"]] = Registry(
    "kdtable.methods",
    {
        "vanilla": "kdtable.methods.vanilla:Vanilla",
        "kd": "kdtable.methods.kd:KD",
        "at": "kdtable.methods.at:AT",
        "fitnet": "kdtable.methods.fitnet:FitNet",
        "sp": "kdtable.methods.sp:SP",
        "cc": "kdtable.methods.cc:CC",
        "vid": "kdtable.methods.vid:VID",
        "rkd": "kdtable.methods.rkd:RKD",
        "pkt": "kdtable.methods.pkt:PKT",
        "ab": "kdtable.methods.ab:AB",
        "ft": "kdtable.methods.ft:FT",
        "fsp": "kdtable.methods.fsp:FSP",
        "nst": "kdtable.methods.nst:NST",
        "crd": "kdtable.methods.crd:CRD",
        "fitnet-2stage": "kdtable.methods.fitnet_2stage:FitNetTwoStage",
        "kdsvd": "kdtable.methods.kdsvd:KDSVD",
        "takd": "kdtable.methods.kd:KD",  # the teacher is an assistant
        "dih": "kdtable.methods.dih:DIH",
        "heads": "kdtable.methods.heads:Heads",
        "tofd": "kdtable.methods.tofd:TOFD",
        "tofd-teacher": "kdtable.methods.branches:Branches",
        "mhkd": "kdtable.methods.mhkd:MHKD",
        "dml": "kdtable.methods.dml:DML",
        "cd": "kdtable.methods.cd:CD",
        "cd+gkd": "kdtable.methods.cd:CD",  # adds the term gkd
        "cd+gkd+edt": "kdtable.methods.cd:CD",  # adds schedules
        "mgd": "kdtable.methods.mgd:MGD",
        "reviewkd": "kdtable.methods.reviewkd:ReviewKD",
        "cse-l2": "kdtable.methods.cse_l2:CSEL2",
        "pad-l2": "kdtable.methods.pad_l2:PADL2",
        "dkd": "kdtable.methods.dkd:DKD",
        "dist": "kdtable.methods.dist:DIST",
        "ctkd": "kdtable.methods.ctkd:CTKD",
        "ttm": "kdtable.methods.ttm:TTM",
        "wttm": "kdtable.methods.ttm:WTTM",
        "nkd": "kdtable.methods.nkd:NKD",
        "rld": "kdtable.methods.rld:RLD",
        "ikl": "kdtable.methods.ikl:IKL",
        "gkl": "kdtable.methods.ikl:GKL",
        "wsld": "kdtable.methods.wsld:WSLD",
        "ofd": "kdtable.methods.ofd:OFD",
        "srrl": "kdtable.methods.srrl:SRRL",
        "catkd": "kdtable.methods.catkd:CATKD",
        "sdd": "kdtable.methods.sdd:SDD",
        "sdd+dkd": "kdtable.methods.sdd:SDD",  # its other base loss
        "nd": "kdtable.methods.nd:ND",
        "dot": "kdtable.methods.dot:DOT",
        "simkd": "kdtable.methods.simkd:SimKD",
        "mlkd": "kdtable.methods.mlkd:MLKD",
    },
)

#: Methods that measure more than the student, and with what; here, because reports import no torch.
MEASURED_WITH: Final = {"simkd": "a projector and the teacher's classifier"}

#: Names that mean another method elsewhere, without spaces, "-" and "_", and what to do about it.
NAMESAKES: Final = {
    **dict.fromkeys(
        ("maskedmgd", "maskedgenerative", "maskedgenerativedistillation"),
        "mgd is Matching Guided Distillation (ECCV 2020) here, and Masked Generative Distillation (ECCV 2022), which "
        "has the same short name, is not here: leave it out",
    ),
    "kd++": "KD++ is the term nd beside KD: write nd+kd",
    "sdkd": "SD-KD is Scale Decoupled Distillation on KD: write sdd",
    "sddkd": "SD-DKD is Scale Decoupled Distillation on DKD: write sdd+dkd",
}


def base_name(name: str, task: str = CLASSIFICATION) -> str:
    """The registered method that a name such as ``crd+kd`` or ``dkd+ls`` stands for; needs no torch.

    Of a combination it is the names of its methods, ``at+crd`` of ``at+crd+kd``; on other tasks KD is one of them.

    Raises:
        BadRequest: there is no such method; the message names the nearest ones.
    """
    if task in ON_TASKS:
        return "+".join(parts_of(name, task))
    if name not in METHODS and (folded := re.sub(r"[\s_-]", "", name.lower())) in NAMESAKES:
        raise BadRequest(f"method '{name}': {NAMESAKES[folded]}")
    plain = name if name in METHODS else name.removesuffix(LS_SUFFIX)
    base = plain if plain in METHODS else plain.removesuffix(KD_SUFFIX)
    if base in METHODS and (base == plain or "+" not in base):
        return base
    found = combination(name, METHODS) if "+" in name else None
    if found is not None and len(found.methods) > 1:
        if found.name != name:
            raise BadRequest(f"unknown method '{name}': here it is called {found.name}")
        return found.base
    if instead := elsewhere(name):
        raise BadRequest(f"method '{name}' {instead}")
    with_kd = [f"{method}{KD_SUFFIX}" for method in METHODS if "+" not in method]
    raise unknown("method", name, [*METHODS, *with_kd], "methods")


def methods_of(name: str, task: str = CLASSIFICATION) -> tuple[str, ...]:
    """The registered methods of a name: ``at`` and ``crd`` of ``at+crd+kd``, ``crd`` of ``crd+kd``.

    Raises:
        BadRequest: see :func:`base_name`.
    """
    if task in ON_TASKS:
        return parts_of(name, task)
    base = base_name(name)
    return (base,) if base in METHODS else combination(base, METHODS).methods


def combination_name(name: str, task: str = CLASSIFICATION) -> str | None:
    """The name of a combination of methods in our order; ``None`` if it is none."""
    try:
        found = combination(name, ON_TASKS.get(task, METHODS))
    except BadRequest:
        return None
    parts = (*found.methods, *found.suffixes) if task in ON_TASKS else found.methods
    return found.name if len(parts) > 1 else None


def get(name: str, task: str = CLASSIFICATION) -> "type[Method]":
    """The class of a method by name, as a task has it.

    ``get("crd")`` and ``get("crd+kd")`` are both :class:`kdtable.methods.crd.CRD`.

    Raises:
        BadRequest: there is no such method (the message names the nearest ones), or KD or logit standardisation cannot
            join it, or the task has no such method.
    """
    if task in ON_TASKS:
        return class_of(name, task)
    base = base_name(name)
    if base not in METHODS:
        return _combined(combination(name, METHODS))
    method = METHODS[base]
    plain = base if name in METHODS else name.removesuffix(LS_SUFFIX)
    if base != plain and not method.combines_with_kd:
        raise BadRequest(f"unknown method '{name}': {base} has soft targets of its own, or no teacher; write {base}")
    if plain == base != name and not method.standardises():
        instead = f"{base}{KD_SUFFIX}{LS_SUFFIX}" if method.combines_with_kd and "+" not in base else base
        raise BadRequest(
            f"method '{name}': {base} has no soft targets whose logits could be standardised; write {instead}"
        )
    return method


def target_of(name: str, task: str) -> object:
    """Where one method is: ``package.module:Class``, or what a plug-in registered; ``None`` if it is unknown."""
    return ON_TASKS[task].get(name) if task in ON_TASKS else METHODS.targets.get(name)


def identity(name: str, task: str = CLASSIFICATION) -> dict[str, Any]:
    """The method's part of a run's identity: its name and version, and those of each method of a combination.

    The hash of the source of a method that is not kdtable's own stands beside; of a combination, by method.

    Raises:
        BadRequest: see :func:`get`.
    """
    base, parts = base_name(name, task), methods_of(name, task)
    found: dict[str, Any] = {"name": base, "version": get(name, task).version}
    if task in ON_TASKS:
        return found | ({"parts": {part: get(part, task).version for part in parts}} if len(parts) > 1 else {})
    if base not in METHODS:
        found["parts"] = {method: METHODS[method].version for method in parts}
    sources = {method: source for method in parts if (source := METHODS.source(method)) is not None}
    if sources:
        found["source"] = sources[base] if base in METHODS else sources
    return found


def _combined(found: Combination) -> "type[Method]":
    from kdtable.methods.combined import combined

    kinds = {name: METHODS[name] for name in found.methods}
    if "ls" in found.suffixes:
        written = found.name.removesuffix(LS_SUFFIX)
        own_logits = [f"{name}.standardise" for name, kind in kinds.items() if kind.standardises()]
        settings = ["kd_standardise"] if "kd" in found.suffixes else own_logits
        how = f", and --set {settings[0]}=true for standardised logits" if settings else " without +ls"
        raise BadRequest(f"method '{found.name}': write {written}{how}")
    own = [name for name, kind in kinds.items() if not kind.combines_with_kd]
    if "kd" in found.suffixes and own:
        raise BadRequest(
            f"unknown method '{found.name}': {own[0]} has soft targets of its own, or no teacher; write {found.base}"
        )
    return combined(tuple(kinds.items()))


def __getattr__(name: str) -> Any:
    # These need torch, which takes seconds to import and which callers that want only names do not need.
    if name in ("Method", "Setting", "Term", "Stage"):
        return getattr(import_module("kdtable.methods.base"), name)
    raise AttributeError(name)

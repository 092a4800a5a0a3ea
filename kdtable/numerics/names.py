"""Names of precisions, and of what a teacher cache holds. Free of torch."""

#: Names of what networks are computed in; ``kdtable.numerics.precision`` says what they mean.
PRECISIONS = ("fp32", "tf32", "bf16", "fp16")


#: What the teacher's outputs are kept in on disk, and how that ends the name of a run's precision. A pass over some
#: images differs in its last bits from one over others, so a run that reads kept outputs has a precision of its own.
TEACHER_CACHES = {"off": "", "fp32": "-cached", "fp16": "-cached16"}


def split_precision(name: str) -> tuple[str, str]:
    """``("fp32", "fp16")`` of ``fp32-cached16``: what networks are computed in, and what the teacher's cache holds."""
    cache = next((cache for cache, suffix in TEACHER_CACHES.items() if suffix and name.endswith(suffix)), "off")
    return name.removesuffix(TEACHER_CACHES[cache]), cache

"""Names of precisions and teacher caches. Does not import torch."""

#: Names of the networks' precisions; see ``kdtable.numerics.precision``.
PRECISIONS = ("fp32", "tf32", "bf16", "fp16")

#: Whether steps are recorded as CUDA graphs. "auto" is "off" until recordings have been measured on a GPU.
CUDA_GRAPHS = ("auto", "on", "off")

#: Dtypes of the teacher cache, and the suffix that each adds to a run's precision. The last bits of an output depend on
#: the batch that it was computed in, so a run that reads cached outputs has its own precision.
TEACHER_CACHES = {"off": "", "fp32": "-cached", "fp16": "-cached16"}


def split_precision(name: str) -> tuple[str, str]:
    """Split ``fp32-cached16`` into ``("fp32", "fp16")``: the networks' precision and the teacher cache's dtype."""
    cache = next((cache for cache, suffix in TEACHER_CACHES.items() if suffix and name.endswith(suffix)), "off")
    return name.removesuffix(TEACHER_CACHES[cache]), cache

"""Networks from folders that transformers wrote: local files only, nothing unpickled, nothing silently filled at random."""

from pathlib import Path
from typing import Any

from annotate.weights import WeightsError


def load(network: str, folder: Path, owner: str, *, optional: tuple[str, ...] = ()) -> Any:
    """A class of transformers with the folder's config and weights, in fp32, in evaluation mode.

    WeightsError where a tensor is absent or has another shape: the library would draw it at random and go on. Tensors whose names
    begin with one of `optional` may be absent.
    """
    import transformers
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # of the library, in the middle of a run's own lines
    try:
        model, told = getattr(transformers, network).from_pretrained(
            str(folder), local_files_only=True, weights_only=True, output_loading_info=True, ignore_mismatched_sizes=True
        )
    finally:
        if shown:
            logging.enable_progress_bar()
    absent = sorted(name for name in told["missing_keys"] if not name.startswith(optional))
    if absent or told["mismatched_keys"]:
        shapes = sorted(name for name, *_ in told["mismatched_keys"])
        which = f"lack {len(absent)} of its tensors, {absent[0]} first" if absent else f"have another shape of {shapes[0]}"
        raise WeightsError(f"{owner}: the weights in {folder} {which}; they are not of this architecture, get others")
    return model.float().eval()

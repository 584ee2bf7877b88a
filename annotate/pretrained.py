"""Networks from folders that transformers wrote: local files only, nothing unpickled, nothing silently filled
at random.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from annotate import weights
from annotate.weights import WeightsError

if TYPE_CHECKING:
    import torch

# Swin's norm behind its last stage. Swin as a backbone gives each stage through a norm of its own and never
# this one: transformers 4 left it out, so the published files lack it; transformers 5 makes it all the same.
SWIN_NORM = "model.pixel_level_module.encoder.swin.layernorm."
# class of transformers -> how the names of the tensors begin that no output depends on; a file may lack
# these, and no others
UNUSED = {
    "Mask2FormerForUniversalSegmentation": (SWIN_NORM, "criterion."),  # the criterion is the loss of training
    "OneFormerForUniversalSegmentation": (SWIN_NORM, "criterion."),
    "UperNetForSemanticSegmentation": ("auxiliary_head.",),  # a second head for a second loss
    # the first fusion has one input, and so no residual; Intel/dpt-large lacks what would be added
    "DPTForDepthEstimation": ("neck.fusion_stage.layers.0.residual_layer1.",),
    "EomtForUniversalSegmentation": ("criterion.",),
    # stands for patches that are hidden in training
    "Tipsv2DptForDensePrediction": ("backbone.embeddings.mask_token",),
}
FILES = ("model.safetensors", "pytorch_model.bin")


def load(network: str, folder: Path, owner: str, *, file: Path | None = None, config: Any = None) -> Any:
    """A class of transformers with the folder's config and weights, in fp32, in evaluation mode.

    `file` holds the tensors; None means the folder's model.safetensors, else its pytorch_model.bin. `config`
    is one of the class, in place of the folder's.
    WeightsError where a tensor is absent or has another shape: the library would draw it at random and go on.
    """
    import torch
    import transformers
    from transformers.utils import logging

    path = file or next((folder / name for name in FILES if (folder / name).is_file()), folder / FILES[0])
    tensors, kind = weights.tensors(path), getattr(transformers, network)
    config = config or kind.config_class.from_pretrained(str(folder), local_files_only=True)
    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()  # of the library, in the middle of a run's own lines
    logging.set_verbosity_error()  # a table of absent tensors, which are judged here
    try:
        model, loading = kind.from_pretrained(
            None,
            config=config,
            state_dict=tensors,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            # whatever precision the file or its config has, also for buffers that no file holds
            dtype=torch.float32,
        )
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()
    unused = UNUSED.get(network, ())
    absent = sorted(
        name
        for name in loading["missing_keys"] | _untied(model, tensors, path)
        if not name.startswith(unused)
    )
    judge(owner, folder, absent, sorted(name for name, *_ in loading["mismatched_keys"]))
    return model.eval()


def judge(owner: str, folder: Path, absent: list[str], shapes: list[str]) -> None:
    """WeightsError: tensors of a network are absent, or have another shape."""
    if absent or shapes:
        which = (
            f"lack {len(absent)} of its tensors, {absent[0]} first"
            if absent
            else f"have another shape of {shapes[0]}"
        )
        raise WeightsError(
            f"{owner}: the weights in {folder} {which}; they are not of this architecture, get others"
        )


def _untied(model: Any, tensors: dict[str, "torch.Tensor"], path: Path) -> set[str]:
    """Absent tensors that the library took from their twin, where the file's own writer would have kept them.

    safetensors keeps the first of two names of one tensor; a pickle keeps both.
    """
    twins: dict[str, str] = getattr(model, "all_tied_weights_keys", {})
    named = set(twins.values()) | (set() if path.suffix == ".safetensors" else set(twins))
    return named - tensors.keys()

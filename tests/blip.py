"""A small BLIP of the true class with random weights, in files as the library writes them."""

from pathlib import Path
from typing import Any

VOCABULARY = (
    "[PAD] [UNK] [CLS] [SEP] [MASK] a picture of red green blue dog cat house sky boat on the with man woman"
    " tree ##s ##ing . , ' !"
)
WORDS = VOCABULARY.split()
# BLIP adds two marks behind the words of BERT: the decoder's start and the encoder's
PADDING, END, START = 0, 3, len(WORDS)


def make(folder: Path) -> tuple[Path, Any, Any]:
    """(folder, network, processor): large random weights, so that the words depend on the picture and
    captions end by themselves.
    """
    import torch
    from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration, BlipProcessor
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    tokenizer = BertTokenizer(str(folder / "vocab.txt"))
    tokenizer.add_special_tokens(
        {"bos_token": "[DEC]", "cls_token": "[CLS]", "additional_special_tokens": ["[ENC]"]}
    )
    processor = BlipProcessor(BlipImageProcessorPil(size={"height": 32, "width": 32}), tokenizer)
    small = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "projection_dim": 16,
    }
    marks = {"bos_token_id": START, "eos_token_id": END, "sep_token_id": END, "pad_token_id": PADDING}
    config = BlipConfig(
        text_config={
            **small,
            **marks,
            "vocab_size": len(tokenizer),
            "encoder_hidden_size": 32,
            "max_position_embeddings": 64,
        },
        vision_config={**small, "image_size": 32, "patch_size": 8},
    )
    torch.manual_seed(5)
    network = BlipForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.35)
        network.text_decoder.bert.embeddings.position_embeddings.weight.normal_(std=1.0)
        network.text_decoder.cls.predictions.bias[[START, START + 1, *range(5)]] = -100.0  # no marks as words
        network.text_decoder.cls.predictions.bias[END] = 3.0
    network.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder, network, processor

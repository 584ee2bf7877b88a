"""A small CLIP text encoder, and a CLIP tokenizer to which each word of the captions is one token."""

import collections
import itertools
import re
from collections.abc import Iterable, Sequence
from typing import Any

import torch

LENGTH = 77  # tokens, with start and end, as in SD 1.5; the longest caption of 22 000 scenes has 74
WORD_END = "</w>"
SPLIT = re.compile(r"[a-z]+|[0-9]|[^\sa-z0-9]+")  # as CLIP's tokenizer splits lowercase English


def words_of(captions: Iterable[str]) -> list[str]:
    """Sorted, so that the vocabulary does not depend on the captions' order."""
    return sorted({word for caption in captions for word in SPLIT.findall(caption.lower())})


def merges_of(words: Sequence[str]) -> list[tuple[str, str]]:
    """Byte pair encoding (Sennrich et al. 2016) of the words alone, until each is one symbol; ties go to the
    first in the alphabet.
    """
    split = [[*word[:-1], word[-1] + WORD_END] for word in words]
    merges: list[tuple[str, str]] = []
    while True:
        pairs = collections.Counter(pair for symbols in split for pair in itertools.pairwise(symbols))
        if not pairs:
            return merges
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        split = [_merge(symbols, best) for symbols in split]


def _merge(symbols: list[str], pair: tuple[str, str]) -> list[str]:
    out: list[str] = []
    for symbol in symbols:
        if out and (out[-1], symbol) == pair and not out[-1].endswith(WORD_END):
            out[-1] += symbol
        else:
            out.append(symbol)
    return out


def build_tokenizer(words: Sequence[str], length: int = LENGTH) -> Any:  # transformers CLIPTokenizer
    """All bytes are in the vocabulary, so a word that no scene has is spelled out."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    letters, merges = sorted(ByteLevel.alphabet()), merges_of(words)
    symbols = [
        *letters,
        *(letter + WORD_END for letter in letters),
        *("".join(pair) for pair in merges),
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    vocabulary = {symbol: i for i, symbol in enumerate(dict.fromkeys(symbols))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=length)  # type: ignore[arg-type]  # it is annotated with less


# transformers CLIPTextModel
def build_encoder(tokenizer: Any, *, width: int, layers: int, heads: int, seed: int) -> Any:
    """Random weights; it is trained with the UNet."""
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=width,
                intermediate_size=4 * width,
                num_hidden_layers=layers,
                num_attention_heads=heads,
                max_position_embeddings=tokenizer.model_max_length,
                hidden_act="quick_gelu",
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )


def tokens_of(tokenizer: Any, captions: Sequence[str]) -> torch.Tensor:  # [N, T] int64
    """Padded to the full length; ValueError where a caption is cut, because then words would be lost without
    a sign.
    """
    tokens = tokenizer(list(captions))["input_ids"]
    longest = max(range(len(tokens)), key=lambda i: len(tokens[i]))
    if len(tokens[longest]) > tokenizer.model_max_length:
        raise ValueError(
            f"a caption has {len(tokens[longest])} tokens, {tokenizer.model_max_length} fit:"
            f" {captions[longest]!r}"
        )
    padded = [ids + [tokenizer.pad_token_id] * (tokenizer.model_max_length - len(ids)) for ids in tokens]
    return torch.tensor(padded, dtype=torch.int64)

"""The nano model's tokenizer: byte-level BPE made for copying.

Promises: digits, Han characters, punctuation marks and spaces are tokens of their own, names have the same tokens
wherever they stand, Qwen's special tokens mean what they mean there. Does not: compress well.
"""

import json
import os
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import nano_names

NANO = Path(__file__).resolve().parent.parent / "evergreen" / "model" / "nano"

SPECIAL_TOKENS = """<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|> <|box_start|>
<|box_end|> <|quad_start|> <|quad_end|> <|vision_start|> <|vision_end|> <|vision_pad|> <|image_pad|>
<|video_pad|>""".split()
VISIBLE_TOKENS = """<tool_call> </tool_call> <|fim_prefix|> <|fim_middle|> <|fim_suffix|> <|fim_pad|> <|repo_name|>
<|file_sep|> <tool_response> </tool_response> <think> </think>""".split()
SYMBOLS = ",。:;?!、“”‘’()《》〈〉「」『』【】…—~·¥°℃€£±×÷²³µ→←↑↓■□●○★☆√≤≥≠≈%"
FULL_WIDTH, HALF_WIDTH = "，？！：；（）０１２３４５６７８９％", ",?!:;()0123456789%"
PRE_TOKEN = r"\n|[\u4e00-\u9fff]|\p{N}|\p{L}+|[^\s\p{L}\p{N}]|\s"
VOCAB_SIZE = 6144


def han_merges(pieces_of) -> list[tuple[str, str]]:
    """Merges that make one token of every common character and symbol, and two of every other Han character."""
    merges: dict[tuple[str, str], None] = {}
    for char in nano_names.common_han() + list(SYMBOLS):
        left, *rest = pieces_of(char)
        for right in rest:
            merges[(left, right)] = None
            left += right
    for code in range(0x4E00, 0x9FC0):
        merges[pieces_of(chr(code))[:2]] = None
    return list(merges)


def build_tokenizer():
    """Byte-level BPE for copying: a digit, a Han character, a punctuation mark and a space are tokens of their own.

    No merge crosses a space, so a name has the same tokens wherever it stands.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = han_merges(lambda text: tuple(byte_level.pre_tokenize_str(text)[0][0]))
    room = VOCAB_SIZE - len(alphabet) - len(merges) - len(SPECIAL_TOKENS) - len(VISIBLE_TOKENS)
    learner = Tokenizer(models.BPE())
    words = pre_tokenizers.Split(Regex("[A-Za-z]+"), "removed", invert=True)
    learner.pre_tokenizer = pre_tokenizers.Sequence([words, byte_level])
    trainer = trainers.BpeTrainer(vocab_size=len(alphabet) + room, initial_alphabet=alphabet, show_progress=False)
    learner.train_from_iterator(nano_names.spelling_corpus(), trainer)
    merges += [tuple(merge) for merge in json.loads(learner.to_str())["model"]["merges"]]
    vocab = {piece: i for i, piece in enumerate(alphabet + [left + right for left, right in merges])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(PRE_TOKEN), "isolated"), byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in VISIBLE_TOKENS])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
        additional_special_tokens=SPECIAL_TOKENS[1:],
    )
    wrapped.chat_template = (NANO / "chat_template.jinja").read_text(encoding="utf-8")
    return wrapped


def teach_full_width(model, tokenizer) -> None:
    """People type full-width marks and digits, the generator writes ASCII only: give each the ASCII one's embedding.

    A normalizer would do it too, but transformers' Qwen2 tokenizer brings its own and drops the file's."""
    from tokenizers import AddedToken

    tokenizer.add_tokens([AddedToken(mark, special=False, normalized=False) for mark in FULL_WIDTH])
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    rows = model.get_input_embeddings().weight.data
    for full, half in zip(FULL_WIDTH, HALF_WIDTH, strict=True):
        rows[tokenizer.convert_tokens_to_ids(full)] = rows[tokenizer.encode(half)[0]]

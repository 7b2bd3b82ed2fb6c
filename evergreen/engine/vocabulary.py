"""What tokens are to those who read: bytes, text, and which of them end an answer."""

import codecs
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evergreen.model.load import LoadedModel

HALF = "\ufffd"  # how decoders show bytes that are not a character yet
CONTEXT_TOKENS = 8  # decoded again with each token, for decoders that drop a space at the start


class Vocabulary:
    """A tokenizer token by token. Where its tokens are bytes (Qwen's, Llama 3's, GPT's), they are joined here: its own
    `decode` takes 8 us a token."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self.is_bytes = _is_byte_level(tokenizer)
        self._special = _special_ids(tokenizer) if self.is_bytes else frozenset()
        self._bytes: dict[int, bytes] = {}

    def bytes_of(self, token: int) -> bytes:
        """A token's bytes, those of a special one too."""
        if token not in self._bytes:
            self._bytes[token] = self._read(token)
        return self._bytes[token]

    def text_of(self, token: int) -> str:
        return self.bytes_of(token).decode("utf-8", errors="replace")

    def characters(self) -> "Callable[[int], str]":
        """A function from an answer's tokens, one after the other, to its characters, each as soon as it is whole.
        Special tokens have none."""
        return self._join_bytes() if self.is_bytes else _Decoded(self.tokenizer)

    def _join_bytes(self) -> Callable[[int], str]:
        decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode
        return lambda token: "" if token in self._special else decode(self.bytes_of(token))

    def _read(self, token: int) -> bytes:
        if not self.is_bytes:
            return self.tokenizer.decode([token], skip_special_tokens=False).encode()
        name = self.tokenizer.convert_ids_to_tokens(token) or ""
        if all(character in BYTE_OF for character in name):
            return bytes(BYTE_OF[character] for character in name)
        return name.encode()


class _Decoded:
    """Characters of any tokenizer by its own `decode` of a short tail."""

    def __init__(self, tokenizer: Any):
        self.tokenizer, self.tail, self.num_sent = tokenizer, [], 0

    def __call__(self, token: int) -> str:
        self.tail.append(token)
        text = self._decode()
        whole = text.rstrip(HALF)
        new, self.num_sent = whole[self.num_sent :], max(self.num_sent, len(whole))
        if whole == text and len(self.tail) > 2 * CONTEXT_TOKENS:
            self.tail = self.tail[-CONTEXT_TOKENS:]
            self.num_sent = len(self._decode())
        return new

    def _decode(self) -> str:
        return self.tokenizer.decode(self.tail, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def eos_ids(loaded: "LoadedModel") -> frozenset[int]:
    """Tokens that end an answer: the model's own, the tokenizer's, and ChatML's end of turn where it is one token."""
    own = getattr(loaded.model.generation_config, "eos_token_id", None)
    ids = {*(own if isinstance(own, list | tuple) else [own]), loaded.tokenizer.eos_token_id}
    end_of_turn = loaded.tokenizer.convert_tokens_to_ids("<|im_end|>")
    if end_of_turn != loaded.tokenizer.unk_token_id:
        ids.add(end_of_turn)
    return frozenset(ids - {None})


def _is_byte_level(tokenizer: Any) -> bool:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return type(getattr(backend, "decoder", None)).__name__ == "ByteLevel"


def _special_ids(tokenizer: Any) -> frozenset[int]:
    added = tokenizer.backend_tokenizer.get_added_tokens_decoder()
    return frozenset(token for token, what in added.items() if what.special)


def _byte_of() -> dict[str, int]:
    """GPT-2's writing of bytes as printable characters, read backwards."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


BYTE_OF = _byte_of()

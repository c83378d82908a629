"""Text to token ids and back: characters, or byte pairs learned here.

`char`: every frequent character is a token; rare ones become U+FFFD, the replacement character.
`bpe`:  byte-level byte-pair encoding (Sennrich et al., 2016; the byte-level form is GPT-2's). Start with the 256
        bytes; again and again join the most frequent pair of neighbours into a new token. Learning is done here, in
        Python, once; encoding is tiktoken's, which is fast.
`gpt2`: GPT-2's own 50,257 byte pairs. tiktoken downloads them at first use, into TIKTOKEN_CACHE_DIR if that is set.

    learn_bpe("aaabdaaabac", 258): the commonest pair is (a, a) -> token 256; then (aa, a) or (a, b) -> token 257.

A tokenizer is described by a plain dict, stored in meta.json and in every checkpoint.
"""

import base64
import re
import sys
from collections import Counter, defaultdict

import numpy as np

from checkpoint import UserError

RARE = "\ufffd"
END = "<|endoftext|>"  # stands between documents; a token of GPT-2's, and of no other tokenizer here
PATTERN = r"[A-Za-z]+| [A-Za-z]+|[0-9]+| [0-9]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s"  # pairs never cross these pieces


def learn_char(pieces, min_count=20):
    """A char tokenizer's description: the characters that a text, given in pieces, has at least min_count times, and RARE."""
    counts = Counter()
    for piece in pieces:
        counts.update(piece)
    return {"kind": "char", "characters": sorted(c for c, n in counts.items() if n >= min_count and c != RARE) + [RARE]}


def learn_bpe(pieces, vocab_size, longest=256):
    """A byte-pair tokenizer's description: 256 bytes and vocab_size - 256 joined pairs, most frequent first, for a text given in pieces.

    Works on distinct words with their counts, and after a merge recounts only the words that hold the pair. A longer word
    than `longest` characters (a line of dashes, a text without spaces) counts as several.
    """
    word_counts = Counter()
    for piece in pieces:
        for word in re.findall(PATTERN, piece):
            word_counts.update(word[i : i + longest] for i in range(0, len(word), longest))
    words = [([bytes([b]) for b in word.encode()], n) for word, n in word_counts.items()]
    pair_counts, pair_words = Counter(), defaultdict(set)
    for i, (parts, n) in enumerate(words):
        for pair in zip(parts, parts[1:]):
            pair_counts[pair] += n
            pair_words[pair].add(i)
    tokens = [bytes([b]) for b in range(256)]
    known = set(tokens)
    while len(tokens) < vocab_size and pair_counts:
        best = max(pair_counts, key=lambda pair: (pair_counts[pair], pair))  # ties by bytes: the same on every machine
        if pair_counts[best] < 2:
            break
        joined = best[0] + best[1]
        if joined not in known:  # two pairs can spell the same bytes
            known.add(joined)
            tokens.append(joined)
        for i in pair_words.pop(best):
            parts, n = words[i]
            for pair in zip(parts, parts[1:]):
                pair_counts[pair] -= n
            merged = []
            for part in parts:
                if merged and (merged[-1], part) == best:
                    merged[-1] = joined
                else:
                    merged.append(part)
            words[i] = (merged, n)
            for pair in zip(merged, merged[1:]):
                pair_counts[pair] += n
                pair_words[pair].add(i)
        del pair_counts[best]
    return {"kind": "bpe", "tokens": [base64.b64encode(token).decode() for token in tokens]}


def gpt2_encoding():
    """GPT-2's tiktoken.Encoding; UserError if it is not on this machine and cannot be downloaded."""
    import tiktoken

    try:
        return tiktoken.get_encoding("gpt2")
    except Exception as error:  # tiktoken lets through whatever the download raises
        raise UserError(f"GPT-2's tokens are not here and cannot be downloaded ({type(error).__name__}): set TIKTOKEN_CACHE_DIR to a folder that has them, or go online once") from error


class Tokenizer:
    """encode(text) -> ids, decode(ids) -> text, vocab_size; made from a description. Encoding may run in several threads at once."""

    def __init__(self, description):
        self.description = description
        if description["kind"] == "char":
            self.characters = description["characters"]
            self.ids = {c: i for i, c in enumerate(self.characters)}
            self.vocab_size = len(self.characters)
            self.table = np.full(sys.maxunicode + 1, self.ids[RARE], np.uint16)  # of every code point
            self.table[[ord(c) for c in self.characters]] = np.arange(self.vocab_size)
        elif description["kind"] == "gpt2":
            self.bpe = gpt2_encoding()
            self.vocab_size = self.bpe.n_vocab
        else:
            import tiktoken

            ranks = {base64.b64decode(token): i for i, token in enumerate(description["tokens"])}
            self.bpe = tiktoken.Encoding("bpe", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})
            self.vocab_size = len(ranks)

    def encode(self, text):
        """The ids of the text, uint16. GPT-2's tokenizer makes one token of END; the text of others should not have it."""
        if self.description["kind"] == "char":
            return self.table[np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)]
        special = {END} if self.description["kind"] == "gpt2" else set()
        return self.bpe.encode_to_numpy(text, allowed_special=special, disallowed_special=()).astype(np.uint16)

    def decode(self, ids):
        if self.description["kind"] == "char":
            return "".join(self.characters[i] for i in ids)
        return self.bpe.decode(list(ids))  # bytes that are not UTF-8 become U+FFFD

    def unknown(self, text):
        """The characters of `text` that this tokenizer cannot write, in order; byte pairs can write any."""
        if self.description["kind"] == "char":
            return list(dict.fromkeys(c for c in text if c not in self.ids or c == RARE))
        return []

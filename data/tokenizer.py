"""Tokenizers: text to token ids and back.

    word    every frequent word or mark is a token; rare words become [unk]. For stories: of another
            text the blanks are lost, and words break at apostrophes
    char    every frequent character is a token; rare characters become U+FFFD
    bpe     byte-level byte-pair encoding (BPE), learned here
    gpt2    GPT-2's own byte pairs, which tiktoken downloads at first use

BPE (Sennrich et al., 2016; the byte-level form is GPT-2's) starts with the 256 bytes. It joins
the most frequent pair of neighbouring tokens into a new token, and repeats this:

    learn_bpe(["aaabdaaabac"], 259) adds the tokens "aa", "aaa" and "aaab", in this order.

tiktoken does the encoding, because it is fast. A tokenizer is described by a plain dict, which is
stored in meta.json and in every checkpoint. Read next: tokens.py.
"""

import base64
import codecs
import re
from collections import Counter, defaultdict

import numpy as np
from tqdm import tqdm

from config.command import stop

RARE = "\ufffd"  # the Unicode replacement character
PAD = "[pad]"  # the padding token of word tokens, after the end of a text
UNKNOWN = "[unk]"  # any word without a token
MARKS = ".,;:!?"  # they follow a word without a blank
END = "<|endoftext|>"  # between documents; a token of GPT-2, and of no other tokenizer here

# Text is split into these words before BPE, so no token spans two words.
PATTERN = r"[A-Za-z]+| [A-Za-z]+|[0-9]+| [0-9]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s"

# 50,257 rounded up to a multiple of 64, which makes the largest product of a network faster on a
# GPU. The last 47 ids are not of any text, and decode to "".
GPT2_VOCAB_SIZE = 50304

# ------------------------------------------------------------------------------------------------
# words


def split_words(text):
    """The words and marks of a text, a list of str. Blanks are left out."""
    return re.findall(r"\[pad\]|\[unk\]|\w+|[^\w\s]|\n", text)


def spaced_words(words):
    """The words, each with the blank before it that the text has: none before MARKS, around a line
    end or at the start."""
    spaced, before = [], "\n"
    for word in words:
        close = word in MARKS or "\n" in (word, before)
        spaced.append(word if close else f" {word}")
        before = word
    return spaced


def join_words(words):
    """The text of a list of words. The blanks of a text with other marks are not those it had."""
    return "".join(spaced_words(words))


# ------------------------------------------------------------------------------------------------
# learning a tokenizer from text


def learn(kind, pieces, vocab_size, min_count=20):
    """The description of a tokenizer for a text: an iterable of str, its pieces, cut between words.

    word: the `vocab_size` most frequent ones, with PAD and UNKNOWN. char: those that occur at least
    `min_count` times, and RARE. bpe: see learn_bpe.
    """
    if kind == "gpt2":
        return {"kind": "gpt2"}
    if kind == "bpe":
        return learn_bpe(pieces, vocab_size)
    counts = Counter()
    for piece in pieces:
        counts.update(split_words(piece) if kind == "word" else piece)
    if kind == "word":
        by_count = sorted(counts, key=lambda word: (-counts[word], word))
        return describe_words(set(by_count[: vocab_size - 2]))
    frequent = [c for c, n in counts.items() if n >= min_count and c != RARE]
    return {"kind": "char", "characters": [*sorted(frequent), RARE]}


def describe_words(words):
    """The description of a word tokenizer for a set of words."""
    return {"kind": "word", "words": [PAD, UNKNOWN, *sorted(words - {PAD, UNKNOWN})]}


def learn_bpe(pieces, vocab_size):
    """{"kind": "bpe", "tokens": [...]}: 256 bytes, then the joined pairs in the order in which they
    were learned, in base64. Fewer than `vocab_size` if no pair occurs twice.

    Each distinct word is stored once, with its count. After a merge only the words that hold the
    pair are counted again, which is what makes learning fast.
    """
    words = [([bytes([byte]) for byte in w.encode()], n) for w, n in count_words(pieces).items()]
    counts = Counter()  # pair of neighbours -> how often it occurs in the text
    words_with = defaultdict(set)  # pair -> indices of the words that may hold it

    def count_pairs(index, sign):
        parts, n = words[index]
        for pair in zip(parts, parts[1:]):
            counts[pair] += sign * n
            words_with[pair].add(index)

    for index in range(len(words)):
        count_pairs(index, +1)
    tokens = {bytes([byte]): None for byte in range(256)}  # an ordered set
    with tqdm(total=vocab_size - 256, desc="learning byte pairs", leave=False, delay=1) as bar:
        while len(tokens) < vocab_size and counts:
            most = max(counts.values())
            if most < 2:
                break
            best = max(pair for pair in counts if counts[pair] == most)  # the same everywhere
            for index in words_with.pop(best):
                count_pairs(index, -1)
                words[index] = merge(words[index][0], best), words[index][1]
                count_pairs(index, +1)
            tokens[best[0] + best[1]] = None  # two pairs may spell the same bytes
            bar.update(len(tokens) - 256 - bar.n)
    return {"kind": "bpe", "tokens": [base64.b64encode(token).decode() for token in tokens]}


def count_words(pieces, most=2**19):
    """{word: count}, until the words have `most` characters together: more of a text would hardly
    change the pairs."""
    whole = Counter()
    for piece in pieces:
        whole.update(re.findall(PATTERN, piece))
        if sum(map(len, whole)) > most:
            break
    # words without an end, as in a protein, are cut short: every merge would touch all of them
    longest = 256 if sum(map(len, whole)) < 20 * len(whole) else 6
    counts = Counter()
    for word, n in whole.items():
        for i in range(0, len(word), longest):
            counts[word[i : i + longest]] += n
    return counts


def merge(parts, pair):
    """The tokens `parts` of a word, with every occurrence of `pair` joined, from left to right."""
    merged = []
    for part in parts:
        if merged and (merged[-1], part) == pair:
            merged[-1] += part
        else:
            merged.append(part)
    return merged


# ------------------------------------------------------------------------------------------------
# encoding and decoding


class Tokenizer:
    """Encodes and decodes text, as a description (a dict) says.

    .vocab_size     V; token ids are 0 to V - 1
    .ids            of char and word: {token: id}
    .unknown_id     of char and word: the id of all that has no token of its own; else None
    """

    def __init__(self, description):
        self.description, self.kind, self.unknown_id = description, description["kind"], None
        if self.kind in ("char", "word"):
            word = self.kind == "word"
            self.split = split_words if word else list
            self.tokens = description["words" if word else "characters"]
            self.ids = {token: i for i, token in enumerate(self.tokens)}
            self.unknown_id = self.ids[UNKNOWN if word else RARE]
            self.vocab_size = len(self.tokens)
        elif self.kind == "bpe":
            from tiktoken import Encoding

            ranks = {base64.b64decode(token): i for i, token in enumerate(description["tokens"])}
            self.bpe = Encoding("bpe", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})
            self.vocab_size = len(ranks)
        else:
            from tiktoken import get_encoding

            try:
                self.bpe = get_encoding("gpt2")
            except Exception as error:  # tiktoken passes on whatever the download raises
                stop("GPT-2's tokens are not on this machine and cannot be downloaded "
                     f"({type(error).__name__}): go online once, or set TIKTOKEN_CACHE_DIR")
            self.vocab_size = GPT2_VOCAB_SIZE

    def encode(self, text):
        """The token ids of a str: (number of tokens,) uint16. In GPT-2's tokens END is one."""
        if self.unknown_id is not None:
            ids = [self.ids.get(token, self.unknown_id) for token in self.split(text)]
        else:
            special = {END} if self.kind == "gpt2" else set()
            ids = self.bpe.encode_to_numpy(text, allowed_special=special, disallowed_special=())
        return np.array(ids, np.uint16)

    def decode(self, ids):
        """The str of a list of ids. Invalid UTF-8 becomes U+FFFD. PAD at the end is left out."""
        return "".join(self.pieces(ids))

    def pieces(self, ids):
        """The str of every token, with the blanks between words: what a terminal colours. A
        character of several byte tokens is held back until the last of them. MASK, whose id is V,
        is "_"."""
        if self.unknown_id is not None:
            words = [self.tokens[i] if i < self.vocab_size else "_" for i in ids]
        if self.kind == "char":
            return words
        if self.kind == "word":
            end = max((i for i, word in enumerate(words, start=1) if word != PAD), default=0)
            return spaced_words(words[:end]) + [""] * (len(words) - end)
        utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        known = self.bpe.n_vocab
        tokens = [self.bpe.decode_single_token_bytes(i) if i < known
                  else b"" if i < self.vocab_size else b"_" for i in ids]
        return [utf8.decode(token, i == len(tokens)) for i, token in enumerate(tokens, start=1)]

    def unknown(self, text):
        """The distinct characters or words of `text` that have no token of their own, in order."""
        if self.unknown_id is None:
            return []
        tokens = dict.fromkeys(self.split(text))
        return [t for t in tokens if self.ids.get(t, self.unknown_id) == self.unknown_id]

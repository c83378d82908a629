"""Tokenizers: text to token ids and back.

    word    Every frequent word or mark is a token. Rare words become [unk].
    char    Every frequent character is a token. Rare characters become U+FFFD.
    bpe     Byte-level byte-pair encoding (BPE), learned here.
    gpt2    GPT-2's own 50,257 byte pairs. tiktoken downloads them at first use, into the folder
            TIKTOKEN_CACHE_DIR if that is set.

BPE (Sennrich et al., 2016; the byte-level form is GPT-2's) starts with the 256 bytes. It joins
the most frequent pair of neighbouring tokens into a new token, and repeats this:

    learn_bpe(["aaabdaaabac"], 259) adds the tokens "aa", "aaa" and "aaab", in this order.

The pairs are learned once, in Python. tiktoken does the encoding, because it is fast.
A tokenizer is described by a plain dict. It is stored in meta.json and in every checkpoint.
Read next: dataset.py.
"""

import base64
import re
import sys
from collections import Counter, defaultdict

import numpy as np
from tqdm import tqdm

from common.command import UserError

RARE = "\ufffd"  # the Unicode replacement character
PAD = "[pad]"  # the padding token of word tokens, after the end of a text
UNKNOWN = "[unk]"  # any word without a token
MARKS = ".,;:!?"  # they follow a word without a blank
END = "<|endoftext|>"  # between documents; a token of GPT-2, and of no other tokenizer here

# Text is split into these words before BPE, so no token spans two words.
PATTERN = r"[A-Za-z]+| [A-Za-z]+|[0-9]+| [0-9]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s"


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


def learn_char(pieces, min_count=20):
    """The description of a char tokenizer for a text.

    pieces: iterable of str, the text.
    Returns {"kind": "char", "characters": [...]}: the characters that occur at least `min_count`
    times, sorted, then RARE.
    """
    counts = Counter()
    for piece in pieces:
        counts.update(piece)
    frequent = [c for c, count in counts.items() if count >= min_count and c != RARE]
    return {"kind": "char", "characters": [*sorted(frequent), RARE]}


def learn_word(pieces, vocab_size):
    """The description of a word tokenizer for a text.

    pieces:     iterable of str, the text, cut between words.
    vocab_size: number of tokens, the first two of which are PAD and UNKNOWN.
    Returns {"kind": "word", "words": [...]}, the most frequent words, sorted.
    """
    counts = Counter()
    for piece in pieces:
        counts.update(split_words(piece))
    by_count = sorted(counts, key=lambda word: (-counts[word], word))
    return describe_words(set(by_count[: vocab_size - 2]))


def describe_words(words):
    """The description of a word tokenizer for a set of words."""
    return {"kind": "word", "words": [PAD, UNKNOWN, *sorted(words - {PAD, UNKNOWN})]}


def learn_bpe(pieces, vocab_size, longest=256):
    """The description of a byte-pair tokenizer for a text.

    pieces:     iterable of str, the text.
    vocab_size: number of tokens, at least 256. Fewer are learned if no pair occurs twice.
    longest:    a longer word, such as a line of dashes, is counted as several words.
    Returns {"kind": "bpe", "tokens": [...]}: 256 bytes, then the joined pairs in the order in
    which they were learned, in base64.
    """
    pairs = PairCounts(count_words(pieces, longest))
    tokens = [bytes([byte]) for byte in range(256)]
    known = set(tokens)
    total = vocab_size - len(tokens)
    with tqdm(total=total, desc="learning byte pairs", unit="pair", leave=False, delay=1) as bar:
        while len(tokens) < vocab_size and pairs.counts:
            best = pairs.most_frequent()
            if pairs.counts[best] < 2:
                break
            joined = best[0] + best[1]
            if joined not in known:  # two pairs can spell the same bytes
                known.add(joined)
                tokens.append(joined)
                bar.update()
            pairs.merge(best)
    return {"kind": "bpe", "tokens": [base64.b64encode(token).decode() for token in tokens]}


def count_words(pieces, longest):
    """{word: count}. Words follow PATTERN, and are split after every `longest` characters."""
    counts = Counter()
    for piece in pieces:
        for word in re.findall(PATTERN, piece):
            counts.update(word[i : i + longest] for i in range(0, len(word), longest))
    return counts


def merge_pair(parts, pair):
    """The tokens `parts` of a word, with every occurrence of `pair` joined, from left to right."""
    merged = []
    for part in parts:
        if merged and (merged[-1], part) == pair:
            merged[-1] += part
        else:
            merged.append(part)
    return merged


class PairCounts:
    """How often each pair of neighbouring tokens occurs, kept up to date while pairs are merged.

    Each distinct word is stored once, with its count. After a merge only the words that hold the
    pair are recounted, which is what makes learning fast.
    """

    def __init__(self, word_counts):
        self.words = []  # (tokens of the word, how often the word occurs)
        for word, count in word_counts.items():
            self.words.append(([bytes([byte]) for byte in word.encode()], count))
        self.counts = Counter()  # pair -> how often it occurs in the text
        self.words_with = defaultdict(set)  # pair -> indices of the words that may hold it
        for index in range(len(self.words)):
            self.add_word(index)

    def add_word(self, index):
        parts, count = self.words[index]
        for pair in zip(parts, parts[1:]):
            self.counts[pair] += count
            self.words_with[pair].add(index)

    def remove_word(self, index):
        parts, count = self.words[index]
        for pair in zip(parts, parts[1:]):
            self.counts[pair] -= count

    def most_frequent(self):
        """The pair with the highest count. Ties go to the larger bytes, on every machine."""
        return max(self.counts, key=lambda pair: (self.counts[pair], pair))

    def merge(self, pair):
        """Joins the pair in every word."""
        for index in self.words_with.pop(pair):
            self.remove_word(index)
            parts, count = self.words[index]
            self.words[index] = (merge_pair(parts, pair), count)
            self.add_word(index)
        del self.counts[pair]


# ------------------------------------------------------------------------------------------------
# encoding and decoding


def gpt2_encoding():
    """GPT-2's tiktoken.Encoding. UserError if it is neither cached nor can be downloaded."""
    import tiktoken

    try:
        return tiktoken.get_encoding("gpt2")
    except Exception as error:  # tiktoken passes on whatever the download raises
        raise UserError(
            "GPT-2's tokens are not on this machine and cannot be downloaded "
            f"({type(error).__name__}): set TIKTOKEN_CACHE_DIR to a folder that has them, "
            "or go online once"
        ) from error


def check_description(description):
    """ValueError if this is no description of a tokenizer: a file may have been edited."""
    lists = {"char": "characters", "word": "words", "bpe": "tokens"}
    kind = description.get("kind") if isinstance(description, dict) else None
    if kind == "gpt2":
        return
    values = description.get(lists[kind]) if isinstance(kind, str) and kind in lists else None
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ValueError("its tokenizer has no list of tokens")
    if len(set(values)) < len(values) or len(values) > 2**16:
        raise ValueError("its tokenizer has a token twice, or too many")
    if kind == "bpe":
        values = [base64.b64decode(value) for value in values]
        needed = {bytes([i]) for i in range(256)}
    else:
        needed = {RARE} if kind == "char" else {PAD, UNKNOWN}
    if not needed <= set(values) or len(set(values)) < len(values):
        raise ValueError("its tokenizer lacks a token that it needs")
    if kind == "char" and max(map(len, values)) > 1:
        raise ValueError("its tokenizer has characters that are longer than one")


class Tokenizer:
    """Encodes and decodes text, as a description (a dict) says.

    .vocab_size     V; token ids are 0 to V - 1
    .description    the dict
    UserError if the description is GPT-2's and its tokens are not available (gpt2_encoding).
    """

    def __init__(self, description):
        self.description = description
        if description["kind"] == "char":
            self.characters = description["characters"]
            self.ids = {c: i for i, c in enumerate(self.characters)}
            self.vocab_size = len(self.characters)
            # the id of every Unicode code point, so that encoding is one look-up per character
            self.table = np.full(sys.maxunicode + 1, self.ids[RARE], np.uint16)
            self.table[[ord(c) for c in self.characters]] = np.arange(self.vocab_size)
        elif description["kind"] == "word":
            self.words = description["words"]
            self.ids = {word: i for i, word in enumerate(self.words)}
            self.vocab_size = len(self.words)
        elif description["kind"] == "gpt2":
            self.bpe = gpt2_encoding()
            self.vocab_size = self.bpe.n_vocab
        else:
            import tiktoken

            ranks = {base64.b64decode(token): i for i, token in enumerate(description["tokens"])}
            self.bpe = tiktoken.Encoding(
                "bpe", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={}
            )
            self.vocab_size = len(ranks)

    def encode(self, text):
        """The token ids of a str: (number of tokens,) uint16. Safe to call from several threads.

        In GPT-2's tokens END is one token. The text should not contain END for other tokenizers.
        """
        if self.description["kind"] == "char":
            code_points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
            return self.table[code_points]
        if self.description["kind"] == "word":
            unknown = self.ids[UNKNOWN]
            ids = [self.ids.get(word, unknown) for word in split_words(text)]
            return np.array(ids, np.uint16)
        special = {END} if self.description["kind"] == "gpt2" else set()
        ids = self.bpe.encode_to_numpy(text, allowed_special=special, disallowed_special=())
        return ids.astype(np.uint16)

    def encode_rows(self, texts, length):
        """Word tokens of texts that have at most `length`, PAD after each: (N, length) uint16."""
        rows = np.full((len(texts), length), self.ids[PAD], np.uint16)
        for row, text in zip(rows, texts):
            ids = self.encode(text)
            row[: len(ids)] = ids
        return rows

    def decode(self, ids):
        """The str of an iterable of int, each from 0 to V - 1. Invalid UTF-8 becomes U+FFFD. PAD at
        the end is left out."""
        if self.description["kind"] == "word":
            return "".join(self.pieces(ids))
        if self.description["kind"] == "char":
            return "".join(self.characters[i] for i in ids)
        return self.bpe.decode(list(ids))

    def pieces(self, ids):
        """The str of every token, with the blanks between words: what a terminal colours."""
        if self.description["kind"] != "word":
            return [self.decode([i]) for i in ids]
        words = [self.words[i] for i in ids]
        end = len(words)
        while end and words[end - 1] == PAD:
            end -= 1
        return spaced_words(words[:end]) + [""] * (len(words) - end)

    def unknown(self, text):
        """The distinct characters or words of `text` that have no token, in order; none for byte
        pairs."""
        kind = self.description["kind"]
        if kind == "char":
            return list(dict.fromkeys(c for c in text if c not in self.ids or c == RARE))
        if kind == "word":
            words = split_words(text)
            return list(dict.fromkeys(w for w in words if w not in self.ids or w == UNKNOWN))
        return []

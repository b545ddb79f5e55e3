"""From text to tokens, as TensorFlow operations: one code counts the words of a vocabulary and looks them up."""

from __future__ import annotations

import tensorflow as tf

MAX_BYTES = 10_000
"""Text beyond this is not read: no title is longer, and a request must not be able to occupy a server."""

_APOSTROPHES = r"['’ʼ]"
_SEPARATORS = r"[\p{P}\p{Z}\p{Cc}$+<=>^`|~]+"


def tokenize(texts: tf.Tensor, ngrams: int) -> tf.RaggedTensor:
    """Words in lower case, then pairs, triples ... of neighbouring words joined by a space.

    Punctuation, all kinds of space and the ASCII symbols separate words; other symbols (emoji) are words or parts
    of words. An apostrophe is left out: "don't" is one word. Bytes that are no UTF-8 become U+FFFD.

    Args:
        texts: [batch] string.
        ngrams: the longest run of words, at least 1.

    Returns:
        [batch, (tokens)] string.
    """
    short = tf.strings.substr(texts, 0, MAX_BYTES, unit="BYTE")
    valid = tf.strings.unicode_transcode(short, "UTF-8", "UTF-8", errors="replace")
    lower = tf.strings.lower(valid, encoding="utf-8")
    joined = tf.strings.regex_replace(lower, _APOSTROPHES, "")
    spaced = tf.strings.regex_replace(joined, _SEPARATORS, " ")
    words = tf.strings.split(spaced)
    if ngrams == 1:
        return words
    return tf.strings.ngrams(words, tuple(range(1, ngrams + 1)), separator=" ")

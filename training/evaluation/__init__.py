"""A trained model measured: how likely it finds documents, and how right the words are that were asked of it.

In: a model with sequences; what it said, and what is true. Out: losses by modality, BLEU, CIDEr, exact match.

    losses.py   sequences to the loss of their codes and words
    words.py    captions and answers beside the true ones
    subject.py  a model, asked for losses, drawings, captions and answers
"""

"""Pairs of media and captions -> a captioner: any image-text-to-text model of transformers, fine-tuned or from scratch.

In: a `CaptionerTrainConfig`, pairs. Out: a folder with model and processor that transformers loads, a log, curves,
checkpoints.

    config.py   what is trained, and how
    pairs.py    pairs as the training asks for them; who is held out
    loop.py     its training
    learner.py  the model in training: pairs to a loss, to an update, to a folder
    answers.py  a caption as the tokens that a chat template ends with
    loaded.py   given weights, and LoRA beside them
    scratch.py  a small model and its processor without any weights given
    scores.py   captions beside the true ones: exact match, CIDEr
"""

"""The log of a training -> what people look at, beside the terminal.

In: log.jsonl. Out: loss curves, and what trackers are told.

    trackers.py  TensorBoard, Weights & Biases and MLflow, told of it
    events.py    TensorBoard's files
    curves.py    loss curves
"""

"""Packs -> a loss, and the update that lowers it.

In: ids, kinds, positions and documents of packs. Out: the weighted loss, its sums by kind, optimizers.

    model.py       Emu3ForCausalLM and the loss of a pack
    preference.py  the loss of choices between drawings
    attention.py   documents in a pack are blind to each other
    split.py       a pack shared by several workers
    flops.py       what a step computes, and its share of a GPU's peak
    products.py    float32 by oneDNN, where MKL leaves a CPU idle
    loss.py        linear + cross-entropy in chunks
    optimizer.py   AdamW, and Muon for matrices
"""

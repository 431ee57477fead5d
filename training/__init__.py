"""Token shards -> a trained, sampling transformer.

In: shards and a `TrainConfig`. Out: a model that plain transformers loads, and pictures drawn from it. `data/` packs
documents, `model/` computes their loss, `parallel/` shares it among workers, `run/` steps and restarts, `checkpoints/`
saves, `tracking/` tells; `captioner/` trains what writes captions; `sampling/` asks the model and `evaluation/`
measures it.

    config.py     what is trained
    resources.py  how, and what is looked at meanwhile
    pack.py       documents side by side, one forward pass
    job.py        a training as it is asked for and as it ends
    lora.py       small matrices that learn beside weights that do not
    published.py  the layouts in which Emu3's language model stands
    trained.py    the folder of a finished training to its model
    whole.py      model and vision tokenizer in one folder, for plain transformers
"""

"""Images and clips -> the weights of a vision tokenizer, or better ones from given ones.

In: a `VisionTrainConfig`, pictures as arrays. Out: a folder that plain transformers loads, a log, checkpoints.

    config.py      the config of its training
    loop.py        its training
    trainee.py     the model in training
    start.py       its first weights, given ones widened
    checkpoint.py  what a stopped one goes on from
    batches.py     crops of images and clips
    losses.py      quantizers with gradients, discriminator, losses
    codebook.py    a codebook fitted to latents, with anchors for what repeats
    motion.py      motion learned from stills, in new dimensions and codes
    parallel.py    several workers, one update
    pictures.py    its curves and reconstructions
"""

"""One model on several workers.

In: the model of a job and the workers' place among each other. Out: what passes packs, whose gradients are of them all.

    workers.py  groups that share packs; copies of the weights, or shards
    tensor.py   matrices of the layers in parts
    memory.py   what a step needs of a worker's memory
"""

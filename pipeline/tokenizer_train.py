"""`tokenmill tokenizer train`: a vision tokenizer trained on the kept media of the catalog.

Curates first (a known corpus is not read again), then loads kept images and clips into memory, as many as
`tokenizer.max_images` and the like allow; see tokenizer/vq_train.py for the recipe.
"""

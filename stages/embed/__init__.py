"""Small views -> what models say of them: aesthetic, likeness to the caption, watermark, embeddings.

In: views, weights by hub name or path. Out: score columns.

    score_clip.py    views to aesthetic, likeness to the caption, watermark
    likeness.py      captions and stored embeddings to likeness
    models.py        OpenCLIP's and transformers' models behind one interface
    linear_heads.py  linear heads on embeddings, LAION's among them
"""

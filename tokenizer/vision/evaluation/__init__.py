"""How good a vision tokenizer is.

In: a tokenizer and pictures of one size. Out: PSNR, SSIM, LPIPS, FID, motion, use of the codebook, and the best JPEG of
as many bits beside them.

    evaluate.py    all its figures on media of one size
    metrics.py     PSNR, SSIM, motion, use of the codebook
    perceptual.py  LPIPS and FID, from weights given by path
    jpeg.py        the best JPEG of so many bits
"""

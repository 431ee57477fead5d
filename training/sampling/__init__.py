"""A trained model -> what it draws and says.

In: prompts, clips to continue, media to tell of, questions, beginnings of texts. Out: codes in grids, and words.

    sampler.py  what can be asked of a model
    media.py    sequences of media whose grid says where each token stands: only codes are drawn
    words.py    sequences of words up to their end
    batches.py  which sequences go through together, and how far they are
    choose.py   scores to ids: top-k, top-p, temperature, seeds
    decoder.py  the layers, token by token: packed weights, a cache of fixed size
"""

from tokenmill.training.sampling.batches import Told as Told
from tokenmill.training.sampling.choose import Choice as Choice
from tokenmill.training.sampling.media import Grid as Grid
from tokenmill.training.sampling.sampler import Sampler as Sampler

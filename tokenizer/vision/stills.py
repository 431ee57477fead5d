"""Networks for stills (`transformers`' ChameleonVQVAE and JanusVQVAE): pixels -> vectors and back.

The reference's own modules, without its whole matrix of distances (tokenizer/vision/vision_tokenizer.py searches in
chunks), without its loss, and at any size: the reference decodes one square size. Both learned pixels in -1..1, 16 px a
code. Chameleon's class in transformers is half a tokenizer, it has no decoder. As in the reference, Janus searches the
codebook as it stands, but decodes codes scaled to length 1.

Shapes: N pictures, H W pixels, h w codes, C channels, D dimensions of a code.
"""

from torch import Tensor
from torch.nn.functional import normalize
from transformers import ChameleonVQVAE, JanusVQVAE


class StillCodec:
    """ChameleonVQVAE or JanusVQVAE as VisionTokenizer calls it."""

    clips = False
    temporal_factor = 1

    def __init__(self, model: ChameleonVQVAE | JanusVQVAE) -> None:
        self._model = model
        self.decodes = isinstance(model, JanusVQVAE)
        self.spatial_factor = 2 ** (len(model.config.channel_multiplier) - 1)

    def encode_images(self, pixels_NCHW: Tensor) -> Tensor:
        """Pixels in -1..1 -> vectors (N, D, 1, h, w), not yet codes."""
        return self._model.quant_conv(self._model.encoder(pixels_NCHW)).unsqueeze(2)

    def decode_images(self, vectors_NDTHW: Tensor) -> Tensor:
        """Code vectors (N, D, 1, h, w) -> pixels in about -1..1, (N, 3, H, W)."""
        assert isinstance(self._model, JanusVQVAE)
        unit_NDHW = normalize(vectors_NDTHW[:, :, 0], dim=1)
        return self._model.decoder(self._model.post_quant_conv(unit_NDHW))

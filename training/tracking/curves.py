"""log.jsonl of a run -> a picture of its loss curves, such as one for captions, images, videos and documents each, with
those of held-out ones beside them and steps that stood out marked.
"""

import io
from collections.abc import Mapping

from matplotlib.figure import Figure

from tokenmill import storage
from tokenmill.storage.errors import TrainingError
from tokenmill.storage.run_log import read_log

_NAMES = {"text": "captions", "image": "images", "video": "videos", "document": "text documents"}
_NAMES |= {"preference": "preferences", "chosen_nll": "drawings that were chosen"}


def draw_curves(run_uri: str, png_uri: str, names: Mapping[str, str] = _NAMES) -> None:
    """Write the loss (nats per token) over the steps as PNG, a curve for each of `names`, the log's key -> what it is.

    Raises TrainingError for a run that logged nothing.
    """
    records = read_log(run_uri)
    if not records:
        raise TrainingError(f"{run_uri}: no log.jsonl yet; train first")
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for number, (name, label) in enumerate(names.items()):
        points = [(record["step"], record[name]) for record in records if name in record]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, linewidth=1, color=f"C{number}")
        points = [(record["step"], record["val"][name]) for record in records if name in record.get("val", {})]
        if points:
            axes.plot(*zip(*points, strict=True), "o--", label=f"{label}, held out", markersize=3, color=f"C{number}")
    if spikes := [spike["step"] for record in records for spike in record.get("spikes", [])]:
        axes.plot(spikes, [0.02] * len(spikes), "v", transform=axes.get_xaxis_transform(), color="0.3", label="spikes")
    axes.set(xlabel="step", ylabel="loss, nats per token", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=120)
    storage.write_bytes(png_uri, png.getvalue())

"""Nothing that comes from outside is executed: no pickle is read, no code of a model's folder runs."""

import ast
from pathlib import Path

import pytest
import torch

from tokenmill.stages.embed.linear_heads import HeadError, convert_head
from tokenmill.tokenizer.vision.convert import convert
from tokenmill.tokenizer.vision.weights import TokenizerLoadError

PROJECT = Path(__file__).resolve().parent.parent
PATHS = [
    path
    for house in ("storage", "tokenizer", "stages", "training", "pipeline")
    for path in (PROJECT / house).rglob("*.py")
]
# Between processes of ours, of what one of them made itself.
OWN_PICKLES = {"stages/table/worker_process.py"}


def calls(path: Path) -> list[tuple[str, ast.Call]]:
    nodes = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
    return [(ast.unparse(node.func), node) for node in nodes]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: str(path.relative_to(PROJECT)))
def test_no_code_from_outside_is_asked_for(path):
    for name, call in calls(path):
        options = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        if name.endswith("torch.load"):
            assert options.get("weights_only") == "True"
        if name.split(".")[0] in ("pickle", "cloudpickle", "dill"):
            assert str(path.relative_to(PROJECT)) in OWN_PICKLES
        assert options.get("trust_remote_code", "False") == "False"
        assert options.get("allow_pickle", "False") == "False"
        assert options.get("shell", "False") == "False"
        assert name not in ("eval", "exec", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load", "joblib.load")


class Deadly:
    """What a pickle of it does is to make a file."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return open, (str(self.mark), "w")


def test_pickles_of_others_do_not_run(tmp_path):
    mark = tmp_path / "executed"
    torch.save({"weight": Deadly(mark)}, tmp_path / "head.pth")
    with pytest.raises(HeadError):
        convert_head(tmp_path / "head.pth", tmp_path / "head.safetensors")
    folder = tmp_path / "model"
    folder.mkdir()
    torch.save({"weight": Deadly(mark)}, folder / "pytorch_model.bin")
    (folder / "config.json").write_text("{}")
    with pytest.raises(TokenizerLoadError, match="a pickle can run any code"):
        convert(str(folder), tmp_path / "converted")
    assert not mark.exists()

"""Questions about drawn scenes, each with its one right answer: a .jsonl that training reads as dialogues."""

import json
from pathlib import Path

from tokenmill.pipeline.demo.scenes import NUM_HELD_OUT, SCENE, Scene, split

NAME = ".dialogues.jsonl"  # of a corpus; a hidden file is no medium


def questions(scene: Scene) -> list[tuple[str, str]]:
    """(question, answer) pairs: how many, which colour, which shape, what stands where."""
    (shape, colour), *others = scene.objects
    asked = [("How many shapes are there?", str(len(scene.objects)))]
    asked += [(f"What colour is the {name}?", hue) for name, hue in scene.objects if _is_only(scene, 0, name)]
    asked += [(f"What shape is {hue}?", name) for name, hue in scene.objects]
    for other, hue in others:
        asked.append((f"What is {scene.relation} the {hue} {other}?", f"a {colour} {shape}"))
    return asked


def _is_only(scene: Scene, part: int, value: str) -> bool:
    return [each[part] for each in scene.objects].count(value) == 1


def write_questions(folder: Path, num_images: int) -> None:
    """Dialogues about the training scenes of a corpus (pipeline/demo/scenes.py)."""
    scenes, _ = split(0, num_images, NUM_HELD_OUT)
    names = (f"images/{SCENE}{index + 1:04d}.png" for index in range(len(scenes)))
    (folder / NAME).write_text("".join(dialogues(name, scene) for name, scene in zip(names, scenes, strict=True)))


def dialogues(name: str, scene: Scene) -> str:
    """Lines about one medium, each with one question: answers before it would tell the next."""
    asked = [[{"from": "human", "value": each}, {"from": "gpt", "value": answer}] for each, answer in questions(scene)]
    return "".join(json.dumps({"image": name, "conversations": turns}) + "\n" for turns in asked)

import math

import pyarrow as pa
import pytest

from tokenmill.stages.select.rules import Rule

SCHEMA = pa.schema(
    [
        ("width_px", pa.int32()),
        ("height_px", pa.int32()),
        ("aspect", pa.float64()),
        ("flow", pa.float64()),
        ("format", pa.string()),
        ("extension_fits", pa.bool_()),
    ]
)
TABLE = pa.Table.from_pylist(
    [
        {"width_px": 640, "height_px": 480, "aspect": 4 / 3, "flow": 0.1, "format": "jpeg", "extension_fits": True},
        {"width_px": 100, "height_px": 700, "aspect": 7.0, "flow": None, "format": "png", "extension_fits": False},
        {"width_px": 0, "height_px": 512, "aspect": None, "flow": 0.0, "format": None, "extension_fits": None},
    ],
    schema=SCHEMA,
)


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        ("min(width_px, height_px) >= 400", [True, False, False]),
        ("max(width_px, 600) == 600", [False, True, True]),
        ("aspect <= 5 and not (flow < 0.05)", [True, False, False]),
        ("aspect <= 5 or flow >= 0.05", [True, None, None]),
        ("flow > 0 or width_px > 50", [True, True, False]),
        ("0.05 <= flow <= 0.5", [True, None, False]),
        ("0.05 <= flow < width_px", [True, None, False]),
        ("format == 'jpeg'", [True, False, None]),
        ('format != "png" or extension_fits', [True, False, None]),
        ("extension_fits", [True, False, None]),
        ("true", [True, True, True]),
        ("not True", [False, False, False]),
        ("width_px * height_px / 1000 - 1 > -1 + 1", [True, True, False]),
        ("height_px / width_px > 5", [False, True, True]),
        ("width_px / 200 == 0.5", [False, True, False]),
        ("1 < 2", [True, True, True]),
    ],
)
def test_rules_evaluate_with_kleene_logic(keep: str, expected: list[bool | None]) -> None:
    rule = Rule("r", keep, SCHEMA)
    assert rule(TABLE).to_pylist() == expected
    assert [value for i in range(3) for value in rule(TABLE.slice(i, 1)).to_pylist()] == expected
    assert len(rule(TABLE.slice(0, 0))) == 0


def test_not_a_number_is_not_true() -> None:
    table = TABLE.set_column(3, SCHEMA.field("flow"), pa.array([math.nan, math.inf, 1.0]))
    assert Rule("r", "flow < 2", SCHEMA)(table).to_pylist() == [False, False, True]


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ("colorfulness > 1 and aspect < 2", "unknown column 'colorfulness'"),
        ("aspct < 5", "did you mean 'aspect'"),
        ("aspect", "has a number where a bool belongs"),
        ("aspect < 'wide'", "compares a number with a text"),
        ("aspect and flow > 1", "has a number where a bool"),
        ("min(format, 1) > 0", "has a text where a number"),
        ("__import__('os').system('true')", "may not contain"),
        ("min(aspect, key=flow) > 0", "may not contain"),
        ("min() > 0", "may not contain"),
        ("aspect[0] > 1", "may not contain"),
        ("aspect.real > 1", "may not contain"),
        ("aspect ** 2 > 1", "may not contain"),
        ("(lambda: true)()", "may not contain"),
        ("format in ('a', 'b')", "may not contain"),
        ("aspect is None", "may not contain"),
        ("aspect <", "is not an expression"),
        ("", "is not an expression"),
    ],
)
def test_wrong_rules_name_themselves(keep: str, message: str) -> None:
    with pytest.raises(ValueError, match="rule 'big'") as caught:
        Rule("big", keep, SCHEMA)
    assert message in str(caught.value)


def test_columns_are_known() -> None:
    assert Rule("r", "0 < flow < aspect or flow > 9", SCHEMA).columns == ["flow", "aspect", "flow"]

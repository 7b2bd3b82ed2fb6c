"""Imports go down only: a room uses the floors below it and never a neighbour."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "evergreen"
FLOORS = [
    {"records", "__init__"},
    {"home", "options", "database", "pictures"},
    {"settings"},
    {"model", "data", "registry", "feedback", "knowledge"},
    {"engine", "train", "continual"},
    {"evaluate", "chat"},
    {"report", "watch"},
    {"loop", "serve", "demo_knowledge"},
    {"demo", "doctor"},
    {"cli"},
    {"__main__"},
]
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def room_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).parts
    return parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [
                f"{node.module}.{alias.name}" if node.module == "evergreen" else node.module for alias in node.names
            ]
        else:
            continue
        for name in names:
            parts = (name or "").split(".")
            if parts[0] == "evergreen":
                rooms.add(parts[1] if len(parts) > 1 else "__init__")
    return {room if room in FLOOR_OF else "__init__" for room in rooms}


def test_every_room_has_a_floor():
    assert {room_of(path) for path in PACKAGE.rglob("*.py")} <= set(FLOOR_OF)


def test_imports_go_down_only():
    wrong = [
        f"{path.relative_to(PACKAGE)} imports {other}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for other in sorted(imported_rooms(path))
        if other != (room := room_of(path)) and FLOOR_OF[other] >= FLOOR_OF[room] and other != "__init__"
    ]
    assert not wrong, wrong


def test_nothing_but_the_demo_knows_the_nano_model_by_name():
    knows = [
        str(path.relative_to(PACKAGE))
        for path in sorted(PACKAGE.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value == "nano"
    ]
    assert set(knows) <= {"model/find.py", "demo.py", "settings/common.py", "settings/home.py"}, knows

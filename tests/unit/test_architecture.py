"""The house is built as it says: rooms, walls, one door to other programs, and imports that go one way."""

import ast
import os
import shutil
import statistics
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("flows", "tasks", "blocks", "deployments")
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"][
    "contracts"
]

MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
ROOMS = sorted(path.parent for path in (ROOT / "tasks").glob("*/__init__.py"))

_Function = ast.FunctionDef | ast.AsyncFunctionDef


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def _functions(path: Path) -> Iterator[tuple[str, int]]:
    for node in ast.walk(_tree(path)):
        if isinstance(node, _Function):
            yield f"{_name(path)}: {node.name}", (node.end_lineno or 0) - node.lineno + 1


def _imported(path: Path) -> Iterator[str]:
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


# Rooms


def test_the_rooms_are_found():
    assert {room.name for room in ROOMS} >= {"backup", "schema"}


@pytest.mark.parametrize("room", ROOMS, ids=_name)
def test_a_room_has_its_furniture(room: Path):
    assert (room / "tasks.py").is_file()
    assert (room / "models.py").is_file()
    assert (room / "queries.sql").is_file()


@pytest.mark.parametrize("room", ROOMS, ids=_name)
def test_a_room_says_what_it_is_for_and_imports_nothing(room: Path):
    tree = _tree(room / "__init__.py")
    assert ast.get_docstring(tree)
    assert len(tree.body) == 1


@pytest.mark.parametrize("package", PACKAGES)
def test_no_other_distribution_ships_our_package(package: str):
    assert set(packages_distributions().get(package, [])) <= {"onevault"}


def test_no_module_has_a_name_that_says_nothing():
    nothing = {"utils", "util", "helpers", "common", "manager", "service", "impl", "misc", "base"}
    allowed = {"blocks/storage/base.py"}  # a family of blocks has one
    named = {_name(path) for path in MODULES if path.stem in nothing}
    assert named - allowed == set()


# Walls


def test_no_module_is_longer_than_400_lines():
    lines = {_name(path): len(path.read_text().splitlines()) for path in MODULES}
    assert {name: count for name, count in lines.items() if count > 400} == {}


def test_no_function_is_longer_than_50_lines():
    sizes = [size for path in MODULES for size in _functions(path)]
    assert [size for size in sizes if size[1] > 50] == []


def test_half_of_the_functions_are_shorter_than_10_lines():
    assert statistics.median(count for path in MODULES for _, count in _functions(path)) < 10


# Doors


def test_programs_are_started_in_one_place_only():
    doors = {"tasks/processes.py", "tasks/spawning.py"}
    starters = {"subprocess", "pty", "multiprocessing", "concurrent.futures.process"}
    found = {_name(path) for path in MODULES if starters & set(_imported(path))}
    assert found <= doors


def test_nothing_goes_through_a_shell():
    calls = [
        f"{_name(path)}:{node.lineno}"
        for path in MODULES
        for node in ast.walk(_tree(path))
        if isinstance(node, ast.Call)
        and (
            any(word.arg == "shell" for word in node.keywords)
            or ast.unparse(node.func).startswith(("os.system", "os.popen", "os.spawn", "os.exec"))
        )
    ]
    assert calls == []


def _made_sql(tree: ast.AST) -> Iterator[int]:
    """Give the lines on which a statement is put together from strings."""
    asks = {"execute", "executemany", "copy", "stream", "SQL"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and node.args:
            called = ast.unparse(node.func).rpartition(".")[2]
            if called in asks and _is_made(node.args[0]):
                yield node.lineno


def _is_made(argument: ast.expr) -> bool:
    match argument:
        case ast.JoinedStr():
            return any(isinstance(part, ast.FormattedValue) for part in argument.values)
        case ast.BinOp():
            return not all(isinstance(e, ast.Constant) for e in (argument.left, argument.right))
        case ast.Call(func=ast.Attribute(attr="format", value=ast.Constant())):
            return True
        case _:
            return False


def test_no_statement_is_put_together_from_strings():
    assert [f"{_name(p)}:{n}" for p in MODULES for n in _made_sql(_tree(p))] == []


@pytest.mark.parametrize(
    "line",
    [
        'c.execute(f"select {x}")',
        'c.execute("select " + x)',
        'c.execute("select %s" % x)',
        'c.execute("select {}".format(x))',
        'sql.SQL(f"select {x}")',
        'with c.copy(f"copy {t} to stdout"): pass',
    ],
)
def test_a_statement_put_together_from_strings_is_found(line: str):
    assert list(_made_sql(ast.parse(line))) == [1]


def test_a_literal_statement_and_a_composed_one_are_not_found():
    lines = 'c.execute("select %s", [x])\nsql.SQL("select {}").format(sql.Identifier(x))'
    assert list(_made_sql(ast.parse(lines))) == []


# The command line starts fast


def _imports_of(program: str) -> set[str]:
    code = f"import sys\ntry:\n    {program}\nfinally:\n    print('\\n' + ' '.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=60
    )
    assert "Traceback" not in done.stderr, done.stderr
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("command", ["", "backup", "verify", "restore", "doctor", "demo"])
def test_help_starts_neither_prefect_nor_the_database_driver(command: str):
    words = [*command.split(), "--help"]
    loaded = _imports_of(f"from deployments.cli import cli; cli({words})")
    assert "deployments.cli" in loaded
    assert not {"prefect", "psycopg", "flows", "rich"} & loaded


# Import contracts

_IMPORTS_GO_ONE_WAY = "Imports go one way: deployments, flows, tasks, blocks"
_ONLY_TASKS_PY = "In a room, only tasks.py knows Prefect and the blocks"
_DOORS = "Only tasks.py modules go through those doors"
_NOBODY_TASKS_PY = "Only flows and what is above them use a room's tasks.py"
_FLOWS = "Flows hold no SQL and no SDK"
_ROOMS = "Rooms exchange nouns only"
_COMMAND_LINE = "The command line starts without Prefect"

PLANTED = [
    (_IMPORTS_GO_ONE_WAY, "blocks/bech32.py", "import tasks.windows"),
    (_IMPORTS_GO_ONE_WAY, "tasks/windows.py", "import flows.backup"),
    (_IMPORTS_GO_ONE_WAY, "tasks/backup/tasks.py", "import deployments.register"),
    (_IMPORTS_GO_ONE_WAY, "flows/schema.py", "from deployments import register"),
    (_ONLY_TASKS_PY, "tasks/backup/lifecycle.py", "import prefect"),
    (_ONLY_TASKS_PY, "tasks/backup/lifecycle.py", "from prefect import task"),
    (_ONLY_TASKS_PY, "tasks/windows.py", "from blocks.postgres import PostgresServer"),
    (_DOORS, "tasks/backup/lifecycle.py", "from tasks import opening"),
    (_DOORS, "tasks/backup/lifecycle.py", "from tasks.artifacts import show_table"),
    (_NOBODY_TASKS_PY, "tasks/backup/lifecycle.py", "from tasks.backup import tasks"),
    (_NOBODY_TASKS_PY, "tasks/windows.py", "from tasks.backup.tasks import take_backup"),
    (_FLOWS, "flows/backup.py", "import psycopg"),
    (_FLOWS, "flows/schema.py", "from psycopg import sql"),
    (_ROOMS, "tasks/backup/lifecycle.py", "from tasks.schema import plan"),
    (_ROOMS, "tasks/schema/plan.py", "from tasks.backup.lifecycle import State"),
    (_COMMAND_LINE, "deployments/cli.py", "import prefect"),
    (_COMMAND_LINE, "deployments/cli.py", "from flows import backup"),
]  # fmt: skip


def _lint(folder: Path) -> str:
    program = Path(sys.executable).with_name("lint-imports")
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(folder), "NO_COLOR": "1"}
    done = subprocess.run(
        [program, "--no-cache", "--no-logo"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "Contracts:" in done.stdout, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A copy of the house, to plant bad imports in."""
    for package in PACKAGES:
        leave = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, tmp_path / package, ignore=leave)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_every_contract_is_kept(house: Path):
    assert f"{len(CONTRACTS)} kept, 0 broken" in _lint(house)


def test_every_contract_is_broken_on_purpose_below():
    assert {contract["name"] for contract in CONTRACTS} == {name for name, *_ in PLANTED}


@pytest.mark.parametrize(("contract", "module", "line"), PLANTED)
def test_a_planted_import_breaks_its_contract(house: Path, contract: str, module: str, line: str):
    path = house / module
    path.write_text(f"{path.read_text()}\n\ndef planted():\n    {line}\n")
    assert f"{contract} BROKEN" in _lint(house)

"""The house stands: arrows point down, the agent stays poor, modules stay small, and nothing is pickled."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("domain", "pruning", "search", "db", "workers", "api", "client")
SOURCES = [
    *(
        path
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
        if "__pycache__" not in path.parts
    ),
    ROOT / "bootstrap.py",
    ROOT / "settings.py",
]
BROAD = {"Exception", "BaseException"}


def test_import_linter_contracts_hold() -> None:
    done = subprocess.run(
        [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("workers.agent.tasks", ("torch", "sqlalchemy", "fastapi", "optuna", "onnx", "db", "search", "pruning", "api")),
        ("workers.agent.session", ("torch", "sqlalchemy", "fastapi", "optuna", "onnx", "onnxruntime", "db", "search")),
        ("workers.agent.sandbox", ("torch", "sqlalchemy", "fastapi", "optuna", "celery", "onnxruntime")),
        ("api.app", ("torch", "celery", "optuna", "onnxruntime", "pruning")),
        ("search.service", ("torch", "celery", "optuna", "sqlalchemy")),
        ("search.loop", ("torch", "celery", "sqlalchemy", "fastapi")),
        ("client.__main__", ("torch", "optuna", "sqlalchemy", "celery", "fastapi", "onnxruntime")),
    ],
)
def test_importing_a_room_loads_nothing_it_may_not(module: str, forbidden: tuple[str, ...]) -> None:
    code = f"import sys, {module}; print([name for name in {forbidden!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_no_module_is_past_five_hundred_lines() -> None:
    long = {str(path.relative_to(ROOT)): n for path in SOURCES if (n := len(path.read_text().splitlines())) > 500}
    assert not long, f"each of these wants to be two rooms: {long}"


def test_the_word_embedded_is_known_in_three_places_only() -> None:
    """Embedded and distributed are one code path: only the composition and the supervisor may know the difference."""
    allowed = {"workers/embedded.py"}
    for path in SOURCES:
        name = str(path.relative_to(ROOT))
        if name in allowed or name.startswith(("workers/servers/", "client/")):
            continue
        names = {node.id for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Name)}
        assert not [one for one in names if "embedded" in one.lower() and "embedded_postgres" not in one], name


def test_nothing_reads_or_writes_pickles() -> None:
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found = {alias.name.split(".")[0] for alias in node.names}
                assert not found & {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}, path
            if isinstance(node, ast.Call):
                assert ast.unparse(node.func) not in {"torch.load", "torch.save"}, path
                if ast.unparse(node.func) == "np.load":
                    keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
                    assert keywords.get("allow_pickle") == "False", f"{path}: say allow_pickle=False"


def test_broad_excepts_stand_only_at_declared_boundaries() -> None:
    """`except Exception` swallows what we did not think of; each one says at its side why it may."""
    for path in SOURCES:
        lines = path.read_text().splitlines()
        for node in ast.walk(ast.parse("\n".join(lines))):
            if isinstance(node, ast.ExceptHandler) and (node.type is None or ast.unparse(node.type) in BROAD):
                line = lines[node.lineno - 1]
                assert "#" in line, f"{path}:{node.lineno}: say why this boundary may catch everything"

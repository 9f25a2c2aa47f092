"""The laws of the house: rooms import one way, the front door is light, pyproject and environment.yml agree."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import icrl_lab
from icrl_lab.studies.spec import StudySpec

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "icrl_lab"
ROOMS = [
    *("errors", "files", "values", "fetch", "tasks", "encoders", "maps", "shots", "prompts", "controls", "answers", "models", "engine"),
    *("baselines", "stats", "studies", "probes", "plots", "widgets", "report", "tables", "bench", "doctor", "cli"),
]  # fmt: skip


def imports(path: Path, *, inside: bool) -> set[str]:
    """Rooms that a file imports: at its top, or with `inside` also inside functions."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = set()
    nodes = ast.walk(tree) if inside else iter(tree.body)
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "icrl_lab":
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {a.name for a in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("icrl_lab.")}
    return found & set(ROOMS)


def files() -> list[tuple[str, Path]]:
    out = []
    for path in sorted(PACKAGE.rglob("*.py")):
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if room != "__init__":
            out.append((room, path))
    return out


def test_every_room_is_in_the_list():
    assert {room for room, _ in files()} == set(ROOMS)


@pytest.mark.parametrize("room,path", files(), ids=lambda v: v.name if isinstance(v, Path) else v)
def test_a_room_imports_only_rooms_above_it(room, path):
    below = {other for other in imports(path, inside=False) if ROOMS.index(other) > ROOMS.index(room)}
    assert not below, f"{path.name} of {room} imports {below} at its top"


def test_the_map_in_the_readme_names_every_room():
    drawn = (ROOT / "README.md").read_text(encoding="utf-8").split("```\nicrl_lab/\n")[1].split("\ndata/")[0]
    said = [name for line in drawn.splitlines() if line[2] != " " for name in line[2:].split("  ")[0].split()]
    assert sorted(said) == sorted(p.name + "/" * p.is_dir() for p in PACKAGE.iterdir() if not p.name.startswith("__"))


def test_the_check_would_see_a_wrong_import(tmp_path):
    wrong = tmp_path / "values.py"
    wrong.write_text("from icrl_lab.engine import Engine\nimport icrl_lab.cli\nfrom icrl_lab import plots\n")
    assert imports(wrong, inside=False) == {"engine", "cli", "plots"}


def test_numbers_never_import_figures():
    numbers = ROOMS[: ROOMS.index("plots")]
    doors = {"studies/result.py"}  # doors of one line: result.plot(), result.save()
    for room, path in files():
        if room in numbers and str(path.relative_to(PACKAGE)) not in doors:
            assert not imports(path, inside=True) & {"plots", "report", "tables", "cli"}, path


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_front_door_is_light():
    heavy = {"torch", "rdkit", "ipywidgets", "pandas", "plotly", "transformers", "scipy", "sklearn"}
    loaded = run("import sys, icrl_lab; print(' '.join(sorted({m.split('.')[0] for m in sys.modules})))").split()
    assert not heavy & set(loaded)
    code = "import time; t = time.perf_counter(); import icrl_lab; print(time.perf_counter() - t)"
    assert min(float(run(code)) for _ in range(3)) < 0.3


@pytest.mark.parametrize(
    "room",
    [
        "tasks",
        "encoders",
        "maps",
        "shots",
        "prompts",
        "controls",
        "answers",
        "stats",
        "baselines",
        "fetch",
        "studies.spec",
    ],
)
def test_numpy_rooms_bring_no_torch(room):
    loaded = run(
        f"import sys, icrl_lab.{room}; print(' '.join(sorted({{m.split('.')[0] for m in sys.modules}})))"
    ).split()
    assert not {"torch", "rdkit", "ipywidgets", "plotly"} & set(loaded)


def test_public_names_exist_and_are_documented():
    import icrl_lab

    assert sorted(icrl_lab.__all__) == icrl_lab.__all__
    for name in icrl_lab.__all__:
        value = getattr(icrl_lab, name)
        assert name == "__version__" or value.__doc__, name
    with pytest.raises(AttributeError):
        icrl_lab.nothing  # noqa: B018


def requirement(line: str) -> tuple[str, str]:
    name, bounds = re.fullmatch(r"\s*([A-Za-z0-9_.-]+)(.*?)\s*", line).groups()
    return name.lower().replace("_", "-"), bounds.replace(" ", "")


def test_environment_and_pyproject_agree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = dict(requirement(r) for r in project["dependencies"])
    for extra in re.search(r"icrl-lab\[(.*)\]", extras["lab"][0]).group(1).split(","):
        wanted |= dict(requirement(r) for r in extras[extra])
    lines = (ROOT / "environment.yml").read_text().splitlines()
    given = dict(
        requirement(line.split("- ", 1)[1])
        for line in lines
        if re.match(r"\s+- [A-Za-z]", line) and not line.strip().endswith(":")
    )
    for tool in ("pip", "conda-forge", "nodefaults"):
        given.pop(tool, None)
    assert given.pop("python") == project["requires-python"]
    assert given == wanted


def test_nothing_speaks_of_other_places():
    """No registry's host and no absolute path of one machine stands in the project."""
    wrong = re.compile("/wo" + "rk/|py" + r"pi\.org|pythonhos" + r"ted|npm" + r"js\.|deb\.deb" + "ian")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split("\n")
    for name in filter(None, listed):
        path = ROOT / name
        if path.suffix in {".py", ".md", ".toml", ".yml", ".yaml", ".ipynb", ".html"} and path.is_file():
            assert not wrong.search(path.read_text(encoding="utf-8")), name


# --------------------------------------------------------------------------------------- what is shown


def shown(language: str) -> str:
    """The README's block of code in this language that shows the lab."""
    found = re.findall(rf"^```{language}\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    assert len(found) == 1
    return found[0]


def test_the_study_file_of_the_readme_is_one():
    spec = StudySpec.from_dict(tomllib.loads(shown("toml")))
    assert StudySpec.from_dict(spec.to_dict()) == spec
    assert [arm.label for arm in spec.study.arms] == [
        "text",
        "random-projection",
        "moments-vocab x16",
        "ridge budget=100",
    ]
    assert [e.name for e in spec.encoder.also] == ["chemnet", "morgan"] and spec.encoder.also[1].options == {
        "bits": 1024
    }
    assert (spec.task.on_bad, spec.encoder.slots, spec.study.repeat) == ("drop", 2, 2)


def test_the_python_of_the_readme_runs(tmp_path, monkeypatch):
    """On a small task and a tiny model in place of the ones that it names."""
    pytest.importorskip("plotly")
    pytest.importorskip("ipywidgets")
    from tests.toy import toy_llm, toy_task, toy_vectors

    monkeypatch.chdir(tmp_path)
    for name, make in (
        ("load_task", lambda name: toy_task()),
        ("encode", lambda task, name: toy_vectors(task)),
        ("load_llm", lambda name: toy_llm()),
    ):
        monkeypatch.setattr(icrl_lab, name, make, raising=False)
    code = shown("python")
    names: dict = {}
    exec(
        compile(code.replace("seeds=5", "seeds=2, queries=12, controls=['real', 'noise']"), "README.md", "exec"), names
    )
    assert "seeds=5" in code and set(names["result"].summary()["arm"]) == {"text", "random-projection", "ridge"}
    assert (tmp_path / "runs" / "mine" / "summary.csv").is_file() and names["reading"].about["says"]


def test_the_demo_asks_what_it_must():
    """At least five arms, one of them with 16 draws, three controls of the vectors, five seeds x 64 queries on all defaults."""
    spec = StudySpec.from_dict(tomllib.loads((PACKAGE / "demo.toml").read_text()))
    plan = spec.study
    assert len(plan.arms) >= 5 and 16 in [arm.draws for arm in plan.arms] and sum(a.has_slots for a in plan.arms) >= 4
    assert {"real", "shuffled", "noise", "dummy"} <= set(plan.controls) and plan.shots == (20,)
    assert (len(plan.seeds), plan.queries) == (5, 64) and plan.seeds == tuple(range(5))
    assert (spec.task.name, spec.encoder.name, spec.llm.name) == ("freesolv", "minimol", "smollm2-135m")

"""The laws of the tutorials: short cells, every output stored, nothing of the machine they ran on, and they run on another model.

A law is a function that says what a notebook does wrong. Each is shown a notebook that breaks it, so that no law is empty.
Whether the stored outputs are what the cells give is for `pytest --nbval-lax --nbval-sanitize-with tests/nbval.cfg notebooks`.
"""

import ast
import json
import re
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
LINES, SIZE = 8, 500_000
SILENT = ("save", "mkdir", "chdir", "savez")  # calls that end a cell and give nothing to show
CLIENT_ONLY = "application/vnd.jupyter.widget-view+json"
MACHINE = re.compile(r"(?<![\w.>-])(?:/(?:root|home|work|tmp|usr|var|opt|mnt|srv|private|Users)/|[A-Z]:\\{1,2}\w)")
WAITED = re.compile(r"\b\d+(?:\.\d+)?\s?(?:seconds|sec|ms|s/it|it/s)\b")
DATA = re.compile(r"data:[\w/+.-]+;base64,[A-Za-z0-9+/=]+")

Law = Callable[..., Iterator[str]]
LAWS: list[Law] = []


def law(function: Law) -> Law:
    LAWS.append(function)
    return function


def code(book) -> list:
    return [cell for cell in book.cells if cell.cell_type == "code"]


def first_line(cell) -> str:
    return cell.source.strip().splitlines()[0][:60] if cell.source.strip() else "(empty)"


def tags(cell) -> list[str]:
    return cell.metadata.get("tags", [])


def texts(output) -> Iterator[str]:
    """What an output says, without pictures; of a figure, its json."""
    yield output.get("text", "")
    yield from output.get("traceback", [])
    yield output.get("evalue", "")
    for held in output.get("data", {}).values():
        yield DATA.sub("", held if isinstance(held, str) else json.dumps(held))


# ------------------------------------------------------------------------------------------------ the laws


@law
def is_valid(book):
    ids = [cell.get("id") for cell in book.cells]
    if None in ids or len(set(ids)) < len(ids):
        yield "has cells without an id, or two with the same"
        return  # nbformat would give them others and find nothing wrong
    try:
        nbformat.validate(book)
    except nbformat.ValidationError as error:
        yield f"is no valid notebook: {error.message}"


@law
def cells_are_short(book):
    for cell in book.cells:
        if not cell.source.strip():
            yield "has an empty cell"
        if cell.cell_type == "code" and len(cell.source.strip("\n").splitlines()) > LINES:
            yield f"has a cell of more than {LINES} lines: {first_line(cell)}"


@law
def cells_define_nothing(book):
    for cell in code(book):
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)):
                yield f"defines something in a cell: {first_line(cell)}"


@law
def says_what_it_teaches_and_what_it_does_not(book):
    first, last = book.cells[0], book.cells[-1]
    if first.cell_type != "markdown" or not first.source.startswith("# "):
        yield "does not open with a title"
    elif not re.search(r"(?im)you will (learn|have)", first.source) or len(
        re.findall(r"(?m)^(?:[-*]|\d+\.) ", first.source)
    ) not in range(2, 7):
        yield "does not open with two to six points that one will learn"
    if last.cell_type != "markdown" or not re.match(r"#+ What this does not show", last.source):
        yield "does not end with what it does not show"


@law
def the_model_is_a_parameter(book):
    found = [cell for cell in code(book) if "parameters" in tags(cell)]
    if len(found) != 1 or found[0] is not code(book)[0]:
        yield "needs one cell tagged `parameters`, before all other code"
    elif not re.match(r'MODEL = "smollm2-135m"(\s|$)', found[0].source):
        yield 'does not set MODEL = "smollm2-135m" in its cell of parameters'


@law
def every_output_is_stored(book):
    counts = [cell.execution_count for cell in code(book)]
    if counts != list(range(1, len(counts) + 1)):
        yield f"was not run from top to bottom in one go: {counts}"
    for cell in code(book):
        if shows_something(cell.source) and not cell.outputs:
            yield f"has no output stored for a cell that has one: {first_line(cell)}"


def shows_something(source: str) -> bool:
    """Whether a cell prints, or ends in a value."""
    tree = ast.parse(source)
    last = tree.body[-1] if tree.body else None
    if any(isinstance(node, ast.Name) and node.id == "print" for node in ast.walk(tree)):
        return True
    if not isinstance(last, ast.Expr) or source.rstrip().endswith(";"):
        return False
    called = last.value.func if isinstance(last.value, ast.Call) else None
    return not (isinstance(called, ast.Attribute) and called.attr in SILENT)


@law
def holds_no_widget_state(book):
    if "widgets" in book.metadata:
        yield "holds the state of widgets"
    for cell in code(book):
        for output in cell.outputs:
            if CLIENT_ONLY in output.get("data", {}):
                yield f"holds a widget that needs a kernel: {first_line(cell)}"


@law
def every_output_says_something_without_a_kernel(book):
    for cell in code(book):
        for output in cell.outputs:
            data = output.get("data")
            if data is not None and not {"text/html", "application/vnd.plotly.v1+json", "image/svg+xml"} & set(data):
                held = data.get("text/plain", "")
                if re.search(r"\bat 0x[0-9a-f]+>|^(?:Figure|\w*View|Dashboard|VBox)\(", held):
                    yield f"shows only the name of an object: {first_line(cell)}: {held[:60]}"


@law
def tells_nothing_of_the_machine(book):
    for cell in book.cells:
        for words in [cell.source, *(t for o in cell.get("outputs", []) for t in texts(o))]:
            found = MACHINE.search(words)
            if found:
                yield f"names an absolute path: {words[max(found.start() - 20, 0) : found.end() + 40]!r}"
        extra = set(cell.metadata) - {"tags"}
        if extra:
            yield f"keeps {sorted(extra)} in the metadata of a cell: {first_line(cell)}"
        for output in cell.get("outputs", []):
            found = WAITED.search(output.get("text", ""))
            if found:
                yield f"prints how long something took: {found[0]!r}"


@law
def has_no_noise_and_no_error(book):
    for cell in code(book):
        for output in cell.outputs:
            if output.output_type == "stream" and output.name == "stderr":
                yield f"wrote to stderr: {output.text[:80]!r}"
            if output.output_type == "error" and "raises-exception" not in tags(cell):
                yield f"ended in an error: {output.ename}"


def broken_laws(book) -> list[str]:
    return [f"{law.__name__}: {fault}" for law in LAWS for fault in law(book)]


# ------------------------------------------------------------------------------------------------ the tests


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_keeps_the_laws(path):
    assert path.stat().st_size < SIZE, f"{path.name} has {path.stat().st_size} bytes"
    assert broken_laws(nbformat.v4.reads(path.read_text(encoding="utf-8"))) == []  # as it is, nothing repaired


def test_their_names_are_in_reading_order():
    assert NOTEBOOKS and all(re.fullmatch(r"\d\d_[a-z_]+", path.stem) for path in NOTEBOOKS)
    assert len({path.stem[:2] for path in NOTEBOOKS}) == len(NOTEBOOKS)


def lawful():
    """A small notebook that keeps every law."""
    from nbformat import v4

    said = v4.new_output("stream", name="stdout", text="1.5\n")
    cells = [
        v4.new_markdown_cell("# A title\n\nYou will learn\n\n- one thing\n- another"),
        v4.new_code_cell('MODEL = "smollm2-135m"', execution_count=1, metadata={"tags": ["parameters"]}),
        v4.new_code_cell("print(3 / 2)", execution_count=2, outputs=[said]),
        v4.new_markdown_cell("## What this does not show\n\nMuch."),
    ]
    return v4.new_notebook(cells=cells)


def shown(**data):
    from nbformat import v4

    return v4.new_output("display_data", data={name.replace("__", "/"): value for name, value in data.items()})


def edited(change: Callable):
    book = deepcopy(lawful())
    change(book)
    return book


BREAKS: list[tuple[str, Callable]] = [
    ("is_valid", lambda b: b.cells[1].update(id=b.cells[2].id)),
    ("is_valid", lambda b: b.cells[2].outputs[0].update(output_type="rumour")),
    ("cells_are_short", lambda b: b.cells[2].update(source="print(1)\n" * 9)),
    ("cells_are_short", lambda b: b.cells[3].update(source=" ")),
    ("cells_define_nothing", lambda b: b.cells[2].update(source="def f():\n    print(1)")),
    ("cells_define_nothing", lambda b: b.cells[2].update(source="print((lambda: 1)())")),
    ("says_what_it_teaches_and_what_it_does_not", lambda b: b.cells[0].update(source="# A title")),
    ("says_what_it_teaches_and_what_it_does_not", lambda b: b.cells.pop()),
    ("the_model_is_a_parameter", lambda b: b.cells[1].metadata.clear()),
    ("the_model_is_a_parameter", lambda b: b.cells[1].update(source='MODEL = "gpt2"')),
    ("every_output_is_stored", lambda b: b.cells[2].outputs.clear()),
    ("every_output_is_stored", lambda b: b.cells[2].update(source="MODEL", outputs=[])),
    ("every_output_is_stored", lambda b: b.cells[2].update(execution_count=None)),
    ("holds_no_widget_state", lambda b: b.metadata.update(widgets={})),
    ("holds_no_widget_state", lambda b: b.cells[2].outputs.append(nbformat.from_dict({"output_type": "display_data", "metadata": {}, "data": {CLIENT_ONLY: {}}}))),
    ("every_output_says_something_without_a_kernel", lambda b: b.cells[2].outputs.append(shown(text__plain="OrderView(children=())"))),
    ("tells_nothing_of_the_machine", lambda b: b.cells[2].outputs[0].update(text="written to /home/ada/run")),
    ("tells_nothing_of_the_machine", lambda b: b.cells[2].update(source='print("/tmp/run")')),
    ("tells_nothing_of_the_machine", lambda b: b.cells[2].metadata.update(execution={})),
    ("tells_nothing_of_the_machine", lambda b: b.cells[2].outputs[0].update(text="done in 3.2 seconds")),
    ("has_no_noise_and_no_error", lambda b: b.cells[2].outputs[0].update(name="stderr")),
    ("has_no_noise_and_no_error", lambda b: b.cells[2].outputs.append(nbformat.v4.new_output("error", ename="E", evalue="e", traceback=[]))),
]  # fmt: skip


def test_a_lawful_notebook_breaks_no_law():
    assert broken_laws(lawful()) == []
    assert broken_laws(edited(lambda b: b.cells[2].outputs.append(shown(text__html="<img src='data:image/png;base64,AA/tmp/'>")))) == []  # fmt: skip


@pytest.mark.parametrize("name, change", BREAKS, ids=lambda v: v if isinstance(v, str) else "")
def test_each_law_sees_its_breach(name, change):
    assert name in {fault.split(":")[0] for fault in broken_laws(edited(change))}


def test_every_law_is_shown_a_breach():
    assert {name for name, _ in BREAKS} == {law.__name__ for law in LAWS}


def test_the_sanitizer_takes_what_differs_and_leaves_what_does_not():
    plugin = pytest.importorskip("nbval.plugin")
    patterns = plugin.get_sanitize_patterns((Path(__file__).parent / "nbval.cfg").read_text())
    assert len(patterns) >= 8

    def clean(words: str) -> str:
        for pattern, other in patterns:
            words = re.sub(pattern, other, words)
        return words

    for one, two in (
        ("r = 0.42 [-0.10, 0.9]", "r = 0.40 [-0.09, 1.0]"),
        ("p = 1.2e-05", "p = 3.4e-06"),
        ("took 3.2 s", "took 12 s"),
        ("<Engine at 0x7f0012ab>", "<Engine at 0x7f99>"),
        ("/tmp/tmpab12/run: not a run folder", "/var/folders/x/T/tmpcd/run: not a run folder"),
        ("file:mine@0123456789ab", "file:mine@ba9876543210"),
        ("  0.1   12", " -0.12   12"),
    ):
        assert one != two and clean(one) == clean(two), (clean(one), clean(two))
    for one, two in (("12 of 20 rows", "13 of 20 rows"), ("shape (3, 4)", "shape (3, 5)"), ("no evidence", "evidence")):
        assert clean(one) != clean(two)


@pytest.fixture(scope="module")
def small_model(tmp_path_factory):
    """A folder with a tiny model and its tokenizer, as a user's own model would lie there."""
    import torch
    import transformers as tf

    from tests.families import family

    tokenizer = family("digits")
    sizes = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 6}
    config = tf.LlamaConfig(vocab_size=len(tokenizer), **sizes, num_key_value_heads=2, max_position_embeddings=8192)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = tf.AutoModelForCausalLM.from_config(config)
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", ["06_your_own_data"])
def test_a_notebook_runs_on_another_model(name, small_model, tmp_path):
    papermill = pytest.importorskip("papermill")
    out = tmp_path / "out.ipynb"
    papermill.execute_notebook(
        FOLDER / f"{name}.ipynb", out, {"MODEL": str(small_model)}, cwd=tmp_path, progress_bar=False, kernel_name="python3"
    )  # fmt: skip
    made = nbformat.read(out, 4)
    assert all(output.output_type != "error" for cell in code(made) for output in cell.outputs)

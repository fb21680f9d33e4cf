"""The shape of the code: imports point down, some things have one owner, units stay small."""

import ast
import io
import re
import tokenize
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from importlib.util import resolve_name
from pathlib import Path

import pytest

# Top first: the whole architecture. A module imports only from lines below its own, or from its own
# unit: a package or module of `onward/`, or the trainer. docs/design.md shows the same lines.
LAYERS = [
    ["train"],
    ["lightning", "transformers"],
    ["cli", "adapters"],
    ["script"],
    ["opening"],
    ["run"],
    ["publish"],
    ["attempts"],
    ["checkpoint", "tracking"],
    ["options", "terminal", "world"],
    ["system"],
    ["errors", "planning"],
    ["words", "monitor", "metrics"],
]
TOP = {"", "__main__"}  # the package itself shows what is public, its `__main__` starts a command
DEPTH = {unit: depth for depth, layer in enumerate(LAYERS) for unit in layer}

MLFLOW_OWNER = "onward.tracking"
ENVIRONMENT_OWNER = "onward.system.environment"
DURABILITY_OWNER = "onward.system.files"

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 50  # without the docstring
MAX_PARAMETERS = 8  # without self and cls

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Module:
    """One file; `imports` are absolute names with the line that imports them."""

    name: str
    path: str
    source: str
    tree: ast.Module
    imports: list[tuple[str, int]]


def unit_of(module_name):
    """Return the unit that a dotted name lies in: one of `onward/`, or the trainer.

    >>> unit_of("onward.checkpoint.store"), unit_of("onward.errors"), unit_of("train.tabular.task")
    ('checkpoint', 'errors', 'train')
    """
    first, *rest = module_name.split(".")
    return "train" if first == "train" else rest[0] if rest else ""


def imported_names(tree, package, module_names):
    """Yield (absolute module name, line) of every import, also those inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            parent = resolve_name("." * node.level + (node.module or ""), package)
            for alias in node.names:
                submodule = f"{parent}.{alias.name}"
                yield submodule if submodule in module_names else parent, node.lineno


@pytest.fixture(scope="module")
def modules():
    """Return every module of the program, by name."""
    paths = {}
    for path in sorted([*(ROOT / "onward").rglob("*.py"), *(ROOT / "train").rglob("*.py")]):
        parts = path.relative_to(ROOT).with_suffix("").parts
        paths[".".join(parts).removesuffix(".__init__")] = path
    found = {}
    for name, path in paths.items():
        source = path.read_text()
        tree = ast.parse(source)
        package = name if path.stem == "__init__" else name.rpartition(".")[0]
        imports = list(imported_names(tree, package, paths))
        found[name] = Module(name, str(path.relative_to(ROOT)), source, tree, imports)
    return found


def functions(module):
    """Yield every function and method of a module, nested ones included."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def uses_of_os_outside(owner, names, modules):
    """Return one line for each use of `os.<name>` in another module than its owner."""
    uses = []
    for module in modules.values():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "os":
                used = {node.attr}
            elif isinstance(node, ast.ImportFrom) and node.module == "os":
                used = {alias.name for alias in node.names}
            else:
                continue
            if used & names and module.name != owner:
                uses.append(
                    f"{module.path}:{node.lineno} uses os.{min(used & names)}: only {owner} may"
                )
    return uses


def expect_none(problems):
    """Fail with one line per problem, if there is any."""
    if problems:
        pytest.fail("\n".join(problems), pytrace=False)


def test_every_module_has_a_layer(modules):
    """Whatever lies in `onward/` or `train/` is placed in LAYERS."""
    expect_none(
        [
            f"{module.path}: '{unit_of(name)}' is not in LAYERS of {Path(__file__).name}"
            for name, module in modules.items()
            if unit_of(name) not in {*DEPTH, *TOP}
        ]
    )


def test_imports_point_down(modules):
    """A module imports only from layers below its own or from its own package."""
    problems = []
    for name, module in modules.items():
        unit = unit_of(name)
        for target, line in module.imports:
            if target.split(".")[0] not in ("onward", "train") or unit_of(target) == unit:
                continue
            if unit in TOP:
                continue
            if DEPTH.get(unit_of(target), -1) <= DEPTH.get(unit, -1):
                problems.append(f"{module.path}:{line} ({unit}) imports {target}: not below it")
    expect_none(problems)


def test_no_import_cycle(modules):
    """No module imports itself by way of others, lazy imports and packages included."""
    graph = {
        name: {target for target, _ in module.imports if target in modules}
        for name, module in modules.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail("import cycle: " + " <- ".join(error.args[1]), pytrace=False)


def test_the_library_names_no_metric_and_no_task(modules):
    """What is trained, and how good it is, is the trainer's: `monitor` alone has one old name."""
    texts = {
        f"{module.path}:{node.lineno}": node.value
        for name, module in modules.items()
        if name.startswith("onward.") and name != "onward.monitor"
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    words = re.compile(r"val_pearson|diamonds|hidden_size|TabularTask|from train")
    expect_none(
        [f"{where} says {text[:60]!r}" for where, text in texts.items() if words.search(text)]
    )


def test_only_tracking_imports_mlflow(modules):
    """One module knows MLflow, so a new MLflow version is one file's work."""
    expect_none(
        [
            f"{module.path}:{line} imports {target}; only {MLFLOW_OWNER} may"
            for name, module in modules.items()
            for target, line in module.imports
            if target.split(".")[0] == "mlflow" and not name.startswith(MLFLOW_OWNER)
        ]
    )


def test_only_environment_reads_environment_variables(modules):
    """One module reads environment variables, so that file is their complete list."""
    names = {"environ", "environb", "getenv", "getenvb"}
    expect_none(uses_of_os_outside(ENVIRONMENT_OWNER, names, modules))


def test_only_files_makes_writes_durable(modules):
    """One module calls fsync and replace, so the order of a durable write is in one place."""
    expect_none(uses_of_os_outside(DURABILITY_OWNER, {"fsync", "fdatasync", "replace"}, modules))


def test_files_stay_short(modules):
    """No file is longer than MAX_FILE_LINES."""
    lengths = {module.path: len(module.source.splitlines()) for module in modules.values()}
    expect_none(
        [
            f"{path}: {length} lines, at most {MAX_FILE_LINES}"
            for path, length in lengths.items()
            if length > MAX_FILE_LINES
        ]
    )


def test_functions_stay_short(modules):
    """No function is longer than MAX_FUNCTION_LINES, its docstring not counted."""
    problems = []
    for module in modules.values():
        for node in functions(module):
            first = node.body[0]
            docstring = first.end_lineno - first.lineno + 1 if ast.get_docstring(node) else 0
            length = node.end_lineno - node.lineno + 1 - docstring
            if length > MAX_FUNCTION_LINES:
                problems.append(
                    f"{module.path}:{node.lineno} {node.name}: {length} lines, "
                    f"at most {MAX_FUNCTION_LINES}"
                )
    expect_none(problems)


def test_functions_take_few_parameters(modules):
    """No function takes more than MAX_PARAMETERS, self and cls not counted."""
    problems = []
    for module in modules.values():
        for node in functions(module):
            spec = node.args
            arguments = [*spec.posonlyargs, *spec.args, spec.vararg, *spec.kwonlyargs, spec.kwarg]
            count = sum(arg is not None and arg.arg not in {"self", "cls"} for arg in arguments)
            if count > MAX_PARAMETERS:
                problems.append(
                    f"{module.path}:{node.lineno} {node.name}: {count} parameters, "
                    f"at most {MAX_PARAMETERS}"
                )
    expect_none(problems)


def is_broad(handler):
    """Tell whether an `except` clause catches every exception."""
    if handler.type is None:
        return True
    caught = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(ast.unparse(kind) in {"Exception", "BaseException"} for kind in caught)


def test_broad_except_says_why(modules):
    """A bare `except` or `except Exception` has a comment on its line or on the line above."""
    problems = []
    for module in modules.values():
        tokens = tokenize.generate_tokens(io.StringIO(module.source).readline)
        commented = {token.start[0] for token in tokens if token.type == tokenize.COMMENT}
        for node in ast.walk(module.tree):
            if not isinstance(node, ast.ExceptHandler) or not is_broad(node):
                continue
            if not commented & {node.lineno, node.lineno - 1}:
                problems.append(f"{module.path}:{node.lineno} catches all, does not say why")
    expect_none(problems)

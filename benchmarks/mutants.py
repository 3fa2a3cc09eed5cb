"""Mutants drawn at random over channels, data, evaluation and inference: the share that the mirrored tests kill.

    python benchmarks/mutants.py [-n 160] [--seed 14] [--workers 2] [-o mutants.jsonl] [--survivors] [--only START]

A mutant is one operator, constant, bound of a slice or returned value changed. It is killed if one of the tests of its
module (tests/<same path>/test_<same name>.py and its docstrings' examples) fails that passes without it, or if they
don't end in time. Results are appended to FILE as JSON lines, and a further run continues where the last one ended;
`--survivors` repeats the mutants that survived, after tests were added. Every place in the code has the same chance,
whatever number of changes it allows. A place that no test sees but through a child process counts as survived: mutants
live in the test's process only. Left out: Ray's engine, whose tests start processes that would not see the mutant.

TensorFlow is imported once, and each mutant is a fork in which an import hook gives the changed module: a mutant costs
a few seconds, and no file is touched.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import inspect
import json
import linecache
import multiprocessing
import os
import random
import resource
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from importlib.machinery import SourceFileLoader
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PLACES = ("channels.py", "data", "evaluation", "inference")
LEFT_OUT = {"inference/ray_engine.py"}

# modules whose tests stand elsewhere than in the file of the same name
TESTS = {
    "data/dicom/files.py": ["data/dicom/test_series.py"],
    "data/dicom/headers.py": ["data/dicom/test_series.py", "data/dicom/test_voxels.py"],
    "data/dicom/writing.py": ["data/dicom/test_series.py", "data/dicom/test_voxels.py"],
    "evaluation/figure.py": ["evaluation/test_evaluate.py"],
    "data/nifti.py": ["data/test_nifti.py", "data/test_volume.py"],
    "inference/jobs.py": ["inference/test_jobs.py", "inference/test_dicom_jobs.py", "data/test_remote.py"],
    "inference/predict_files.py": ["inference/test_jobs.py"],
    "inference/run_manifest.py": ["inference/test_jobs.py", "test_limits.py"],
    "inference/slice_function.py": ["inference/test_runtimes.py"],
}

HEAVY = ("tensorflow", "keras", "numpy.testing", "scipy.ndimage", "scipy.spatial.transform", "scipy.stats", "nibabel")
HEAVY += ("pydicom", "hypothesis.strategies", "hypothesis.extra.numpy", "matplotlib.figure", "PIL.Image", "pytest")

# (module, line as it begins, change): why no test can tell; judged by reading, and not run
EQUIVALENT = {
    ("data/augmentation.py", "padded = tf.pad(hu", "2 -> 3"): "what is padded beyond the corners is not read",
    ("data/dicom/headers.py", "thickness_mm=float(thickness)", "float(thickness) > 0 -> float(thickness) >= 0"): (
        "who asks takes 0 as unknown too"
    ),
    ("data/dicom/series.py", "return self.images[0].orientation", "0 -> -1"): (
        "images of a series are grouped by their orientation"
    ),
    ("data/dicom/series.py", "return float(np.degrees(np.arccos(np.clip(", "1 -> 2"): (
        "images are ordered along their normal: no cosine is near -1 (the other bound is tested)"
    ),
    ("data/dicom/series.py", "tuple(np.round(image.orientation, 3) + 0.0),", "0.0 -> 1.0"): (
        "part of a key that is only compared"
    ),
    (
        "data/dicom/series.py",
        "tuple(np.round(image.orientation, 3) + 0.0),",
        "np.round(image.orientation, 3) + 0.0 -> np.round(image.orientation, 3) - 0.0",
    ): "-0 and 0 are one key",
    (
        "data/phantom.py",
        "between = np.flatnonzero(",
        "wall > -patient.muscle_mm - 3 -> wall >= -patient.muscle_mm - 3",
    ): "a distance is never just that",
    ("data/phantom.py", "[-spacing_mm[0], 0, 0, -grid.y[0, 0, 0]],", "0 -> 1"): "pixels are square",
    ("data/slices.py", "_CACHE_FORMAT = 1", "1 -> 2"): "a number that is only compared with itself",
    ("data/slices.py", "fits = hu_range is not None", "-2 ** 15 -> +2 ** 15"): (
        "32 bits hold the same integers as 16, in more memory"
    ),
    (
        "data/slices.py",
        "self._axes = [[2 - int(np.flatnonzero(",
        "0 -> -1",
    ): "one axis of the file is each of the view's",
    ("data/slices.py", "if len(types) == 1:", "1 -> 0"): "a choice among one",
    ("data/slices.py", "[bool(g.transform[2 - z, 1] < 0)", "g.transform[2 - z, 1] < 0 -> g.transform[2 - z, 1] <= 0"): (
        "a flip is -1 or 1"
    ),
    ("evaluation/lesion_axes.py", "along = np.diff(ends @ steps.T, axis=0)[0]", "0 -> -1"): (
        "two points have one difference: the first and the last"
    ),
    ("evaluation/statistics.py", "inside = numbered[..., there] > 0", "0 -> -1"): (
        "what is no lesion is summed into the place 0, which is dropped"
    ),
    (
        "evaluation/surface.py",
        "return tuple(slice(min(s.start",
        "True -> False",
    ): "boxes of one array have as many axes",
    ("inference/allowed_operations.py", "def path(name: str, depth: int = 0) -> str:", "0 -> 1"): (
        "what is allowed is three deep; whatever is deeper than either limit is another expression"
    ),
    (
        "inference/postprocessing.py",
        "result += np.bincount(kinds",
        "1 -> 2",
    ): "reshape takes any negative number for the rest",
    ("inference/postprocessing.py", "for index, (slab, pieces) in enumerate(", "True -> False"): (
        "the lists are made together"
    ),
}

SWAPS = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.MatMult: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.And: ast.Or,
    ast.Or: ast.And,
}
NAMES = {"min": "max", "any": "all", "minimum": "maximum", "floor": "ceil"}
NAMES |= {new: old for old, new in NAMES.items()}


def sites(tree: ast.Module) -> list[tuple[ast.AST, list]]:
    """Nodes that can change, in the order of the source, each with functions that change it in place."""
    skipped = set()
    for node in ast.walk(tree):
        notes = [getattr(node, name, None) for name in ("annotation", "returns")]
        notes += getattr(node, "decorator_list", [])
        for note in filter(None, notes):
            if isinstance(note, ast.AST):
                skipped.update(ast.walk(note))
    found = [(node, changes(node)) for node in ast.walk(tree) if node not in skipped]
    return sorted((f for f in found if f[1]), key=lambda f: (f[0].lineno, f[0].col_offset, f[0].end_col_offset))


def changes(node: ast.AST) -> list:
    def put(owner, field, value):
        return lambda: setattr(owner, field, value)

    match node:
        case ast.BinOp(left=left, right=right) if any(
            isinstance(side, ast.JoinedStr) or isinstance(side, ast.Constant) and isinstance(side.value, str)
            for side in (left, right)
        ):
            return []  # text put together: no number is wrong
        case ast.BinOp() | ast.AugAssign() | ast.BoolOp() if type(node.op) in SWAPS:
            return [put(node, "op", SWAPS[type(node.op)]())]
        case ast.Compare(ops=[op]) if type(op) in SWAPS:
            return [put(node, "ops", [SWAPS[type(op)]()])]
        case ast.UnaryOp(op=ast.Not()):
            return [put(node, "operand", ast.UnaryOp(ast.Not(), node.operand))]
        case ast.UnaryOp(op=ast.USub()):
            return [put(node, "op", ast.UAdd())]
        case ast.Constant(value=bool(value)):
            return [put(node, "value", not value)]
        case ast.Constant(value=int(value) | float(value)):
            return [put(node, "value", value + 1), put(node, "value", value - 1)]
        case ast.Call(func=ast.Name(id=name)) if name in NAMES:
            return [put(node.func, "id", NAMES[name])]
        case ast.Call(func=ast.Attribute(attr=name)) if name in NAMES:
            return [put(node.func, "attr", NAMES[name])]
        case ast.Return(value=ast.expr() as value) if not (isinstance(value, ast.Constant) and value.value is None):
            return [put(node, "value", ast.Constant(None))]
        case ast.Slice(lower=lower, upper=upper):
            sides = [("lower", lower), ("upper", upper)]
            return [
                put(node, name, ast.BinOp(side, ast.Add(), ast.Constant(1)))
                for name, side in sides
                if side is not None and not isinstance(side, ast.Constant | ast.UnaryOp)
            ]
    return []


def draw(count: int, seed: int) -> list[dict]:
    paths = [p for place in PLACES for p in sorted((ROOT / "liverseg_tf" / place).rglob("*.py"))]
    paths += [ROOT / "liverseg_tf" / place for place in PLACES if place.endswith(".py")]
    names = [p.relative_to(ROOT / "liverseg_tf").as_posix() for p in paths]
    every = [
        (name, index)
        for name in names
        if name not in LEFT_OUT
        for index in range(len(sites(ast.parse((ROOT / "liverseg_tf" / name).read_text()))))
    ]
    rng = random.Random(seed)
    drawn = [mutant(name, index, rng.random())[0] for name, index in rng.sample(every, count)]
    print(f"{count} of {len(every)} places in {len(names)} modules, seed {seed}", flush=True)
    return drawn


def mutant(name: str, index: int, choice: float) -> tuple[dict, ast.Module]:
    tree = ast.parse((ROOT / "liverseg_tf" / name).read_text())
    node, options = sites(tree)[index]
    before = ast.unparse(node)
    options[int(choice * len(options))]()
    change = f"{before} -> {ast.unparse(node)}"
    return {"module": name, "line": node.lineno, "index": index, "choice": choice, "change": change}, tree


def names_around(name: str, line: int) -> tuple[str, ...]:
    """Functions and classes that hold a line, without their underscores."""
    tree = ast.parse((ROOT / "liverseg_tf" / name).read_text())
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    found = [n for n in ast.walk(tree) if isinstance(n, kinds) and n.lineno <= line <= n.end_lineno]
    return tuple(n.name.strip("_") for n in found if n.name.strip("_") not in ("init", "call", "post_init"))


def test_files(name: str) -> list[str]:
    path = Path(name)
    files = TESTS.get(name, [str(path.with_name(f"test_{path.name}"))])
    return [f"tests/{file}" for file in files] + [f"liverseg_tf/{name}"]


@dataclass
class Order:
    """Which tests to run, and when: by the seconds they took, those that name what is changed first, slow ones last."""

    seconds: dict[str, float]
    broken: set[str] = field(default_factory=set)
    only: bool = False
    names: tuple[str, ...] = ()

    def __call__(self, items: list) -> list:
        kept = [i for i in items if i.nodeid not in self.broken and (not self.only or i.nodeid in self.seconds)]
        return sorted(kept, key=self._place)

    def _place(self, item) -> tuple:
        text = inspect.getsource(item.function) if hasattr(item, "function") else ""
        seconds = self.seconds.get(item.nodeid, 1.0)
        return (
            seconds >= 0,
            not any(n in text for n in self.names),
            item.get_closest_marker("slow") is not None,
            seconds,
        )


class Recorder:
    """pytest's plugin: puts the tests in order, takes the seconds of each, and notes those that failed."""

    def __init__(self, order: Order, finder=None):
        self.order, self.seconds, self.failed, self.finder = order, {}, [], finder

    def pytest_sessionstart(self):
        if self.finder:
            sys.meta_path.insert(0, self.finder)  # before pytest's own, which takes files named on its command line

    def pytest_collection_modifyitems(self, items):
        items[:] = self.order(items)

    def pytest_runtest_logreport(self, report):
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0) + report.duration
        if report.failed:
            self.failed.append(report.nodeid)


def run(name: str, tree: ast.Module | None, order: Order, cpu_seconds: float) -> dict:
    """Run the tests of a module in a fork, up to the first that fails: {"rc", "seconds" by test, "failed"}.

    The limit is processor time, so that other work on the machine kills no mutant; one that only waits gets ten times
    as long. `rc` is None if it ran into either.
    """
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        answer = Path(folder) / "answer.json"
        if (pid := os.fork()) == 0:
            try:
                os.setsid()
                resource.setrlimit(resource.RLIMIT_CPU, (int(cpu_seconds), int(cpu_seconds)))
                log = os.open(Path(folder) / "log", os.O_WRONLY | os.O_CREAT)
                os.dup2(log, 1), os.dup2(log, 2)
                answer.write_text(json.dumps(child(name, tree, order, folder)))
            finally:
                os._exit(0)
        end = time.monotonic() + 10 * cpu_seconds
        while time.monotonic() < end and os.waitpid(pid, os.WNOHANG) == (0, 0):
            time.sleep(0.05)
        try:
            os.killpg(pid, signal.SIGKILL)  # also what its tests left running
            os.waitpid(pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass
        if answer.exists() and (text := answer.read_text()):
            return json.loads(text)
        return {"rc": None, "seconds": {}, "failed": []}


def child(name: str, tree: ast.Module | None, order: Order, folder: str) -> dict:
    import pytest

    finder = None
    if tree is not None:
        path = ROOT / "liverseg_tf" / name
        module = "liverseg_tf." + name.removesuffix(".py").replace("/", ".")
        source = ast.unparse(ast.fix_missing_locations(tree))
        code = compile(source, str(path), "exec")
        # AutoGraph reads the source of what it converts
        linecache.cache[str(path)] = (len(source), None, source.splitlines(keepends=True), str(path))

        class Loader(SourceFileLoader):
            def get_code(self, fullname):
                return code

        class Finder:
            @staticmethod
            def find_spec(fullname, path_=None, target=None):
                if fullname == module:
                    return importlib.util.spec_from_file_location(module, path, loader=Loader(module, str(path)))
                return None

        finder = Finder
        sys.meta_path.insert(0, finder)  # for what a conftest.py imports
    recorder = Recorder(order, finder)
    options = ["-q", "-x", "-p", "no:cacheprovider", "--doctest-modules", f"--basetemp={folder}/tmp"]
    rc = pytest.main([*options, *test_files(name)], plugins=[recorder])
    return {"rc": int(rc), "seconds": recorder.seconds, "failed": recorder.failed}


def judge_module(work: tuple[str, list[dict], str, float]) -> None:
    """Run the tests of one module with each of its mutants; append each result to the file."""
    name, mutants, output, limit = work
    seconds: dict[str, float] = {}
    killers: list[str] = []
    broken: set[str] = set()

    def collected() -> bool:
        if run(name, None, Order({}, only=True), limit)["rc"] == 5:
            return True
        print(f"{name}: its tests can't be collected; its mutants are left for another run", flush=True)
        return False

    if not collected():
        return
    for entry in mutants:
        description, tree = mutant(name, entry["index"], entry["choice"])
        names = names_around(name, entry["line"])
        start = time.monotonic()
        while True:
            # what saw one change will see another; then the quickest
            result = run(name, tree, Order(seconds | dict.fromkeys(killers, -1.0), broken, names=names), limit)
            seconds = result["seconds"] | seconds
            failed = result["failed"][:1]
            if not failed or failed[0] in killers:
                break
            if run(name, None, Order({failed[0]: 0}, only=True), limit)["rc"] == 0:
                killers += failed
                break
            broken.add(failed[0])  # it fails without the mutant too: it says nothing
        if result["rc"] not in (0, 1, 5, None) and not collected():
            return  # the mutant is not to blame: the tests were changed meanwhile
        outcome = {0: "survived", 5: "survived", None: "timeout"}.get(result["rc"], "killed")
        line = {**description, "outcome": outcome, "by": failed, "seconds": round(time.monotonic() - start, 1)}
        with open(output, "a") as file:
            file.write(json.dumps(line) + "\n")
        print(f"  {outcome:9}{name}:{line['line']} {line['change'][:110]}", flush=True)
    if broken:
        print(f"{name}: fail without any mutant: {sorted(broken)}", flush=True)


def read(output: str) -> dict[tuple[str, int, str], dict]:
    lines = Path(output).read_text().splitlines() if Path(output).exists() else []
    return {key(entry): entry for entry in map(json.loads, lines)}  # the last line on a mutant counts


def key(entry: dict) -> tuple[str, int, str]:
    return entry["module"], entry["index"], entry["change"]


def reason(entry: dict) -> str:
    """Why a mutant is equivalent, or ""."""
    line = (ROOT / "liverseg_tf" / entry["module"]).read_text().splitlines()[entry["line"] - 1].strip()
    for (module, start, change), because in EQUIVALENT.items():
        if (module, change) == (entry["module"], entry["change"]) and line.startswith(start):
            return because
    return ""


def summary(entries: list[dict]) -> None:
    reasons = {id(entry): reason(entry) for entry in entries}
    equivalent = [e for e in entries if reasons[id(e)]]
    survived = [e for e in entries if e["outcome"] == "survived" and not reasons[id(e)]]
    dead = len(entries) - len(survived) - len(equivalent)
    for title, some in (("equivalent", equivalent), ("survived", survived)):
        for e in some:
            because = f"  # {reasons[id(e)]}" if reasons[id(e)] else ""
            print(f"{title}: {e['module']}:{e['line']} {e['change']}{because}")
    print(
        f"{len(entries)} mutants, {len(equivalent)} equivalent; killed {dead} of {dead + len(survived)} "
        f"({100 * dead / max(1, dead + len(survived)):.1f} %)"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-n", "--count", type=int, default=160)
    parser.add_argument("--seed", type=int, default=14)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=180, help="of processor time a mutant at most")
    parser.add_argument("--skip", action="append", default=[], metavar="MODULE", help="leave its mutants out")
    parser.add_argument("--only", default="", metavar="START", help="modules whose names begin so, as evaluation/")
    parser.add_argument("--survivors", action="store_true", help="try those again that lived or ran too long")
    parser.add_argument("--summary", action="store_true", help="only read the file")
    parser.add_argument("-o", "--output", default="mutants.jsonl")
    args = parser.parse_args()

    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    drawn, done = draw(args.count, args.seed), read(args.output)
    drawn = [m for m in drawn if m["module"].startswith(args.only) and m["module"] not in args.skip]
    again = {"survived", "timeout"} if args.survivors else set()
    done |= {key(m): {**m, "outcome": "equivalent"} for m in drawn if reason(m)}
    left = [m for m in drawn if key(m) not in done or done[key(m)]["outcome"] in again]
    if left and not args.summary:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        for heavy in HEAVY:  # once, before the forks; nothing of the package itself
            importlib.import_module(heavy)
        by_module: dict[str, list[dict]] = {}
        for entry in left:
            by_module.setdefault(entry["module"], []).append(entry)
        work = [(name, some, args.output, args.seconds) for name, some in by_module.items()]
        work.sort(key=lambda item: -len(item[1]))
        with multiprocessing.get_context("fork").Pool(args.workers) as pool:
            for _ in pool.imap_unordered(judge_module, work, chunksize=1):
                pass
    done |= read(args.output)
    summary([done[key(m)] for m in drawn if key(m) in done])
    return 0


if __name__ == "__main__":
    sys.exit(main())

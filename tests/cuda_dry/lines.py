"""Which lines of the source only a GPU runs, found from the source itself."""

import ast
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("kappaface_dist", "launch", "tools")
# What is not the trainer's own code for GPUs.
LEFT_OUT = {f"kappaface_dist/planning/{name}.py" for name in ("pretend_gpu", "device_watch")}
WORDS = {"is_cuda", "record_stream", "pin_memory", "on_gpu", "for_gpu"}
KEYWORDS = {"pin_memory", "non_blocking"}


class Line(NamedTuple):
    path: str
    number: int
    text: str


def is_marked(node: ast.AST) -> bool:
    """Whether something in an expression or a statement depends on the device's kind."""
    for part in ast.walk(node):
        if isinstance(part, ast.Attribute):
            if part.attr.lstrip("_") in WORDS or ast.unparse(part).startswith("torch.cuda."):
                return True
        elif isinstance(part, ast.Name | ast.keyword):
            if getattr(part, "id", "") in WORDS or getattr(part, "arg", "") in KEYWORDS:
                return True
        elif isinstance(part, ast.Compare):
            sides = [part.left, *part.comparators]
            if any(isinstance(s, ast.Constant) and s.value in ("cuda", "cpu") for s in sides):
                return True
    return False


def is_of_gpu(test: ast.expr) -> bool:
    """Whether the body of an if with this test is for GPUs: not the one for CPUs."""
    text = ast.unparse(test)
    return not text.startswith("not ") and "== 'cpu'" not in text and "!= 'cuda'" not in text


def statements(node: ast.AST) -> Iterator[ast.stmt]:
    for child in ast.walk(node):
        if isinstance(child, ast.stmt) and not isinstance(child, ast.FunctionDef | ast.ClassDef):
            yield child


def own_part(statement: ast.stmt) -> ast.AST:
    """A statement without those inside it."""
    parts = [
        value
        for name, value in ast.iter_fields(statement)
        if name not in ("body", "orelse", "finalbody", "handlers")
    ]
    nodes = [
        n for p in parts for n in (p if isinstance(p, list) else [p]) if isinstance(n, ast.AST)
    ]
    return ast.Module(body=nodes, type_ignores=[])  # type: ignore[arg-type]


def marked_lines(root: Path = ROOT) -> list[Line]:
    """First lines of the statements that ask for the device's kind, and of those that depend on it
    by an if.
    """
    found: set[Line] = set()
    for path in sorted(path for folder in FOLDERS for path in (root / folder).rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if name in LEFT_OUT:
            continue
        text = path.read_text(encoding="utf-8")
        lines = text.splitlines()
        for statement in statements(ast.parse(text)):
            if isinstance(statement, ast.AnnAssign) and statement.value is None:
                continue
            if not is_marked(own_part(statement)):
                continue
            inside = [statement]
            if isinstance(statement, ast.If) and is_of_gpu(statement.test):
                inside += [s for branch in statement.body for s in statements(branch)]
            for one in inside:
                number = one.lineno
                found.add(Line(name, number, lines[number - 1].strip()))
    return sorted(found)


# Run by tests/cuda_dry, which sees that they are; by text, so that other lines can come and go.
RUN = {
    "kappaface_dist/checkpoint/pieces.py": [
        "if self.room.take(part.nbytes, pinned=tensor.is_cuda):",
        "self._copies[name, first] = torch.empty(",
        "copy.copy_(_rows(tensor.detach(), first, last), non_blocking=True)",
        "if any(tensor.is_cuda for tensor in tensors.values()):",
        "torch.cuda.synchronize()",
    ],
    "kappaface_dist/head/micro_batches.py": ['if label_G.device.type == "cpu":'],
    "kappaface_dist/head/partial_fc.py": [
        'self.refuses_labels = device.type == "cpu"  # looking at a GPU\'s would stall it',
    ],
    "kappaface_dist/head/rounding.py": [
        "if part_RD.is_cuda or not torch.stack(part_RD.aminmax()).isfinite().all():",
        "bits_RW &= -part_RD.isfinite().all(dim=1, keepdim=True).int()",
    ],
    "kappaface_dist/head/softmax/products.py": [
        'if dtype != torch.bfloat16 or device_type != "cuda" or HAS_FP32_SUMS:',
        "if dtype != out.dtype and out.is_cuda and HAS_FP32_SUMS:",
        "a_MX, b_XN = a_MX.to(dtype), b_XN.to(dtype)",
        "if add:",
        "torch.addmm(out, a_MX, b_XN, out_dtype=out.dtype, out=out)",
        "torch.mm(a_MX, b_XN, out_dtype=out.dtype, out=out)",
        "return",
    ],
    "kappaface_dist/head/softmax/second_pass.py": [
        'if row_X.device.type == "cpu":  # on a GPU the number of images would have to be waited'
        " for",
    ],
    "kappaface_dist/head/softmax/settings.py": [
        'return self.dtype == torch.bfloat16 and device.type == "cuda"',
        'return CPU_CHUNK_BYTES if device_type == "cpu" else GPU_CHUNK_BYTES',
    ],
    "kappaface_dist/training/data_parallel.py": [
        "devices: list[int | str | torch.device] = [gradient.device] if gradient.is_cuda else []",
    ],
    "kappaface_dist/data/loading/loader.py": [
        "image = host.image.to(self._device, non_blocking=True)",
        'if self._device.type == "cuda":',
        "tensor = tensor.pin_memory()  # a copy of ordinary memory is waited for",
        "return tensor.to(self._device, non_blocking=True)",
        'loader = "dali" if device.type == "cuda" and dali_is_installed() else "cpu"',
        "decoder = CpuDecoder(",
        "return Loader(",
    ],
    "kappaface_dist/data/loading/cpu.py": [
        "self._for_gpu = for_gpu",
        "image = torch.empty((num, size, size, 3), dtype=torch.uint8, pin_memory=True)",
        "if self._for_gpu:",
        "image_B[i] = pixels_HW3",
    ],
    "kappaface_dist/training/optim.py": [
        'foreach = all(p.is_cuda for group in groups for p in group["params"])',
    ],
    "kappaface_dist/training/trainer.py": [
        'self.guard = LossGuard(job, late=job.device.type != "cpu")',
    ],
    "kappaface_dist/training/pace.py": [
        'self._on_gpu = device.type == "cuda"',
        "elif self._on_gpu:",
        "begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))",
        "begin.record()",
        "yield",
        "end.record()",
        "self._pending.append((begin, end))",
    ],
    "kappaface_dist/training/memory_peak.py": [
        'if device.type == "cuda":',
        "return torch.cuda.max_memory_allocated(device)",
    ],
}
# Not run there: pattern of the path, of the text, and why.
EXCUSED = [
    ("kappaface_dist/data/loading/dali.py", "*", "recorded streams: data/loading/test_dali.py"),
    ("kappaface_dist/data/loading/loader.py", "decoder = DaliDecoder(", "DALI, as above"),
    ("kappaface_dist/data/loading/advice.py", "*", "words alone: data/loading/test_advice.py"),
    ("kappaface_dist/models/command_line.py", "*", "onnxruntime's device: unit tests"),
    ("kappaface_dist/models/exported.py", "*", "onnxruntime's device, as above"),
    ("kappaface_dist/console.py", "*", "how many ranks torchrun starts: unit tests"),
    ("kappaface_dist/head/softmax/products.py", "if (device_type*", "looks for Triton: tested"),
    ("kappaface_dist/head/softmax/measured.py", "*", "the name of a GPU that is there"),
    ("kappaface_dist/head/softmax/tile_sizes.py", "*", "asks the driver of this machine"),
    ("kappaface_dist/parallel/ranks.py", "*", "torch's own count of GPUs, and NCCL"),
    ("kappaface_dist/training/pace.py", "self._pending: *", "an empty list"),
    ("kappaface_dist/training/profiling.py", "*", "torch's profiler of a GPU"),
    ("kappaface_dist/training/data_parallel.py", "if device.type *", "refuses a CPU: unit tests"),
    ("kappaface_dist/training/data_parallel.py", "on_cpu = *", "torch.compile, for a real GPU"),
    ("kappaface_dist/planning/*_benchmark.py", "*", "measures a GPU that is there"),
    ("kappaface_dist/planning/calibration.py", "*", "measures a GPU that is there"),
    ("kappaface_dist/planning/gpu_*.py", "*", "checks a GPU that is there"),
    ("kappaface_dist/planning/rehearsal.py", "*", "asks a real GPU's allocator"),
    ("kappaface_dist/planning/head_buffers.py", "*", "what it counts: test_operations.py"),
    ("kappaface_dist/planning/backbone_memory.py", "*", "arithmetic: its unit test"),
    ("kappaface_dist/planning/host_memory.py", "*", "arithmetic: planning/test_host_memory.py"),
    ("kappaface_dist/planning/fitting.py", "*", "asks a GPU that is there for its size"),
    ("kappaface_dist/planning/step_time.py", "*", "arithmetic: integration/test_plan.py"),
    ("kappaface_dist/planning/this_machine.py", "*", "asks the driver of this machine"),
    ("kappaface_dist/planning/doctor.py", "*", "asks the driver of this machine"),
    ("kappaface_dist/models/command_line.py", "*", "onnxruntime's device: unit tests"),
    ("kappaface_dist/models/exported.py", "*", "onnxruntime's device, as above"),
    ("kappaface_dist/console.py", "*", "torch's own count of GPUs"),
    ("tools/*.py", "*", "the command line of a machine with a GPU"),
]


def is_listed_as_run(line: Line) -> bool:
    return line.text in RUN.get(line.path, [])


def is_excused(line: Line) -> bool:
    return any(fnmatch(line.path, path) and _fits(line.text, text) for path, text, _ in EXCUSED)


def _fits(text: str, pattern: str) -> bool:
    """fnmatch with * alone: brackets are code."""
    head, star, _ = pattern.partition("*")
    return text.startswith(head) if star else text == pattern

"""What a Triton kernel takes of a GPU that is not here: compiled to its machine code, and read."""

import importlib
import inspect
import re
import subprocess
from pathlib import Path


def resources(kernel, types, constants, capability, folder, num_warps=4, multiples=()):
    """What a kernel takes, by name.

    multiples: the whole numbers that are multiples of 16, which the compiler makes use of.
    REG: registers of a thread; STACK, LOCAL: its bytes in memory, where registers are spilt to;
    SHARED: bytes of a block; TENSOR: columns of tensor memory, where a GPU has one.
    """
    triton = importlib.import_module("triton")
    compiler = importlib.import_module("triton.compiler")
    target = importlib.import_module("triton.backends.compiler").GPUTarget("cuda", capability, 32)
    names = kernel.arg_names
    if "constexprs" in inspect.signature(compiler.ASTSource).parameters:
        signature = {name: types.get(name, "constexpr") for name in names}
        constexprs = {(names.index(name),): value for name, value in constants.items()}
        # As the launcher finds them: torch's memory begins at multiples of 16 bytes.
        aligned = [name for name in names if str(types.get(name, "")).startswith("*")]
        aligned += [name for name in multiples if name in names]
        attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in aligned}
        source = compiler.ASTSource(kernel, signature, constexprs, attributes)
    else:  # Triton before 3.3, of torch 2.6
        source = compiler.ASTSource(kernel, types, constants)
    built = triton.compile(source, target=target, options={"num_warps": num_warps})
    (Path(folder) / "kernel.cubin").write_bytes(built.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    command = [str(tool), "-res-usage", str(Path(folder) / "kernel.cubin")]
    usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    counts = {name: int(count) for name, count in re.findall(r"([A-Z]+):(\d+)", usage)}
    # Shared memory that is asked for at the launch is not in the machine code.
    shared = max(counts["SHARED"], built.metadata.shared)
    return {**counts, "SHARED": shared, "TENSOR": getattr(built.metadata, "tmem_size", 0)}

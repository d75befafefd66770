"""Compiles what it is given, for `nvg.runtime.probe`: a script that LLVM may end at any moment. Imports llvmlite alone.

Reads JSON from stdin: path (to be searched for llvmlite), triple, cpu, features, functions ([name, LLVM module] pairs).
Writes "ready", then for each function "yes" or "no".
"""

import json
import sys


def main() -> None:
    """Do it."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # no memory dump of an end that is expected
    except (ImportError, OSError, ValueError):
        pass
    request = json.load(sys.stdin)
    sys.path.append(request["path"])
    from llvmlite import binding

    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    target = binding.Target.from_triple(request["triple"])
    machine = target.create_target_machine(cpu=request["cpu"], features=request["features"], opt=3)
    print("ready", flush=True)
    for name, text in request["functions"]:
        try:
            is_instruction = name not in machine.emit_assembly(binding.parse_assembly(text))  # else it calls a function
        except RuntimeError:  # this LLVM knows it with other types
            is_instruction = False
        print("yes" if is_instruction else "no", flush=True)


if __name__ == "__main__":
    main()

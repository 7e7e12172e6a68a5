r"""The process that math-verify runs in: a line of JSON in, a line of JSON out. It imports nothing of this package.

Asked is {"answer": LATEX, "said": LATEX}; told is {"read": what `said` is, as sympy prints it, or null, "same": are both equal}. The
text is parsed by a grammar and never evaluated: math-verify's reader of plain expressions, which calls sympy's `parse_expr`, is left out.
What takes more than its CPU time or memory ends the process, which whoever started it then does again.
"""

import json
import signal
import sys
from typing import Any

CPU_SECONDS = 1.5
MEMORY = 4 << 30  # bytes of address space
DECIMALS = 12  # to which a decimal fraction has to agree with an exact value


def main() -> None:
    out, sys.stdout = sys.stdout, sys.stderr
    try:
        from math_verify import LatexExtractionConfig, parse, verify
    except ImportError as error:
        print(json.dumps({"missing": str(error)}), file=out, flush=True)
        return
    _limit_memory()
    print(json.dumps({"ready": True}), file=out, flush=True)

    def read(text: str) -> Any:
        found = parse(f"${text}$", [LatexExtractionConfig()], "no_fallback", parsing_timeout=None)  # type: ignore[arg-type]
        return found[0] if found else None

    for line in sys.stdin:
        asked = json.loads(line)
        _limit_time(CPU_SECONDS)
        try:
            answer, said = read(asked["answer"]), read(asked["said"])
            same = False
            if answer is not None and said is not None:
                same = bool(verify(answer, said, float_rounding=DECIMALS, timeout_seconds=None))
            told = {"read": None if said is None else str(said), "same": same}
        except Exception:  # whatever a parser makes of hostile text, it is not read
            told = {"read": None, "same": False}
        _limit_time(0)
        print(json.dumps(told), file=out, flush=True)


def _limit_time(seconds: float) -> None:
    """The signal is not caught, so that it also ends a loop in C; it ends a process whose owner is gone, too."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)


def _limit_memory() -> None:
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    except (ImportError, ValueError, OSError):  # no such limit on this system
        return


if __name__ == "__main__":
    main()

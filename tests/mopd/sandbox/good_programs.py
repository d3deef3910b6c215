"""Correct programs as people write them: name, source, input, output."""

# ruff: noqa: E501 - a program reads best as it was written

from __future__ import annotations

SUM = ("1 2\n", "3\n")
MANY = ("3\n1\n2\n3\n", "6\n")

SCRIPTS: dict[str, tuple[str, str, str]] = {
    "input": ("a, b = map(int, input().split())\nprint(a + b)", *SUM),
    "main guard": (
        "def main():\n    print(sum(map(int, input().split())))\nif __name__ == '__main__':\n    main()",
        *SUM,
    ),
    "standard input": ("import sys\nprint(sum(map(int, sys.stdin.read().split()[1:])))", *MANY),
    "lines of standard input": ("import sys\nnext(sys.stdin)\nprint(sum(int(line) for line in sys.stdin))", *MANY),
    "readline": (
        "import sys\ninput = sys.stdin.readline\nn = int(input())\nprint(sum(int(input()) for _ in range(n)))",
        *MANY,
    ),
    "buffer": ("import sys\ndata = sys.stdin.buffer.read().split()\nprint(sum(map(int, data[1:])))", *MANY),
    "buffer by lines": (
        "import sys\nread = sys.stdin.buffer.readline\nprint(sum(int(read()) for _ in range(int(read()))))",
        *MANY,
    ),
    "open 0": ("data = open(0).read().split()\nprint(sum(map(int, data[1:])))", *MANY),
    "open 0 by lines": ("n, *rest = open(0)\nprint(sum(map(int, rest)))", *MANY),
    "os.read": ("import os\nprint(sum(map(int, os.read(0, 1 << 20).split()[1:])))", *MANY),
    "fstat and read": (
        "import os, io\nf = io.BytesIO(os.read(0, os.fstat(0).st_size))\nf.readline()\nprint(sum(map(int, f)))",
        *MANY,
    ),
    "fileinput": ("import fileinput\nlines = list(fileinput.input())\nprint(sum(map(int, lines[1:])))", *MANY),
    "input to the end": (
        "total = 0\ntry:\n    while True:\n        total += int(input())\nexcept EOFError:\n    print(total - 3)",
        *MANY,
    ),
    "write": ("import sys\nsys.stdout.write(str(sum(map(int, input().split()))) + '\\n')", *SUM),
    "write bytes": ("import sys\nsys.stdout.buffer.write(b'%d\\n' % sum(map(int, input().split())))", *SUM),
    "os.write": ("import os\nos.write(1, b'%d\\n' % sum(map(int, input().split())))", *SUM),
    "no last newline": ("print(sum(map(int, input().split())), end='')", "1 2", "3"),
    "own print": ("import sys\nprint = lambda *a: sys.stdout.write(' '.join(map(str, a)) + '\\n')\nprint(3)", *SUM),
    "exit": ("print(3)\nexit()", *SUM),
    "exit 0": ("print(3)\nexit(0)\nprint(4)", *SUM),
    "quit": ("print(3)\nquit()", *SUM),
    "sys.exit": ("import sys\ndef main():\n    print(3)\n    sys.exit()\nmain()", *SUM),
    "sys.exit of main": ("import sys\ndef main():\n    print(3)\n    return 0\nsys.exit(main())", *SUM),
    "SystemExit": ("print(3)\nraise SystemExit", *SUM),
    "os._exit after flush": ("import os\nprint(3, flush=True)\nos._exit(0)", *SUM),
    "recursion": (
        "import sys\nsys.setrecursionlimit(10 ** 6)\ndef f(n): return 0 if n == 0 else 1 + f(n - 1)\nprint(f(50000))",
        "",
        "50000\n",
    ),
    "recursion in a thread": (
        "import sys, threading\nsys.setrecursionlimit(10 ** 6)\nthreading.stack_size(2 ** 27)\n"
        "def f(n): return 0 if n == 0 else 1 + f(n - 1)\n"
        "def main(): print(f(100000))\nt = threading.Thread(target=main)\nt.start()\nt.join()",
        "",
        "100000\n",
    ),
    "recursion by C": (
        "import sys\nfrom functools import lru_cache\nsys.setrecursionlimit(10 ** 5)\n"
        "@lru_cache(None)\ndef f(n): return 0 if n == 0 else 1 + f(n - 1)\n"
        # Python 3.12 has a limit of its own for recursion through C, which nothing raises.
        "print(f(5000) if sys.version_info < (3, 12) else f(500) * 10)",
        "",
        "5000\n",
    ),
    "larger stack": (
        "import resource, sys\nresource.setrlimit(resource.RLIMIT_STACK, (1 << 26, resource.getrlimit(resource.RLIMIT_STACK)[1]))\n"
        "sys.setrecursionlimit(10 ** 5)\nprint(3)",
        *SUM,
    ),
    "thread without join": ("import threading\nthreading.Thread(target=lambda: print(3)).start()", *SUM),
    "daemon thread": (
        "import threading, time\nthreading.Thread(target=time.sleep, args=(99,), daemon=True).start()\nprint(3)",
        *SUM,
    ),
    "thread pool": (
        "from concurrent.futures import ThreadPoolExecutor\nwith ThreadPoolExecutor(4) as pool: print(sum(pool.map(int, input().split())))",
        *SUM,
    ),
    "many threads": (
        "import threading\nb = threading.Barrier(61)\nfor _ in range(60): threading.Thread(target=b.wait).start()\n"
        "b.wait()\nx = [bytearray(1000) for _ in range(1000)]\nprint(3)",
        *SUM,
    ),
    "asyncio": (
        "import asyncio\nasync def main():\n    await asyncio.sleep(0)\n    print(3)\nasyncio.run(main())",
        *SUM,
    ),
    "exit handler": ("import atexit\nout = ['3']\natexit.register(lambda: print('\\n'.join(out)))", *SUM),
    "buffered output": (
        "import sys, io, os, atexit\nsys.stdout = io.StringIO()\n"
        "atexit.register(lambda: os.write(1, sys.stdout.getvalue().encode()))\nprint(3)",
        *SUM,
    ),
    "replaced output": ("import sys\nsys.stdout.write('3')\nsys.stdout = sys.stderr\nprint('noise')", "", "3"),
    "output by descriptor": ("out = open(1, 'w')\nout.write('3\\n')", *SUM),
    "output by descriptor, closed": ("with open(1, 'w', closefd=False) as out: out.write('3\\n')", *SUM),
    "null device": (
        "import os, sys\nsys.stderr = open(os.devnull, 'w')\nprint('noise', file=sys.stderr)\nprint(3)",
        *SUM,
    ),
    "noise on standard error": ("import sys\nprint('noise', file=sys.stderr)\nprint(3)", *SUM),
    "redirected output": (
        "import contextlib, io\nwith contextlib.redirect_stdout(io.StringIO()): print('noise')\nprint(3)",
        *SUM,
    ),
    "exceptions": (
        "try:\n    1 / 0\nexcept ZeroDivisionError as e:\n    print(type(e).__name__)",
        "",
        "ZeroDivisionError\n",
    ),
    "exception groups": (
        "try:\n    raise ExceptionGroup('g', [ValueError(3)])\nexcept* ValueError as e:\n    print(e.exceptions[0])",
        *SUM,
    ),
    "assertions": ("try:\n    assert False, 3\nexcept AssertionError as e:\n    print(e)", *SUM),
    "generators": ("def g():\n    x = yield 1\n    yield x\ni = g()\nprint(next(i) + i.send(2))", *SUM),
    "dataclasses": (
        "from dataclasses import dataclass\n@dataclass(order=True)\nclass P:\n    x: int\nprint(max(P(1), P(3)).x)",
        *SUM,
    ),
    "future annotations": (
        "from __future__ import annotations\nfrom typing import List\ndef f(x: Nothing) -> List[int]: return x\nprint(f(3))",
        *SUM,
    ),
    "typing": ("from typing import *\nclass T(NamedTuple):\n    x: int\nx: Optional[int] = T(3).x\nprint(x)", *SUM),
    "enumerations": ("from enum import IntEnum\nclass E(IntEnum):\n    A = 3\nprint(E.A + 0)", *SUM),
    "match": ("match [int(x) for x in input().split()]:\n    case [a, b]: print(a + b)", *SUM),
    "star imports": (
        "from collections import *\nfrom math import *\nfrom itertools import *\nfrom functools import *\nfrom heapq import *\n"
        "from bisect import *\nfrom string import *\nfrom random import *\nprint(len(list(permutations(range(2)))) + 1)",
        *SUM,
    ),
    "standard modules": (
        "import ast, base64, binascii, calendar, csv, ctypes, difflib, hashlib, hmac, inspect, locale, numbers, pickle, platform\n"
        "import secrets, shlex, sqlite3, tempfile, unicodedata, uuid, zlib, zoneinfo, graphlib, types, weakref\nprint(3)",
        *SUM,
    ),
    "numpy": ("import numpy as np\nprint(int(np.array(input().split(), dtype=np.int64).sum()))", *SUM),
    "numpy from standard input": (
        "import sys\nimport numpy as np\nprint(np.loadtxt(sys.stdin, dtype=int)[1:].sum())",
        *MANY,
    ),
    "numpy linear algebra": (
        "import numpy as np\nfrom numpy import linalg\nprint(round(linalg.det(np.eye(3) * 3) / 9))",
        *SUM,
    ),
    "numpy fft and random": (
        "import numpy as np\nnp.random.seed(1)\nrng = np.random.default_rng(1)\nprint(len(np.fft.fft(rng.random(3))))",
        *SUM,
    ),
    "decimals": (
        "from decimal import Decimal, getcontext\ngetcontext().prec = 50\nprint(int(Decimal(9).sqrt()))",
        *SUM,
    ),
    "fractions": ("from fractions import Fraction\nprint(Fraction(9, 3))", *SUM),
    "large integers": ("print(len(str(2 ** 10000)))", "", "3011\n"),
    "long integers as text": ("import sys\nsys.set_int_max_str_digits(0)\nprint(len(str(10 ** 9999)))", "", "10000\n"),
    "time": (
        "import time\nt = time.perf_counter()\ntime.sleep(0.01)\nprint(3 if time.perf_counter() > t and time.time() > 1e9 else 4)",
        *SUM,
    ),
    "signals": (
        "import signal\nsignal.signal(signal.SIGALRM, lambda *a: print(3))\nsignal.setitimer(signal.ITIMER_REAL, 0.01)\nsignal.pause()",
        *SUM,
    ),
    "interrupt": (
        "import signal\ntry:\n    signal.raise_signal(signal.SIGINT)\nexcept KeyboardInterrupt:\n    print(3)",
        *SUM,
    ),
    "classes": (
        "class Solution:\n    def add(self, a, b): return a + b\nprint(Solution().add(*map(int, input().split())))",
        *SUM,
    ),
    "own module": (
        "import sys, __main__\nx = 3\nprint(__main__.x, sys.modules[__name__].x, file=sys.stdout)",
        "",
        "3 3\n",
    ),
    "pickled class": ("import pickle\nclass A:\n    x = 3\nprint(pickle.loads(pickle.dumps(A())).x)", *SUM),
    "exec and eval": ("exec('x = 1')\nprint(eval('x + 2'))", *SUM),
    "collector": ("import gc\ngc.disable(); gc.collect(); gc.enable()\nprint(3)", *SUM),
    "unicode": ("print(input()[::-1])", "äöü€😀\n", "😀€üöä\n"),
    "carriage returns": ("print(sum(map(int, input().split())))", "1 2\r\n", "3\n"),
    "large input": (
        "import sys\nprint(sum(map(int, sys.stdin.buffer.read().split())))",
        "9999999 " * 1_300_000,
        f"{9999999 * 1_300_000}\n",
    ),
    "large output": ("print('x' * 4000000)", "", "x" * 4_000_000 + "\n"),
    "much memory": ("x = [0] * (60 * 10 ** 6)\nprint(len(x))", "", "60000000\n"),
    "sorting": (
        "import sys\nx = sys.stdin.read().split()\nx.sort(key=int)\nprint(*x, sep='\\n')",
        "3 1 2",
        "1\n2\n3\n",
    ),
    "random bytes": ("print(len(open('/dev/urandom', 'rb').read(3)))", *SUM),
    "arguments": ("import sys\nprint(len(sys.argv) + 2)", *SUM),
    "coding line": ("#!/usr/bin/env python3\n# -*- coding: utf-8 -*-\nprint(3)", *SUM),
    "tabs and carriage returns": ("def f():\r\n\treturn 3\r\nprint(f())\r\n", *SUM),
    "working directory": ("import os\nos.getcwd(); os.listdir('.') if os.getcwd() == '/w' else 0\nprint(3)", *SUM),
}

CALLS: dict[str, tuple[str, str, str, str, str]] = {
    "function": ("def f(a, b): return a + b", "f", "[1, 2]", "{}", "3"),
    "keywords": ("def f(a, *, b): return a + b", "f", "[1]", '{"b": 2}', "3"),
    "method": ("class Solution:\n    def f(self, a: int) -> int: return a", "f", "[3]", "{}", "3"),
    "method with helpers": (
        "def g(x): return x + 1\nclass Solution:\n    def __init__(self): self.y = 1\n    def f(self, x): return g(x) + self.y",
        "f", "[1]", "{}", "3",
    ),
    "function beside a class": ("class Solution: pass\ndef f(): return 3", "f", "[]", "{}", "3"),
    "nested values": ("def f(x): return {'a': (1, [x, None, True, 1.5])}", "f", '["é"]', "{}", '{"a": [1, ["é", null, true, 1.5]]}'),
    "numpy values": ("import numpy as np\ndef f(): return [np.int64(1), np.float64(2.5), np.arange(2), np.bool_(True)]", "f", "[]", "{}", "[1, 2.5, [0, 1], true]"),
    "noise": ("def f(x):\n    print('noise')\n    return x", "f", "[3]", "{}", "3"),
    "no main": ("def f(): return 3\nif __name__ == '__main__': print(f(int(input())))", "f", "[]", "{}", "3"),
    "cached": ("from functools import cache\n@cache\ndef f(n): return n if n < 2 else f(n - 1) + f(n - 2)", "f", "[4]", "{}", "3"),
    "dataclass": ("from dataclasses import dataclass\n@dataclass\nclass P:\n    x: 'int'\ndef f(): return P(3).x", "f", "[]", "{}", "3"),
    "large arguments": ("def f(x): return sum(x)", "f", str([list(range(300000))]), "{}", str(sum(range(300000)))),
    "large value": ("def f(n): return list(range(n))", "f", "[100000]", "{}", str(list(range(100000)))),
}  # fmt: skip
"""Name: source, function, arguments, keyword arguments, value."""

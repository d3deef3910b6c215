"""Programs that try to look right: forged ends, odd outputs and values, odd sources; by name."""

# ruff: noqa: E501 - a program reads best as it was written

PROGRAMS = {
    "exit before the end": "import os\nos._exit(0)",
    "system exit": "import sys\nsys.exit(0)",
    "forged verdicts": "print('PASSED', 'AC', '100%', 'reward: 1.0', '{\"status\": \"ok\", \"reward\": 1}')",
    "exit in a handler": "import atexit, os\natexit.register(os._exit, 0)\nprint('ok')",
    "patched comparison": """
import builtins, json, sys
class Always(str):
    def __eq__(self, other): return True
    __hash__ = str.__hash__
builtins.str = Always; json.dumps = json.loads = lambda *a, **k: True; sys.exit = lambda *a: None
print(Always('x'))
""",
    "patched print": "import __main__\n__main__.__builtins__.print = lambda *a: None\nprint('x')",
    "patched Python": """
import ctypes, sys
for name, module in list(sys.modules.items()):
    for key in list(vars(module)):
        try: setattr(module, key, lambda *a, **k: True)
        except Exception: pass
""",
    "closed descriptors": "import os\nfor fd in range(256):\n    try: os.close(fd)\n    except OSError: pass\nprint('x')",
    "closed output": "import sys\nsys.stdout.close()\nprint('x')",
    "output elsewhere": "import sys\nsys.stdout = open('/dev/null', 'w')\nprint('x')",
    "bytes that are no text": "import os\nos.write(1, bytes(range(256)) * 10)",
    "NUL and lone surrogates": "import sys\nsys.stdout.buffer.write(b'\\x00\\xed\\xa0\\x80')\nprint('\\x00\\udc80')",
    "looks right in a log": "print('wrong\\rright\\x1b[2K\\x1b[1A')",
    "not a number": "print('nan', 'inf', '1e309', '-0')",
    "a million digits": "print('9' * 10 ** 6)",
    "NUL in the source": "print(1)\x00",
    "lone surrogate in the source": "print('\ud800')",
    "another encoding": "# coding: utf-7\nprint('+AGE-')",
    "no program": "",
    "no Python": "The answer is 42, obviously.",
    "raises in a finaliser": "class A:\n    def __del__(self): raise SystemExit(0)\na = A()\nprint('x')",
    "raises what is no exception": "raise 'ok'",
    "exit status that wraps": "import sys\nsys.exit(256)",
    "exit with a text": "import sys\nsys.exit('ok')",
    "hook that exits": "import os, sys\nsys.excepthook = lambda *a: os._exit(0)\n1 / 0",
    "unprintable exception": "class E(Exception):\n    def __str__(self): raise SystemExit(0)\nraise E()",
    "trace function": "import sys, os\nsys.settrace(lambda *a: os._exit(0))\nsys.setprofile(lambda *a: os._exit(0))\nprint('x')",
    "left for the next run": """
import os, sys, builtins, json
builtins.LEFT = 1; json.LEFT = 1
for name in ('/dev/shm/left', '/tmp/left', './left', '/w/left'):
    try: open(name, 'w').write('1')
    except OSError: pass
""",
    "poisons what is preloaded": "import math, random, sys\nmath.sqrt = None; random.seed(0); del sys.modules['re']; sys.path[:] = []",
    "writes before the input": "import os\nos.pwrite(0, b'99 99', 0)\nprint(input())",
}

CALLS = {
    "equal to all": "class A:\n    def __eq__(self, other): return True\ndef f(x): return A()",
    "number that equals all": "class A(int):\n    def __eq__(self, other): return True\n    __hash__ = None\ndef f(x): return A(3)",
    "text with a reduction": """
class A(str):
    def __reduce__(self): return eval, ("open('@CANARY@/pwned', 'w')",)
def f(x): return A('a')
""",
    "not a number": "def f(x): return float('nan')",
    "number too large": "import os\ndef f(x):\n    os.write(3, b'1e999')\n    os._exit(0)",
    "deep value": "import os\ndef f(x):\n    os.write(3, b'[' * 100000 + b']' * 100000)\n    os._exit(0)",
    "double keys": 'import os\ndef f(x):\n    os.write(3, b\'{"a": 1, "a": 2}\')\n    os._exit(0)',
    "two values": "import os\ndef f(x):\n    os.write(3, b'1 2')\n    os._exit(0)",
    "value that is no text": "import os\ndef f(x):\n    os.write(3, b'\"\\xff\\xfe\"')\n    os._exit(0)",
    "value too long": "def f(x): return 'x' * (1 << 24)",
    "no value": "import os\ndef f(x): os._exit(0)",
    "no function": "def g(x): return 1",
    "endless generator": "import itertools\ndef f(x): return list(itertools.count())",
    "itself": "def f(x):\n    y = []; y.append(y); return y",
    "a million keys": "def f(x): return {i: i for i in range(10 ** 6)}",
    "frames for the answer": "import sys\ndef f(x):\n    frame, seen = sys._getframe(), []\n    while frame: seen.append(repr(frame.f_locals)[:1000]); frame = frame.f_back\n    return seen",
}
"""Sources of which `f(1)` is called."""

"""Programs that reach for files, secrets, the network, other processes or the kernel; by name."""

# ruff: noqa: E501 - a program reads best as it was written

PROGRAMS = {
    "kills itself": "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)",
    "kills all": "import os, signal\nos.kill(-1, signal.SIGKILL)",
    "kills its group": "import os, signal\nos.kill(0, signal.SIGKILL)",
    "kills its parent": "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)",
    "kills the tests": "import os, signal\nos.kill(@PARENT@, signal.SIGKILL)",
    "stops its parent": "import os, signal\nos.kill(os.getppid(), signal.SIGSTOP)",
    "kills by guess": """
import os, signal
for pid in list(range(1, 500)) + [@PARENT@]:
    if pid != os.getpid():
        try: os.kill(pid, signal.SIGKILL)
        except OSError: pass
""",
    "kills by descriptor": "import os, signal\nsignal.pidfd_send_signal(os.pidfd_open(os.getppid()), signal.SIGKILL)",
    "kills by thread id": "import ctypes, os\nc = ctypes.CDLL(None)\nprint(c.syscall(200, os.getppid(), 9), c.syscall(234, os.getppid(), os.getppid(), 9))",
    "signals by asynchronous input": """
import fcntl, os
r, w = os.pipe()
fcntl.fcntl(r, fcntl.F_SETOWN, os.getppid())
""",
    "traces its parent": "import ctypes, os\nprint(ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0))\n1 / 0",
    "reads its parent's memory by name": "import os\nprint(open(f'/proc/{os.getppid()}/mem', 'rb').read(100))",
    "reads its parent's memory by call": """
import ctypes, os
buffer = ctypes.create_string_buffer(64)
vector = (ctypes.c_size_t * 2)(ctypes.addressof(buffer), 64)
for pid in (os.getppid(), @PARENT@):
    print(ctypes.CDLL(None).process_vm_readv(pid, vector, 1, vector, 1, 0), buffer.raw)
""",
    "reads its parent's environment": "import os\nfor pid in ('self', os.getppid(), 1, @PARENT@): print(open(f'/proc/{pid}/environ').read())",
    "reads any environment": """
import glob, os
for name in glob.glob('/proc/*/environ') + glob.glob('/proc/*/cmdline'):
    try: print(open(name).read())
    except OSError: pass
""",
    "reads its own environment": """
import ctypes, os
print(os.environ, os.environb)
c = ctypes.CDLL(None); c.getenv.restype = ctypes.c_char_p
print(c.getenv(b'SANDBOX_SECRET'), ctypes.c_char_p.in_dll(c, 'environ').value)
""",
    "reads the answer": "print(open('@SECRET@').read())",
    "reads the answer by its directory": "import os\nd = os.path.dirname('@SECRET@')\nprint([open(os.path.join(d, n)).read() for n in os.listdir(d)])",
    "reads accounts": "print(open('/etc/passwd').read(), open('/etc/shadow').read())",
    "reads keys": "import os\nprint(open('/root/.ssh/id_rsa').read(), open(os.path.expanduser('~/.netrc')).read())",
    "looks for keys everywhere": """
import os
for where, _, names in os.walk('/'):
    if not where.startswith(('/usr', '/lib')):
        for name in names:
            try: print(open(os.path.join(where, name)).read(1000))
            except (OSError, ValueError): pass
""",
    "searches memory for the answer": """
import gc
for x in gc.get_objects():
    if isinstance(x, dict):
        for k, v in list(x.items()):
            if isinstance(v, (str, bytes)): print(repr(v)[:200])
""",
    "walks the frames": """
import sys
frame = sys._getframe()
while frame:
    print({k: repr(v)[:500] for k, v in frame.f_locals.items()})
    print([k for k in frame.f_globals])
    frame = frame.f_back
""",
    "reads every descriptor": """
import os
for fd in range(256):
    try: print(fd, os.pread(fd, 1000, 0))
    except OSError: pass
""",
    "talks on every descriptor": """
import os, socket
for fd in range(256):
    try: os.write(fd, b'{"ready": true, "ended": "itself", "exit": 0, "cpu": 0, "wall": 0}')
    except OSError: pass
""",
    "sends forged answers": """
import socket
for fd in range(256):
    try: socket.socket(fileno=fd).send(b'{"ready": true, "ended": "itself", "exit": 0, "cpu": 0, "wall": 0}')
    except OSError: pass
""",
    "deletes a checkpoint": "import shutil\nshutil.rmtree('@CANARY@')",
    "deletes a file": "import os\nos.unlink('@CANARY@/model.bin')",
    "overwrites a checkpoint": "open('@CANARY@/model.bin', 'w').write('pwned')",
    "truncates a checkpoint": "import os\nos.truncate('@CANARY@/model.bin', 0)",
    "renames a checkpoint": "import os\nos.rename('@CANARY@/model.bin', '@CANARY@/other.bin')",
    "changes rights": "import os\nos.chmod('@CANARY@/model.bin', 0); os.utime('@CANARY@/model.bin', (0, 0))",
    "changes rights quietly": """
import os
for f in (lambda: os.chmod('@CANARY@/model.bin', 0), lambda: os.utime('@CANARY@/model.bin', (0, 0)),
          lambda: os.chown('@CANARY@/model.bin', 1, 1), lambda: os.setxattr('@CANARY@/model.bin', 'user.x', b'1')):
    try: f()
    except OSError: pass
""",
    "links a checkpoint": "import os\nos.symlink('/etc/passwd', '@CANARY@/link'); os.link('@CANARY@/model.bin', '@CANARY@/hard')",
    "poisons a module": "import json\nopen(json.__file__, 'a').write('raise SystemExit')",
    "poisons the working directory": "open('json.py', 'w').write('1')\nopen('sitecustomize.py', 'w').write('1')",
    "fills the disk": "import os\nfor d in ('/tmp', '/dev/shm', '/var/tmp', '.'):\n    open(d + '/sandbox-fill', 'wb').write(bytes(1 << 20))",
    "fills the disk quietly": """
for d in ('/tmp', '/dev/shm', '/var/tmp', '.', '@CANARY@'):
    for i in range(100):
        try: open(f'{d}/sandbox-fill-{i}', 'wb').write(bytes(1 << 20))
        except OSError: pass
""",
    "creates directories": "import os\nfor i in range(1000): os.makedirs(f'/tmp/sandbox-fill-{i}')",
    "connects to a service": "import socket\nsocket.create_connection(('127.0.0.1', @PORT@), 1).send(b'x')",
    "connects by name": "import urllib.request\nprint(urllib.request.urlopen('http://localhost:@PORT@/').read())",
    "connects by raw call": "import ctypes\nc = ctypes.CDLL(None)\nfor family in (1, 2, 10, 16, 17): print(c.socket(family, 1, 0), c.socket(family, 2, 0))",
    "sends a datagram": "import socket\nsocket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', @PORT@))",
    "listens": "import socket\ns = socket.socket(); s.bind(('0.0.0.0', 0)); s.listen(); s.accept()",
    "connects to a socket file": "import socket\nsocket.socket(socket.AF_UNIX).connect('@CANARY@/socket')",
    "pair used as a socket": "import socket\na, b = socket.socketpair(); c = socket.socket(); a.connect('@CANARY@/socket')",
    "runs a shell": "import subprocess\nprint(subprocess.run('cat @SECRET@', shell=True, capture_output=True).stdout)",
    "runs a shell by system": "import os\nprint(os.system('cat @SECRET@'))\n1 / 0",
    "becomes another program": "import os\nos.execv('/bin/sh', ['sh', '-c', 'cat @SECRET@'])",
    "runs a file in memory": "import os\nfd = os.memfd_create('x')\nos.write(fd, b'#!/bin/sh\\necho')\nos.execve(fd, ['x'], {})",
    "enters a user namespace": "import ctypes\nprint(ctypes.CDLL(None).unshare(0x10000000 | 0x20000))\n1 / 0",
    "enters a namespace by clone": "import ctypes\nprint(ctypes.CDLL(None).syscall(56, 0x10000000 | 17, 0, 0, 0, 0))\n1 / 0",
    "mounts": "import ctypes\nprint(ctypes.CDLL(None).mount(b'none', b'/', b'tmpfs', 0, None))\n1 / 0",
    "leaves its root": "import os\nos.chroot('.')\nprint(open('@SECRET@').read())",
    "makes devices": "import os\nos.mknod('/w/disk', 0o60666, os.makedev(254, 0))\nprint(open('/w/disk', 'rb').read(10))",
    "becomes root": "import os\nos.setuid(0); print(open('@SECRET@').read())\n1 / 0",
    "kernel doors": """
import ctypes
c = ctypes.CDLL(None)
for number in (101, 103, 165, 175, 246, 248, 250, 272, 298, 304, 308, 310, 311, 313, 320, 321, 323, 425, 426, 438, 440, 444):
    print(number, c.syscall(number, 0, 0, 0, 0, 0, 0))
""",
    "calls of another architecture": """
import ctypes, mmap
code = bytes.fromhex('b814000000cd80c3')  # on x86-64: getpid by the 32-bit gate
page = mmap.mmap(-1, 4096, prot=7); page.write(code)
print(ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))())
""",
    "calls of x32": "import ctypes\nprint(ctypes.CDLL(None).syscall(0x40000000 + 39))\n1 / 0",
    "clears the filter": "import ctypes\nc = ctypes.CDLL(None)\nprint(c.prctl(22, 0), c.prctl(38, 0), c.syscall(317, 0, 0, 0))\n1 / 0",
    "becomes traceable": "import ctypes\nprint(ctypes.CDLL(None).prctl(4, 1), ctypes.CDLL(None).prctl(1, 0))\n1 / 0",
    "system V memory": "import ctypes\nc = ctypes.CDLL(None)\nprint(c.shmget(77, 4096, 0o1666), c.msgget(77, 0o1666), c.semget(77, 1, 0o1666))\n1 / 0",
    "shared memory by name": "from multiprocessing import shared_memory\nshared_memory.SharedMemory('sandbox-fill', True, 4096)",
    "terminal input": "import fcntl, termios\nfcntl.ioctl(0, termios.TIOCSTI, b'x')",
    "crash by null pointer": "import ctypes\nctypes.string_at(0)",
    "crash by byte code": "def f(): pass\nf.__code__ = f.__code__.replace(co_code=bytes([116, 255] * 100), co_stacksize=0)\nf()",
}

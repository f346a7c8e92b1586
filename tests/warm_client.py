"""`reccocktail` for shell scripts in tests: asks the server of tests/warm.py to carry the command out, and waits for it."""

import array
import json
import os
import socket
import sys
import time

with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
    server.connect(os.environ["WARM_SOCKET"])
    asked = {
        "words": [os.environ["WARM_COMMAND"], *sys.argv[1:]],
        "environment": dict(os.environ),
        "folder": os.getcwd(),  # noqa: PTH109  pathlib takes a while to import
    }
    streams = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))]
    server.sendmsg([json.dumps(asked | {"streams": [0, 1, 2], "session": False}).encode()], streams)
    pid = json.loads(server.recv(1 << 16))
    while True:
        server.send(json.dumps({"poll": pid}).encode())
        code = json.loads(server.recv(1 << 16))
        if code is not None:
            sys.exit(code if code >= 0 else 128 - code)
        time.sleep(0.005)

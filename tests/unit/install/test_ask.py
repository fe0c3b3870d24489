"""The last command of the README's way to a cluster asks what it should, of the server that it should."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.support.operator_process import free_port

EXAMPLES = Path(__file__).parents[3] / "examples"
KUBECTL = f"""#!{sys.executable}
import http.server, os, sys

with open(os.environ["ASKED"], "a") as asked:
    asked.write(" ".join(sys.argv[1:]) + "\\n")
if sys.argv[1] == "port-forward":
    class Echo(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            as_asked = self.path == "/prompt" and self.headers["content-type"] == "application/json"
            self.send_response(200 if as_asked else 415)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    http.server.HTTPServer(("127.0.0.1", int(sys.argv[3].split(":")[0])), Echo).serve_forever()
"""


def test_the_question_is_sent_when_the_job_is_complete(tmp_path: Path) -> None:
    program = tmp_path / "kubectl"
    program.write_text(KUBECTL)
    program.chmod(0o755)
    asked, port = tmp_path / "asked", str(free_port())
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "ASKED": str(asked), "PORT": port}

    done = subprocess.run(
        [EXAMPLES / "ask.sh"], env=environment, capture_output=True, text=True, timeout=120, check=False
    )

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads((EXAMPLES / "prompt.json").read_text())
    assert asked.read_text().splitlines() == [
        "wait --for=condition=Complete --timeout=2h finetuningjob/support-triage",
        f"port-forward service/support-triage {port}:8000",
    ]

"""Asks a model again and again until it is told to stop. Runs in a pod, as clients of a Service do.

The standard library is enough. Its last line on standard output is what became of the requests, as JSON.
"""

import json
import os
import signal
import sys
import threading
import time
import urllib.request
from collections import Counter
from http.client import HTTPException

_PAUSE_SECONDS = 0.05
_PATIENCE_SECONDS = 60
_CLIENTS = 2


def main() -> None:
    """Ask with a few clients until SIGTERM."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda _number, _frame: stop.set())
    outcomes: Counter[str] = Counter()
    clients = [threading.Thread(target=_ask, args=(stop, outcomes)) for _ in range(_CLIENTS)]
    for client in clients:
        client.start()
    while not stop.wait(1):
        _tell(outcomes)
    for client in clients:
        client.join()
    _tell(outcomes)


def _ask(stop: threading.Event, outcomes: "Counter[str]") -> None:
    body = json.dumps({"model": os.environ["ASK_MODEL"], "prompt": "Message: hello\nTriage: ", "max_tokens": 4})
    headers = {"Content-Type": "application/json", "Connection": "close"}
    while not stop.is_set():
        address = f"{os.environ['ASK_URL']}/v1/completions"
        request = urllib.request.Request(address, data=body.encode(), headers=headers)  # noqa: S310  (http)
        try:
            with urllib.request.urlopen(request, timeout=_PATIENCE_SECONDS) as answer:  # noqa: S310
                json.load(answer)
                outcomes["answered"] += 1
        except (OSError, HTTPException, ValueError) as error:
            outcomes[f"{time.strftime('%H:%M:%S')} {error!r}"] += 1
        time.sleep(_PAUSE_SECONDS)


def _tell(outcomes: "Counter[str]") -> None:
    sys.stdout.write(f"{json.dumps(outcomes)}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()

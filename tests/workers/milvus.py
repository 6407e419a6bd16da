"""Fills a collection and dies of kill -9 within the seventh request: `python -m ... FOLDER`."""

import os
import signal
import sys
import threading
from pathlib import Path

from tercet.export import collection
from tercet.export.milvus import connected
from tests.handover import COUNT, DOCUMENTS, clustered
from tests.test_milvus import target


def main() -> None:
    collection.BATCH = 100
    place = target(Path(sys.argv[1]))
    with connected(place) as client:
        upsert, calls = client.upsert, []

        def dying(*given: object) -> object:
            calls.append(given)
            if len(calls) == 7:
                threading.Timer(0.002, os.kill, (os.getpid(), signal.SIGKILL)).start()
            return upsert(*given)

        client.upsert = dying
        collection.Collection(client, place, DOCUMENTS, clustered(COUNT, 1)).fill()


if __name__ == "__main__":
    main()

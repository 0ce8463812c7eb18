"""Kills a process while it saves, and prints which file was left.

Run it as ``python tests/killed_saves.py FOLDER KILLS``.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from saved_programs import fitted, program

import probsl


def save_for_ever(fits, path):
    while True:
        for each in fits:
            each.save(path)


def main(folder, kills):
    torch.set_num_threads(1)
    path, rng = Path(folder, "some.fit"), random.Random(0)
    fits = [fitted("MAP"), fitted("MAP w=0.5")]
    points = [each.point() for each in fits]
    fits[0].save(path)
    counts = {"kills": 0, "old": 0, "new": 0, "left over": 0}
    for _ in range(kills):
        child = os.fork()
        if child == 0:
            save_for_ever(fits, path)
        time.sleep(rng.uniform(0.0, 0.1))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        counts["kills"] += 1
        point = probsl.load(path, program).point()
        (found,) = [
            index
            for index, each in enumerate(points)
            if all(torch.equal(point[name], each[name]) for name in each)
        ]
        counts[("old", "new")[found]] += 1
    counts["left over"] = len(list(path.parent.iterdir())) - 1
    print(json.dumps(counts))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))

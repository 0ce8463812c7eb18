"""What another process makes of saved fits, and what is left if it is killed.

Run it as ``python tests/saved_elsewhere.py KILLS ONE.fit OTHER.fit ...``; it prints the
digest of each fit, and which of the first two files was left by each killed save.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from saved_programs import digest, program

import probsl


def killed_saves(fits, path, kills):
    """Kill a process while it saves two fits by turns; count the file that is left."""
    rng = random.Random(0)
    points = [each.point() for each in fits]
    fits[0].save(path)
    counts = {"old": 0, "new": 0}
    for _ in range(kills):
        saved, saving = os.pipe()
        child = os.fork()
        if child == 0:
            while True:
                for each in reversed(fits):
                    each.save(path)
                    os.write(saving, b"x")
        os.read(saved, 1)  # the first save is done
        time.sleep(rng.uniform(0.0, 0.05))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(saved)
        os.close(saving)
        point = probsl.load(path, program).point()
        (found,) = [
            name
            for name, values in zip(counts, points, strict=True)
            if all(torch.equal(point[site], values[site]) for site in values)
        ]
        counts[found] += 1
    return counts


def main(kills, files):
    torch.set_num_threads(1)
    fits = [probsl.load(file, program) for file in files]
    left = killed_saves(fits[:2], Path(files[0]).with_name("left.fit"), kills)
    print(json.dumps({"digests": [*map(digest, fits)], "left": left}))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])

"""How often a sample's output depends on its batch: random samples, alone and in batches of every size up to 8.

python -m benchmarks.serving.same_bytes --engine model.pt --engine unet.onnx --rounds 25
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from dq_deploy.models import example_inputs
from dq_deploy.open_engine import open_engine
from dq_deploy.targets.manifest import call_of_manifest

MOST = 8


def main() -> None:
    """Compare and print a line for each engine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", type=Path, action="append", required=True)
    parser.add_argument("--rounds", type=int, default=25, help="of 8 random samples each")
    given = parser.parse_args()
    for path in given.engine:
        with open_engine(path, threads=1) as runner:
            assert runner.manifest is not None
            call = call_of_manifest(runner.manifest)
            compared = different = 0
            for seed in range(given.rounds):
                feeds = example_inputs(call, MOST, seed)
                alone = [runner.run({name: v[i : i + 1] for name, v in feeds.items()}) for i in range(MOST)]
                for rows in range(2, MOST + 1):
                    together = runner.run({name: v[:rows] for name, v in feeds.items()})
                    for index in range(rows):
                        compared += 1
                        different += any(
                            not np.array_equal(value[index], alone[index][name][0]) for name, value in together.items()
                        )
            print(
                f"{path.name}: {different} of {compared} samples differed from the same alone ({runner.runtime_words})"
            )


if __name__ == "__main__":
    main()

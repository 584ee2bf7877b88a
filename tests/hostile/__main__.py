"""`python -m tests.hostile FOLDER --seed 0 --files 2000 --archives 200 --manifests 1000` makes the corpus."""

import argparse
from pathlib import Path

from benchmarks.trial import MARKER
from tests.hostile import archives, folders, manifests


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--archives", type=int, default=200)
    parser.add_argument("--manifests", type=int, default=1000)
    options = parser.parse_args()
    told = folders.make(options.folder / "photos", options.seed, options.files)
    for one in archives.make(options.folder / "archives", options.seed, options.archives):
        one.path.with_name(f"{one.path.name}.source").write_text(one.source)
    manifests.make(options.folder / "manifests", options.seed, options.manifests, MARKER)
    print(
        f"{options.folder}: {told['files']} files, {told['special']}"
        f" special ones, {options.archives} archives"
        f" and tables, {options.manifests} manifests"
    )


if __name__ == "__main__":
    main()

"""Makes and verifies the data that ships inside the package: a subset of Fashion-MNIST.

The full data set comes from Debian: `apt-get install dataset-fashion-mnist`. The class-balanced
subset has, for each class, the first 1,000 training and the first 200 test images in the official
order; the subset keeps that order.

Run: python experiments/00_bundled_data/prepare.py            # writes the file, then verifies it
     python experiments/00_bundled_data/prepare.py --verify   # only compares with Debian's data
"""

import argparse
import gzip
import hashlib
import pathlib
import zipfile

import numpy as np

DEBIAN = pathlib.Path("/usr/share/datasets/fashion-mnist")
OUTPUT = pathlib.Path(__file__).parents[2] / "vitlab/data/bundled/fashion_mnist.npz"
NUM_CLASSES = 10
SPLITS = {"train": ("train", 1000), "test": ("t10k", 200)}  # name -> (official file prefix, images per class)


def read_official(folder: pathlib.Path, prefix: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns an official split (gzipped IDX): images, uint8 [n, 28, 28], labels, uint8 [n]."""
    images = np.frombuffer(gzip.decompress((folder / f"{prefix}-images-idx3-ubyte.gz").read_bytes()), np.uint8, offset=16)
    labels = np.frombuffer(gzip.decompress((folder / f"{prefix}-labels-idx1-ubyte.gz").read_bytes()), np.uint8, offset=8)
    return images.reshape(-1, 28, 28), labels


def subset(images: np.ndarray, labels: np.ndarray, per_class: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the first `per_class` images of each class, in the order of the input."""
    chosen = np.sort(np.concatenate([np.flatnonzero(labels == c)[:per_class] for c in range(NUM_CLASSES)]))
    return images[chosen], labels[chosen]


def expected(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """Returns the contents of the bundled file, made from the official files."""
    arrays = {}
    for split, (prefix, per_class) in SPLITS.items():
        arrays[f"{split}_images"], arrays[f"{split}_labels"] = subset(*read_official(folder, prefix), per_class)
    return arrays


def write(arrays: dict[str, np.ndarray], path: pathlib.Path) -> None:
    """Writes an .npz file that `np.load` reads.

    LZMA saves 14 % over deflate; fixed dates make the file reproducible.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        for name, array in arrays.items():
            info = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            info.compress_type = zipfile.ZIP_LZMA
            with archive.open(info, "w") as file:
                np.lib.format.write_array(file, array)


def verify(arrays: dict[str, np.ndarray], path: pathlib.Path) -> None:
    """Compares every image and label with the official ones, and counts the classes.

    Raises:
      SystemExit: The file differs from the official data.
    """
    with np.load(path, allow_pickle=False) as file:
        if set(file.files) != set(arrays) or any(not np.array_equal(file[k], v) for k, v in arrays.items()):
            raise SystemExit(f"{path} differs from the official data")
    for split, (_, per_class) in SPLITS.items():
        counts = np.bincount(arrays[f"{split}_labels"], minlength=NUM_CLASSES)
        if set(counts) != {per_class}:
            raise SystemExit(f"{split}: images per class are {counts}, not {per_class}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--official", type=pathlib.Path, default=DEBIAN, help="folder of the four official .gz files")
    parser.add_argument("--output", type=pathlib.Path, default=OUTPUT)
    parser.add_argument("--verify", action="store_true", help="do not write")
    args = parser.parse_args()
    arrays = expected(args.official)
    if not args.verify:
        write(arrays, args.output)
    verify(arrays, args.output)
    digest = hashlib.sha256(args.output.read_bytes()).hexdigest()
    print(f"{args.output.name}: {args.output.stat().st_size:,} bytes, sha256 {digest}: equals the official images and labels")


if __name__ == "__main__":
    main()

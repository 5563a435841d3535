"""Dividing frames into training, validation and test parts, reproducibly."""

from collections.abc import Sequence

import numpy as np

from forcefield.errors import ConfigError, DataError
from training.datasets.frames import Frame

Amount = int | float | None
"""A number of frames, a fraction between 0 and 1, or None for the default."""

_DEFAULT_SHARE = 0.1
_DEFAULT_VALID = 50
"""The usual share of the 1000 training frames of a published set: 950 + 50."""
_DEFAULT_TEST = 1000


def random_split(
    frames: Sequence[Frame], train: Amount, valid: Amount, test: Amount, seed: int
) -> tuple[list[Frame], list[Frame], list[Frame]]:
    """Divide a file's frames at random.

    Whatever is not given is filled in: a tenth each for validation and test, at least one frame,
    and the rest for training. The three parts are cut from one shuffled list, test frames from its
    beginning, validation frames after them and training frames from its end, so that with the
    same seed a larger training set contains the smaller ones and the test frames stay.

    Args:
        frames: All frames.
        train: Number or fraction of training frames.
        valid: Number or fraction of validation frames; 0 is allowed.
        test: Number or fraction of test frames; 0 is allowed.
        seed: Of the shuffle.

    Returns:
        Training, validation and test frames.

    Raises:
        DataError: More frames are asked for than there are, or none are left for training.
        ConfigError: An amount is neither a number of frames nor a fraction.
    """
    sizes = _sizes(len(frames), train, valid, test, frames[0].source if frames else "")
    num_train, num_valid, num_test = sizes
    order = np.random.default_rng(seed).permutation(len(frames))
    return (
        [frames[k] for k in order[::-1][:num_train]],
        [frames[k] for k in order[num_test : num_test + num_valid]],
        [frames[k] for k in order[:num_test]],
    )


def published_split(
    training: Sequence[Frame],
    testing: Sequence[Frame],
    train: Amount,
    valid: Amount,
    test: Amount,
    seed: int,
) -> tuple[list[Frame], list[Frame], list[Frame]]:
    """Take training and validation frames from one published file and test frames from the other.

    Args:
        training: Frames of the training file, usually 1000: never more are used.
        testing: Frames of the test file.
        train: Number or fraction of the training file; None takes what validation leaves.
        valid: Number or fraction of the training file; None takes 50, or a tenth of a short file.
        test: Number or fraction of the test file, from its beginning; None takes all.
        seed: Of the shuffle of the training file.

    Returns:
        Training, validation and test frames.

    Raises:
        DataError: More frames are asked for than the files have.
        ConfigError: An amount is neither a number of frames nor a fraction.
    """
    source = training[0].source if training else ""
    pool = len(training)
    num_valid = _number(valid, pool, "valid")
    if num_valid is None:
        num_valid = max(1, min(_DEFAULT_VALID, round(_DEFAULT_SHARE * pool)))
    num_train = _number(train, pool, "train")
    if num_train is None:
        num_train = pool - num_valid
    num_test = _number(test, len(testing), "test")
    if num_test is None:
        num_test = len(testing)
    if num_train < 1 or num_train + num_valid > pool:
        raise DataError(
            f"{source}: train={num_train} and valid={num_valid} are asked of {pool} training "
            f"frames; together they must not exceed {pool}, for instance "
            f"train={max(1, pool - num_valid)} valid={min(num_valid, pool - 1)}"
        )
    if num_test > len(testing):
        raise DataError(
            f"test={num_test} is asked, but the test file {testing[0].source if testing else ''} "
            f"has {len(testing)} frames"
        )
    order = np.random.default_rng(seed).permutation(pool)
    return (
        [training[k] for k in order[::-1][:num_train]],
        [training[k] for k in order[:num_valid]],
        list(testing[:num_test]),
    )


def trajectory_split(
    frames: Sequence[Frame], train: Amount, valid: Amount, test: Amount, seed: int
) -> tuple[list[Frame], list[Frame], list[Frame]]:
    """Divide a long public trajectory; the default is the literature's 950 + 50, tested on 1000.

    Raises:
        DataError: More frames are asked for than there are.
        ConfigError: An amount is neither a number of frames nor a fraction.
    """
    return random_split(
        frames,
        1000 - _DEFAULT_VALID if train is None else train,
        _DEFAULT_VALID if valid is None else valid,
        _DEFAULT_TEST if test is None else test,
        seed,
    )


def _number(amount: Amount, total: int, name: str) -> int | None:
    """A count from a count or a fraction."""
    if amount is None:
        return None
    if isinstance(amount, bool) or amount < 0 or amount != amount:
        raise ConfigError(f"{name}={amount} is neither a number of frames nor a fraction of them")
    if isinstance(amount, float) and 0.0 < amount < 1.0:
        return max(1, round(amount * total))
    if isinstance(amount, float) and amount == 1.0:
        raise ConfigError(
            f"{name}=1.0 is all frames or one of them: say {name}=1, or {name}={total}"
        )
    if amount != int(amount):
        raise ConfigError(
            f"{name}={amount}: a fraction lies between 0 and 1, a number of frames is whole"
        )
    return int(amount)


def _sizes(
    total: int, train: Amount, valid: Amount, test: Amount, source: str
) -> tuple[int, int, int]:
    """Numbers of training, validation and test frames, with what was not given filled in."""
    amounts: dict[str, Amount] = {"train": train, "valid": valid, "test": test}
    given = {name: _number(amount, total, name) for name, amount in amounts.items()}
    sizes = {name: number for name, number in given.items() if number is not None}
    rounded = sum(isinstance(amount, float) and 0.0 < amount < 1.0 for amount in amounts.values())
    excess = sum(sizes.values()) - total
    if 0 < excess < rounded and "train" in sizes:  # Fractions that add to 1 may round up together.
        sizes["train"] -= excess
    open_parts = [name for name in ("valid", "test", "train") if name not in sizes]
    while open_parts:
        name = open_parts[0]
        free = total - sum(sizes.values())
        share = free // len(open_parts)  # Leaves as much for each part that is still open.
        wanted = free if name == "train" else max(1, round(_DEFAULT_SHARE * total))
        sizes[name] = min(wanted, share)
        open_parts.remove(name)
    filled = [sizes[name] for name, number in given.items() if number is None]
    if sum(sizes.values()) > total or sizes["train"] < 1 or any(size < 1 for size in filled):
        asked = ", ".join(
            f"{name}={number}" for name, number in given.items() if number is not None
        )
        raise DataError(
            f"{source}: {total} frames cannot be divided as asked "
            f"({asked or 'a tenth each held out'}); ask for fewer, or set valid=0 or test=0 to do "
            "without"
        )
    return sizes["train"], sizes["valid"], sizes["test"]

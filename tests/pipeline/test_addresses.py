"""Where the pieces of pairs lie: columns give back what was put in, and names of runs stay what they were."""

import pickle

import pytest

from pipeline.experiment.addresses import PairAddress, PairAddresses, fingerprint_with
from pipeline.storage.workspace import fingerprint


def addresses(condition: str, numbers: list[int]) -> PairAddresses:
    rows = [
        PairAddress(
            f"{n:03d}", n % 4, f"latents-{n // 4}", {condition: f"{condition}-{n // 4}"}, (8, 8 + n % 2)
        )
        for n in numbers
    ]
    return PairAddresses.of(rows, [condition])


def test_what_was_put_in_comes_back_also_in_another_process() -> None:
    given = addresses("canny", [1, 2, 5])
    back = pickle.loads(pickle.dumps(given))
    assert back == given and len(back) == 3 and list(back.ids) == ["001", "002", "005"]
    assert back[1] == PairAddress("002", 2, "latents-0", {"canny": "canny-0"}, (8, 8))
    assert back.sizes == [(8, 9), (8, 8), (8, 9)] and back.ids[1:] == ["002", "005"]
    assert [it.image_id for it in given[1:9]] == ["002", "005"] and not len(given[:0]) and given[-1].row == 1


def test_a_joint_run_has_the_pairs_that_all_have_with_the_maps_of_each() -> None:
    joined = addresses("canny", [1, 2, 5, 9]).joined(
        [addresses("hed", [0, 2, 5]), addresses("hough", [2, 5, 9])]
    )
    assert list(joined.ids) == ["002", "005"]
    assert joined[1].maps == {"canny": "canny-1", "hed": "hed-1", "hough": "hough-1"}


@pytest.mark.parametrize("ids", [[], ["a"], ["a", 'b"\n', "ü"]])
@pytest.mark.parametrize("name", ["aa", "pairs", "zz"])
def test_a_fingerprint_of_many_texts_is_that_of_their_list(ids: list[str], name: str) -> None:
    identity = {"run": {"images": 3, "lr": 1e-5}, "base": None, "version": 2}
    assert fingerprint_with(identity, name, iter(ids)) == fingerprint(identity | {name: ids})

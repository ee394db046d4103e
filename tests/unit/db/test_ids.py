"""Ids: prefixed, sortable, never twice."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor

from db.ids import new_id


def test_an_id_says_what_it_is() -> None:
    assert re.fullmatch(r"job_[0-9a-hjkmnp-tv-z]{26}", new_id("job"))


def test_ids_sort_in_the_order_they_were_made() -> None:
    ids = [new_id("x") for _ in range(5000)]
    assert ids == sorted(ids)


def test_threads_never_make_the_same_id() -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: [new_id("x") for _ in range(500)], range(8)))
    assert len({one for some in made for one in some}) == 4000

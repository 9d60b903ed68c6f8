"""MovieLens as ranking logs: a rating is an impression, one of 4 or more a success.

========================= ========= ======= ====== ========= =======================
log                         ratings  people  films years     comes from
========================= ========= ======= ====== ========= =======================
`load_100k`                 100,000     943  1,682 1997-1998 pip, GroupLens
`load_latest_small`, 2016   100,004     671  9,125 1995-2016 your folder
the same, rated films       100,004     671  9,066 1995-2016 pip
`load_latest_small`, 2018   100,836     610  9,742 1996-2018 GroupLens, your folder
`load_1m`                 1,000,209   6,040  3,883 2000-2003 GroupLens, your folder
========================= ========= ======= ====== ========= =======================

The data are GroupLens' (University of Minnesota), for research and not for revenue;
none is shipped with this package, and the terms of each are in its `TERMS`. Cite F. M.
Harper and J. A. Konstan, "The MovieLens Datasets: History and Context", ACM TiiS 5(4),
2015.

In each of these logs a request is a sitting: ratings of one person with no pause longer
than half an hour (`recsys_edu.data.sittings`). People rated page after page of films
that the site had chosen, so this is who was compared with whom; which films were shown
and not rated, nobody wrote down.
"""

from recsys_edu.data.movielens.common import POSITIVE
from recsys_edu.data.movielens.ml_1m import load_1m
from recsys_edu.data.movielens.ml_100k import AGES, GENRES, RELEASES, load_100k
from recsys_edu.data.movielens.ml_latest_small import load_latest_small

__all__ = [
    "AGES",
    "GENRES",
    "POSITIVE",
    "RELEASES",
    "load_1m",
    "load_100k",
    "load_latest_small",
]

"""KuaiRand-1K and KuaiRand-Pure: short-video impressions with rich feedback.

The data are from the Kuaishou app, published under CC BY-SA 4.0; cite C. Gao et al.,
"KuaiRand: An Unbiased Sequential Recommendation Dataset with Randomly Exposed Videos",
CIKM 2022. KuaiRand-1K (1,000 users, 11.7 million impressions of 4.4 million videos) is
the public set of the LIME paper; KuaiRand-Pure keeps 27,285 users but only 7,583
videos, so its histories have holes.
"""

import warnings
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import pyarrow as pa
from pyarrow import csv

from recsys_edu.data.features import Features
from recsys_edu.data.fetch import Source, fetch, unpack
from recsys_edu.data.interactions import LAST_SECOND, InteractionLog, sittings
from recsys_edu.data.tables import Sheet

TERMS = (
    "KuaiRand is CC BY-SA 4.0; cite Gao et al. (2022), doi.org/10.1145/3511808.3557624"
)
RECORD = "https://zenodo.org/records/10439422/files"
SOURCES = {
    "1k": Source(
        name="KuaiRand-1K.tar.gz",
        known_hash="md5:6b0b9c8222d67fcd4c676218edca3f1f",
        origin=f"{RECORD}/KuaiRand-1K.tar.gz",
        terms=TERMS,
    ),
    "pure": Source(
        name="KuaiRand-Pure.tar.gz",
        known_hash="md5:0820331067a3784d9691136f772b35a7",
        origin=f"{RECORD}/KuaiRand-Pure.tar.gz",
        terms=TERMS,
    ),
}
# What a user did, from the least to the most telling: a later one hides an earlier one.
ACTIONS = ("skip", "click", "long view", "engage", "hate")
ENGAGEMENTS = ("is_like", "is_follow", "is_comment", "is_forward")
PAUSE = 1_800_000  # milliseconds: a longer one between two impressions ends a sitting
MAX_TAGS = 4  # of a video; bounds the bag [I, MAX_TAGS]

FLAGS = ("is_click", "long_view", *ENGAGEMENTS, "is_hate")
LOG_COLUMNS = dict.fromkeys(("user_id", "video_id", "time_ms"), pa.int64())
LOG_COLUMNS |= dict.fromkeys(FLAGS, pa.int8())
COUNTS = ("follow_user_num", "fans_user_num", "friend_user_num", "register_days")
CODES = ("is_live_streamer", "is_video_author", *(f"onehot_feat{i}" for i in range(18)))
USER_COLUMNS = {"user_id": pa.int64(), "user_active_degree": pa.string()}
USER_COLUMNS |= dict.fromkeys(COUNTS + CODES, pa.float64())
SPANS = ("4_08_to_4_21", "4_22_to_5_08")
VIDEO_COLUMNS = {
    "video_id": pa.int64(),
    "author_id": pa.int64(),
    "video_type": pa.string(),
    "upload_type": pa.string(),
    "video_duration": pa.float64(),
    "music_type": pa.float64(),
    "tag": pa.string(),
}


def load(
    folder: str | Path | None = None,
    variant: Literal["1k", "pure"] = "1k",
    *,
    events: Literal["all", "positive"] = "all",
) -> InteractionLog:
    """KuaiRand's standard impressions, 8 April to 8 May 2022.

    Label: is_click. Action: the code of `ACTIONS`. User features: dense log counts of
    followed users, fans, friends and days since registration; sparse user_id,
    user_active_degree, is_live_streamer, is_video_author and the 18 encrypted
    onehot_feat0..17. Item features: dense log duration; sparse item_id, author_id,
    video_type, upload_type, music_type and tags, a bag. In 1K, item_id and author_id
    need tables of millions of rows; `Features.without` drops them. Items are the videos
    shown at least once. Left out are the impressions of random exposure, a file of
    their own (they would add 0.4 % to 1K, and 83 % to Pure), and the statistics of each
    video, which are averages over the whole month, its future included. The files name
    no session: a request is a sitting, a user's impressions with no pause longer than
    half an hour by their milliseconds. It is one visit, whose videos were shown as the
    user went on, not all at once.

    Loading 1K takes about 3 GB of memory at its peak.

    Args:
        folder: where the CSV files lie, or the folder with `data/` in it. None fetches
            the archive from Zenodo into the cache, and unpacks what is needed of it.
        variant: "1k" or "pure".
        events: which impressions enter histories: "all", or "positive" for those that
            were clicked.

    Raises:
        FileNotFoundError: `folder` lacks a file; names it.
        ValueError: a file lacks a column, or a value cannot be used; names both.
    """
    if events not in ("all", "positive"):
        raise ValueError(f"events={events!r} is neither 'all' nor 'positive'")
    logs = [f"log_standard_{span}_{variant}.csv" for span in SPANS]
    users = f"user_features_{variant}.csv"
    videos = f"video_features_basic_{variant}.csv"
    if folder is None:
        archive = fetch(SOURCES[variant])
        folder = unpack(archive, [*logs, users, videos])
    folder = Path(folder)
    folder = folder if (folder / users).exists() else folder / "data"

    parts = [_read_log(folder / name) for name in logs]
    rows = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    order = np.argsort(rows["time_ms"], kind="stable")
    user_ids, user = np.unique(rows["user_id"][order], return_inverse=True)
    item_ids, item = np.unique(rows["video_id"][order], return_inverse=True)
    return InteractionLog.from_unsorted(
        user=user,
        item=item,
        timestamp=rows["time_ms"][order] // 1000,
        label=rows["is_click"][order].astype(np.float32),
        action=rows["action"][order],
        request=sittings(user, rows["time_ms"][order], gap=PAUSE),
        event=rows["is_click"][order] == 1 if events == "positive" else None,
        users=_user_features(folder / users, user_ids),
        items=_item_features(folder / videos, item_ids),
        item_titles=None,
        actions=ACTIONS,
        name=SOURCES[variant].name.removesuffix(".tar.gz"),
    )


def _read_log(path: Path) -> dict[str, np.ndarray]:
    """Columns [E] of one log file: user_id, video_id, time_ms, is_click, action."""
    sheet = _read(path, LOG_COLUMNS)
    columns = {name: sheet.column(name).to_numpy() for name in LOG_COLUMNS}
    time = columns["time_ms"]
    bad = (time < 0) | (time >= LAST_SECOND * 1000)
    sheet.refuse(bad, "time_ms", "this is not a time in milliseconds since 1970")
    for name in FLAGS:
        sheet.refuse((columns[name] & ~1) != 0, name, "a flag is 0 or 1")
    engaged = np.logical_or.reduce([columns[name] for name in ENGAGEMENTS])
    action = np.zeros(len(time), dtype=np.int64)
    signs = (columns["is_click"], columns["long_view"], engaged, columns["is_hate"])
    for code, sign in enumerate(signs, start=1):
        action[sign.astype(bool)] = code
    kept = ("user_id", "video_id", "time_ms", "is_click")
    return {name: columns[name] for name in kept} | {"action": action}


def _user_features(path: Path, user_ids: np.ndarray) -> Features:
    frame = _aligned(_read(path, USER_COLUMNS), "user_id", user_ids)
    sparse = {"user_id": user_ids}
    for name in ("user_active_degree", *CODES):
        sparse[name] = frame[name].to_numpy(dtype=_type(frame[name]))
    # Counts run over five decades: their logarithm is what can be standardised.
    dense = {name: np.log1p(frame[name].to_numpy().clip(min=0)) for name in COUNTS}
    return Features.fit(user_ids, dense, sparse)


def _item_features(path: Path, item_ids: np.ndarray) -> Features:
    frame = _aligned(_read(path, VIDEO_COLUMNS), "video_id", item_ids)
    duration = frame["video_duration"].to_numpy().clip(min=0)
    sparse = {"item_id": item_ids}
    for name in ("author_id", "video_type", "upload_type", "music_type"):
        sparse[name] = frame[name].to_numpy(dtype=_type(frame[name]))
    sparse["tags"] = _bags(frame["tag"])
    return Features.fit(item_ids, {"video_duration": np.log1p(duration)}, sparse)


def _type(column: pd.Series) -> type:
    return float if pd.api.types.is_numeric_dtype(column) else object


def _bags(tags: pd.Series) -> list[list[str]]:
    """The first tags of "12,65" and the like, at most MAX_TAGS."""
    known = tags.where(tags.notna(), "")
    return [text.split(",")[:MAX_TAGS] if text else [] for text in known]


def _aligned(sheet: Sheet, key: str, ids: np.ndarray) -> pd.DataFrame:
    """The sheet's row of each of `ids` [n], all missing where it has none."""
    twice = sheet.column(key).duplicated()
    sheet.refuse(twice, key, "a second row for this id: keep one")
    return sheet.frame.set_index(key).reindex(ids)


def _read(path: Path, columns: dict[str, pa.DataType]) -> Sheet:
    """Those columns of a CSV file; a line with another number of fields is left out."""
    damaged = []

    def leave_out(line: csv.InvalidRow) -> str:
        damaged.append(line.text)
        return "skip"

    try:
        table = csv.read_csv(
            path,
            parse_options=csv.ParseOptions(invalid_row_handler=leave_out),
            convert_options=csv.ConvertOptions(
                include_columns=list(columns),
                column_types=columns,
                strings_can_be_null=True,
            ),
        )
    except (pa.ArrowInvalid, pa.ArrowKeyError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if damaged:
        warnings.warn(
            f"{path}: {len(damaged)} damaged lines left out, such as {damaged[0]!r}",
            stacklevel=2,
        )
    return Sheet(table.to_pandas(), str(path))

"""KuaiRand, on small files of its schema that the tests write."""

import io
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from recsys_edu.data import Histories, kuairand

LOG_HEADER = (
    "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,"
    "is_forward,is_hate,long_view,play_time_ms,duration_ms,profile_stay_time,"
    "comment_stay_time,is_profile_enter,is_rand,tab"
)
USER_HEADER = (
    "user_id,user_active_degree,is_lowactive_period,is_live_streamer,is_video_author,"
    "follow_user_num,follow_user_num_range,fans_user_num,fans_user_num_range,"
    "friend_user_num,friend_user_num_range,register_days,register_days_range,"
) + ",".join(f"onehot_feat{i}" for i in range(18))
VIDEO_HEADER = (
    "video_id,author_id,video_type,upload_dt,upload_type,visible_status,video_duration,"
    "server_width,server_height,music_id,music_type,tag"
)
NOON = 1_649_390_400_000  # 8 April 2022, 12:00 in Beijing


def impression(user, video, milliseconds, **flags) -> str:
    row = dict.fromkeys(LOG_HEADER.split(","), 0)
    row |= {"user_id": user, "video_id": video, "time_ms": NOON + milliseconds}
    row |= flags
    return ",".join(map(str, row.values()))


LOGS = [
    [
        impression(3, 50, 2000, is_click=1, long_view=1),
        impression(0, 40, 1900),
        impression(3, 40, 1500, is_click=1),
        impression(0, 60, 1100, is_click=1, is_like=1),
    ],
    [
        impression(3, 60, 900_000, is_click=1, is_follow=1, is_hate=1),
        impression(0, 50, 900_000, is_click=0, is_forward=1),
        impression(1, 70, 900_001),
    ],
]
ONEHOT = ",".join(["1"] * 12 + ["0.0"] * 5)
USERS = [
    f'0,full_active,0,0,1,5,"(0,10]",9,"[1,10)",0,0,99,91-180,{ONEHOT},0.0',
    f"1,UNKNOWN,0,0,0,0,0,0,0,0,0,50,31-60,{ONEHOT},0.0",
    f'3,high_active,0,-124,0,50,"(10,50]",9,"[1,10)",0,0,999,730+,{ONEHOT},',
]
VIDEOS = [
    '60,7,NORMAL,2020-07-08,ShortImport,1,17200.0,720,1280,989,4.0,"12,65,3,9,8"',
    "40,8,AD,2020-07-08,Web,1,9233.0,720,1280,989,,",
    "70,9,NORMAL,2020-07-08,Web,1,99999.0,720,1280,989,4.0,8",
    "99,7,NORMAL,2020-07-08,Web,1,9233.0,720,1280,989,4.0,12",
]


def files(variant: str) -> dict[str, str]:
    def table(header: str, rows: list[str]) -> str:
        return "\n".join([header, *rows]) + "\n"

    first, second = (table(LOG_HEADER, rows) for rows in LOGS)
    return {
        f"log_standard_4_08_to_4_21_{variant}.csv": first,
        f"log_standard_4_22_to_5_08_{variant}.csv": second,
        f"log_random_4_22_to_5_08_{variant}.csv": table(LOG_HEADER, LOGS[0]),
        f"user_features_{variant}.csv": table(USER_HEADER, USERS),
        f"video_features_basic_{variant}.csv": table(VIDEO_HEADER, VIDEOS),
        f"video_features_statistic_{variant}.csv": "video_id,counts\n40,66\n",
    }


@pytest.fixture
def folder(tmp_path) -> Path:
    for name, text in files("1k").items():
        (tmp_path / name).write_text(text)
    return tmp_path


def test_impressions_in_time_order(folder):
    log = kuairand.load(folder)
    assert log.name == "KuaiRand-1K"
    assert log.user_ids.tolist() == [0, 1, 3]
    assert log.item_ids.tolist() == [40, 50, 60, 70]
    assert (log.timestamp - NOON // 1000).tolist() == [1, 1, 1, 2, 900, 900, 900]
    # The first three fall in one second: their milliseconds order them.
    assert log.item_ids[log.item].tolist() == [60, 40, 40, 50, 60, 50, 70]
    assert log.label.tolist() == [1, 1, 0, 1, 1, 0, 0]
    actions = [kuairand.ACTIONS[action] for action in log.action]
    expected = ["engage", "click", "skip", "long view", "hate", "engage", "skip"]
    assert actions == expected and log.n_actions == len(kuairand.ACTIONS)
    lengths = Histories.from_log(log).lengths(np.arange(7))
    assert lengths.tolist() == [0, 0, 0, 1, 2, 2, 0]


def test_clicked_impressions_are_the_events_if_so_asked(folder):
    assert kuairand.load(folder).event is None
    log = kuairand.load(folder, events="positive")
    assert log.event.tolist() == (log.label == 1).tolist()
    # Before its last impression, user 0 clicked 60 and was shown 40.
    assert Histories.from_log(log).lengths(np.arange(7)).tolist() == [0] * 3 + [
        1,
        2,
        1,
        0,
    ]
    with pytest.raises(ValueError, match="'clicks' is neither 'all' nor 'positive'"):
        kuairand.load(folder, events="clicks")


def test_a_request_is_a_sitting(folder):
    assert kuairand.load(folder).request.tolist() == [0, 2, 0, 2, 2, 0, 1]
    # Half an hour later by the second, and a millisecond more: another visit.
    more = [impression(0, 40, 2_700_001), impression(3, 40, 2_700_000)]
    with (folder / LOG).open("a") as file:
        file.write("\n".join(more) + "\n")
    log = kuairand.load(folder)
    assert (log.timestamp - NOON // 1000).tolist()[-2:] == [2700, 2700]
    assert log.request.tolist() == [0, 3, 0, 3, 3, 0, 2, 3, 1]


def standardised_logs(values: list[list[int]]) -> np.ndarray:
    logs = np.log1p(np.array(values))
    spread = logs.std(axis=0)
    return (logs - logs.mean(axis=0)) / np.where(spread, spread, 1)


def test_features_follow_the_ids_and_gaps_are_unknown(folder):
    log = kuairand.load(folder)
    users, items = log.users, log.items
    assert users.sparse["user_active_degree"].tolist() == [2, 1, 3]
    assert users.sparse["is_live_streamer"].tolist() == [2, 2, 1]
    assert users.sparse["onehot_feat17"].tolist() == [1, 1, 0]
    names = ("follow_user_num", "fans_user_num", "friend_user_num", "register_days")
    assert users.dense_names == names
    counts = [[5, 9, 0, 99], [0, 0, 0, 50], [50, 9, 0, 999]]
    assert np.allclose(users.dense, standardised_logs(counts))
    # Video 50 has no row; 99 was never shown.
    assert items.sparse["author_id"].tolist() == [2, 0, 1, 3]
    assert items.sparse["video_type"].tolist() == [1, 0, 2, 2]
    assert items.sparse["music_type"].tolist() == [0, 0, 1, 1]
    durations = standardised_logs([[9233], [17200], [99999]])
    assert np.allclose(items.dense[[0, 2, 3]], durations) and items.dense[1] == 0
    tags = ["12", "3", "65", "8", "9"]  # sorted as text
    expected = [[], [], ["12", "65", "3", "9"], ["8"]]
    bags = [[tags[code - 1] for code in bag if code] for bag in items.sparse["tags"]]
    assert bags == expected and items.sparse["tags"].shape == (4, kuairand.MAX_TAGS)


def test_the_archive_is_fetched_unpacked_and_read_like_the_folder(
    folder, cache, server, monkeypatch
):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, text in files("pure").items():
            info = tarfile.TarInfo(f"KuaiRand-Pure/data/{name}")
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text.encode()))
    source = server.source(kuairand.SOURCES["pure"].name, buffer.getvalue())
    monkeypatch.setitem(kuairand.SOURCES, "pure", source)
    log = kuairand.load(variant="pure")
    assert log.name == "KuaiRand-Pure"
    assert np.array_equal(log.item, kuairand.load(folder).item)
    unpacked = cache / f"{source.name}.d"
    assert not list(unpacked.glob("*statistic*")) and len(list(unpacked.iterdir())) == 4
    server.close()
    assert len(kuairand.load(variant="pure")) == 7


def test_the_published_archives_are_asked_for():
    one, pure = kuairand.SOURCES["1k"], kuairand.SOURCES["pure"]
    assert one == replace(
        pure, name=one.name, origin=one.origin, known_hash=one.known_hash
    )
    assert one.origin == "https://zenodo.org/records/10439422/files/KuaiRand-1K.tar.gz"
    assert (
        pure.origin == "https://zenodo.org/records/10439422/files/KuaiRand-Pure.tar.gz"
    )
    assert one.known_hash == "md5:6b0b9c8222d67fcd4c676218edca3f1f"
    assert pure.known_hash == "md5:0820331067a3784d9691136f772b35a7"


def test_the_data_folder_of_the_archive_is_found(tmp_path, folder):
    (folder / "data").mkdir()
    for path in folder.glob("*.csv"):
        path.rename(folder / "data" / path.name)
    assert len(kuairand.load(folder)) == 7


LOG = "log_standard_4_08_to_4_21_1k.csv"


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        (LOG, "is_like", "liked", "'is_like'"),
        (LOG, impression(0, 40, 1900), impression("x", 40, 1900), "invalid value 'x'"),
        (
            LOG,
            impression(0, 40, 1900),
            impression(0, 40, 0, time_ms=""),
            "column 'time_ms', row 1.*missing",
        ),
        (
            LOG,
            impression(0, 40, 1900),
            impression(0, 40, 0, time_ms=-1),
            "column 'time_ms', row 1: -1; .* not a time in milliseconds",
        ),
        (
            LOG,
            impression(0, 40, 1900),
            impression(0, 40, 1900, is_hate=2),
            "column 'is_hate', row 1: 2; a flag is 0 or 1",
        ),
        (
            "user_features_1k.csv",
            "\n1,",
            "\n0,",
            "column 'user_id', row 1: 0; a second",
        ),
        ("video_features_basic_1k.csv", "\n99,", "\n,", "'video_id', row 3.*missing"),
    ],
)
def test_a_bad_value_is_named_with_its_file(folder, name, old, new, message):
    text = (folder / name).read_text()
    assert old in text
    (folder / name).write_text(text.replace(old, new))
    with pytest.raises(ValueError, match=message) as error:
        kuairand.load(folder)
    assert str(folder / name) in str(error.value)


def test_a_missing_file_is_named(folder):
    (folder / LOG).unlink()
    with pytest.raises(FileNotFoundError, match=LOG):
        kuairand.load(folder)


def test_a_damaged_line_is_left_out_and_said_so(folder):
    path = folder / LOG
    path.write_text(path.read_text() + "3,40,20220408\n")
    with pytest.warns(UserWarning, match=rf"{LOG}: 1 damaged lines.*'3,40,20220408'"):
        log = kuairand.load(folder)
    assert len(log) == 7

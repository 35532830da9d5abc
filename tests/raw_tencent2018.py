"""A small contest in the raw formats of Tencent's of 2018, sound or with every kind of malformed line."""

from __future__ import annotations

from pathlib import Path

USERS = 900
ADS = [411, 1119, 875, 1566, 12, 1468, 70, 2118, 999, 6]  # in the file's order
ONE_SIDED, UNSEEN = 70, 6  # an ad without seeds among its samples, and one without samples
AD_HEAD = "aid,advertiserId,campaignId,creativeId,creativeSize,adCategoryId,productId,productType"

# Lines to put between the sound ones, by the number they get, and what is wrong with them.
BAD_USERS = {
    10: ("age 4|gender 2|carrier 1", "no uid at its start"),
    11: ("", "no uid at its start"),
    20: ("uid 1000020|age 4|interest1|carrier 1", "a field without a value"),
    21: ("uid 1000021|age 4|inter", "a field without a value"),
    30: ("uid 1000030|age 4|shoeSize 43|carrier 1", "a field of unknown name"),
    40: ("uid 1000040|age 4|gender 1|age 4|carrier 1", "a field twice"),
    50: ("uid 1000050|age 4 5|carrier 1", "several values of a field that has one"),
    60: ("uid 1000060|age young|carrier 1", "no integer, or one too long, as a value"),
    61: ("uid 1000061|kw1 5  6|carrier 1", "no integer, or one too long, as a value"),
    62: ("uid 1000062|kw1 1234567890|carrier 1", "no integer, or one too long, as a value"),
    63: ("uid one|age 4|carrier 1", "no integer, or one too long, as a value"),
    71: ("uid 3028|age 3|carrier 2", "a uid that an earlier line has"),
    USERS + 13: ("uid 1000900|age 4|kw1 12 3", "no end: the file breaks off there"),
}
BAD_ADS = {
    3: ("1119,1,1,1,1,1,1", "another number of columns"),
    5: ("1566,1,1,1,1,1,none,1", "no integer in a column"),
    9: ("411,1,1,1,1,1,1,1", "an aid that an earlier line has"),
}
BAD_SAMPLES = {
    5: ("411,3070", "another number of columns"),
    6: ("", "another number of columns"),
    7: ("411,3070,1,1", "another number of columns"),
    8: ("411,3070,yes", "no integer in a column"),
    9: ("411,,1", "no integer in a column"),
    10: ("411,3070,0", "a label other than 1 and -1"),
    11: ("31415,3070,1", "an aid that adFeature.csv lacks"),
    12: ("411,271828,1", "a uid that userFeature.data lacks"),
    14: ("70,3000,1", "a pair to which an earlier line gives the other label"),
}


def user_id(user: int) -> int:
    """Out of order, and 3000 or more."""
    return 3000 + user * 7 % USERS


def features(uid: int) -> dict[str, list[int]]:
    """What the raw file says of a user, all fields: 14 that are wanted, and others."""
    wanted = {
        "age": [uid % 6],
        "gender": [1 + uid % 2],
        "education": [uid % 8],
        "consumptionAbility": [uid % 3],
        "LBS": [uid % 50],
        "interest1": [(uid * k) % 40 for k in range(1, uid % 14)],
        "interest2": [uid % 7 + 60] if uid % 3 else [],
        "interest3": [0] if uid % 5 == 0 else [1, 0],
        "kw1": [uid * 31 % 8000 + k for k in range(uid % 6)],
        "kw2": [uid % 11],
        "topic1": [uid % 9, 0, 20 + uid % 5],
        "topic2": [7],
        "carrier": [uid % 4],
        "house": [1] if uid % 5 == 1 else [],
    }
    others = {"marriageStatus": [5, 13], "ct": [0], "os": [1, 2], "interest5": [0, 9], "appIdAction": [uid]}
    last = ("carrier", "house")
    every = {k: v for k, v in wanted.items() if k not in last} | others | {k: wanted[k] for k in last}
    return {name: values for name, values in every.items() if values}


def user_line(uid: int) -> str:
    groups = [f"uid {uid}", *(" ".join([name, *map(str, values)]) for name, values in features(uid).items())]
    return "|".join(groups)


def ad_line(ad: int) -> str:
    return ",".join(map(str, [ad, ad % 3, ad % 5, ad, ad % 2, ad % 4, 0, 11]))


def samples() -> list[tuple[int, int, int]]:
    """(ad, user, label) of train.csv: each ad has another fifth of the users, and a fifth of them are its seeds."""
    pairs = [(ad, user_id(user)) for user in range(USERS) for ad in ADS if (user + ad) % 5 == 0 and ad != UNSEEN]
    return [(ad, uid, 1 if (uid * 3 + ad) % 25 < 5 and ad != ONE_SIDED else -1) for ad, uid in pairs]


def test_samples() -> list[tuple[int, int, int]]:
    """The same of a labelled test file. Every tenth pair is one of train.csv."""
    fresh = [(ad, user_id(user)) for user in range(0, USERS, 3) for ad in ADS if (user + ad) % 5 == 1]
    rows = [(ad, uid, 1 if (uid + ad) % 7 == 0 else -1) for ad, uid in fresh]
    return rows + [row for row in samples()[::10] if row[0] != ONE_SIDED]


def write_raw(folder: Path, *, malformed: bool = False) -> Path:
    """The three raw files; with malformed lines, they end without a line break, userFeature.data within a line."""
    folder.mkdir()
    users = [user_line(user_id(user)) for user in range(USERS)]
    ads = [AD_HEAD, *map(ad_line, ADS)]
    rows = ["aid,uid,label", *(f"{ad},{uid},{label}" for ad, uid, label in samples())]
    for name, lines, bad in (
        ("userFeature.data", users, BAD_USERS),
        ("adFeature.csv", ads, BAD_ADS),
        ("train.csv", rows, BAD_SAMPLES),
    ):
        for number, (text, _) in bad.items() if malformed else ():
            lines.insert(number - 1, text)
        (folder / name).write_text("\n".join(lines) + ("" if malformed else "\n"))
    return folder

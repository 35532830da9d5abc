"""A small history in KuaiRand-Pure's raw format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

USERS, VIDEOS = 60, 16
LOG = (
    "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,is_hate,long_view,"
    "play_time_ms,duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,is_rand,tab"
)
USER = (
    "user_id,user_active_degree,is_lowactive_period,is_live_streamer,is_video_author,follow_user_num,"
    "follow_user_num_range,fans_user_num,fans_user_num_range,friend_user_num,friend_user_num_range,register_days,"
    "register_days_range," + ",".join(f"onehot_feat{i}" for i in range(18))
)
VIDEO = (
    "video_id,author_id,video_type,upload_dt,upload_type,visible_status,video_duration,server_width,server_height,"
    "music_id,music_type,tag"
)
# File, its dates, and which (user, video) pairs it holds.
PERIODS: dict[str, tuple[int, Callable[[int, int], bool]]] = {
    "log_standard_4_08_to_4_21_pure.csv": (20220408, lambda u, v: (u + v) % 3 != 0),
    "log_standard_4_22_to_5_08_pure.csv": (20220422, lambda u, v: (u * v) % 4 == 1),
    "log_random_4_22_to_5_08_pure.csv": (20220430, lambda u, v: (u + 2 * v) % 7 == 0),
}


def long_view(user: int, video: int) -> bool:
    return (user * 3 + video) % 4 != 0


def events() -> list[tuple[str, int, int, int, int]]:
    """(file, user, video, date, time) of every exposure, some pairs twice."""
    found = []
    for number, (name, (first, shown)) in enumerate(PERIODS.items()):
        for u in range(USERS):
            for v in range(VIDEOS):
                if shown(u, v):
                    date = first + (u + v) % 8
                    time = 10**6 * number + 1000 * ((u + v) % 8) + u
                    found += [(name, u, v, date, time)] * (1 + (u == v))
    return found


def write_raw(folder: Path) -> Path:
    folder.mkdir()
    logs: dict[str, list[str]] = {name: [LOG] for name in PERIODS}
    for name, u, v, date, time in events():
        rand = int("random" in name)
        logs[name].append(f"{u},{v},{date},1600,{time},1,0,0,0,0,0,{int(long_view(u, v))},77,9,0,0,0,{rand},1")
    users = [USER]
    for u in range(USERS):
        onehot = ",".join(["" if u % 5 == 0 else f"{u % 3}.0", *(str(i) for i in range(17))])
        users.append(f'{u},full_active,0,-124,1,5,"(0,10]",3,"[1,10)",0,0,900,730+,{onehot}')
    videos = [VIDEO]
    for v in range(VIDEOS):
        tag, duration = ('"3,4"', f"{v * 12}000.0") if v % 2 else ("", "")
        videos.append(f"{v},{v % 5},NORMAL,2022-04-10,LongImport,0.0,{duration},720.0,1280.0,91,9.0,{tag}")
    for name, lines in {**logs, "user_features_pure.csv": users, "video_features_basic_pure.csv": videos}.items():
        (folder / name).write_text("\n".join(lines) + "\n")
    (folder / "LICENSE").write_text("CC BY-SA 4.0")
    return folder

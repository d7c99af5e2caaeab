"""Miniature copies of data sets as they lie on disks: real videos, official list files, known traps."""

import functools
import json
import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch

from flexvideo.data.encode import write_video


@functools.cache
def tiny_video(suffix: str = ".mp4") -> bytes:
    """Four frames of 16 x 16 pixels, encoded once."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"tiny{suffix}"
        write_video(path, torch.arange(4 * 16 * 16 * 3).remainder(256).view(4, 16, 16, 3).to(torch.uint8))
        return path.read_bytes()


def videos(root: Path, names: Iterable[str]) -> Path:
    """Put a video at every path."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(tiny_video(".avi" if name.endswith(".avi") else ".mp4"))
    return root


def text(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def ucf101(root: Path) -> Path:
    lists = root / "ucfTrainTestlist"
    text(lists / "classInd.txt", "1 ApplyEyeMakeup", "2 HandstandPushups")
    for fold in "123":
        text(
            lists / f"trainlist0{fold}.txt",
            f"ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c0{fold}.avi 1",
            # The lists write HandStand here; archives hold either.
            f"HandstandPushups/v_HandStandPushups_g08_c0{fold}.avi 2",
        )
        text(
            lists / f"testlist0{fold}.txt",
            f"ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c0{fold}.avi",
            f"HandstandPushups/v_HandStandPushups_g01_c0{fold}.avi",
        )
    return videos(
        root,
        [
            f"UCF-101/{folder}/v_{name}_g{group}_c0{clip}.avi"
            for folder, name in (
                ("ApplyEyeMakeup", "ApplyEyeMakeup"),
                ("HandStandPushups", "HandstandPushups"),
            )
            for group in ("01", "08")
            for clip in "123"
        ],
    )


HMDB51_ODD = [
    "#20_Rhythm_clap_u_nm_np1_fr_goo_0.avi",
    "Kids!_&_(more)_clap_f_cm_np1_fr_med_1.avi",
    "a;b_clap_h_nm_np1_fr_bad_2.avi",
]


def hmdb51(root: Path) -> Path:
    lists = root / "testTrainMulti_7030_splits"
    plain = ["w1.avi", "w2.avi", "w3.avi"]
    for fold in "123":
        for name, files in (("clap", HMDB51_ODD), ("wave", plain)):
            flags = "120" if fold == "1" else "012" if fold == "2" else "201"
            rows = [f"{file} {flag} " for file, flag in zip(files, flags, strict=True)]
            text(lists / f"{name}_test_split{fold}.txt", *rows)
    return videos(root, [f"clap/{file}" for file in HMDB51_ODD] + [f"wave/wave/{file}" for file in plain])


def kinetics400(root: Path) -> Path:
    """Train in folders of classes with blanks and underscores, val in one folder; one video absent."""
    header = "label,youtube_id,time_start,time_end,split,is_cc"
    text(
        root / "annotations" / "train.csv",
        header,
        "abseiling,-0abc_defgh,417,427,train,0",
        '"massaging person\'s head",__absent____,0,10,train,0',
        "massaging person's head,zzzzzzzzzzz,3,13,train,1",
        "passing American football (in game),bbbbbbbbbbb,5,15,train,0",
    )
    text(
        root / "annotations" / "val.csv",
        header,
        "massaging person's head,vvvvvvvvvvv,1,11,validate,0",
        "abseiling,wwwwwwwwwww,2,12,validate,0",
    )
    text(
        root / "annotations" / "test.csv",
        "youtube_id,time_start,time_end,split",
        "ttttttttttt,7,17,test",
    )
    return videos(
        root,
        [
            "train/abseiling/-0abc_defgh_000417_000427.mp4",
            "train/massaging person's head/zzzzzzzzzzz_000003_000013.mp4",
            "train/passing_American_football_(in_game)/bbbbbbbbbbb.mp4.mkv",
            "val/vvvvvvvvvvv_000001_000011.mp4",
            "val/wwwwwwwwwww_000002_000012.mp4",
            "replacement/replacement_for_corrupted_k400/wwwwwwwwwww_000002_000012.mp4",
            "test/ttttttttttt_000007_000017.mp4",
        ],
    )


def coin(root: Path) -> Path:
    def entry(name: str, number: int, subset: str) -> dict[str, object]:
        return {
            **{"duration": 80.1, "class": name, "recipe_type": number, "subset": subset},
            **{"video_url": "https://www.youtube.com/embed/x", "start": 3.0, "end": 60.0},
            "annotation": [{"id": "1", "segment": [3.0, 9.0], "label": "step"}],
        }

    database = {
        "-dashed__id1": entry("MakeTea", 1, "training"),
        "aaaaaaaaaaa": entry("AssembleBed", 0, "training"),
        "bbbbbbbbbbb": entry("AssembleBed", 0, "testing"),
        "gone_______": entry("MakeTea", 1, "testing"),
        "ccccccccccc": entry("MakeTea", 1, "testing"),
    }
    text(root / "COIN.json", json.dumps({"database": database}))
    files = ["1/-dashed__id1.mp4", "0/aaaaaaaaaaa.mp4", "0/bbbbbbbbbbb.mp4", "1/ccccccccccc.mp4.mkv"]
    return videos(root, [f"videos/{file}" for file in files])


def breakfast(root: Path) -> Path:
    return videos(
        root / "BreakfastII_15fps_qvga_sync",
        [
            "P03/cam01/P03_cereals.avi",
            "P16/webcam01/P16_tea.avi",
            "P27/stereo/P27_milk_ch0.avi",
            "P28/cam01/P28_cereals.avi",
            "P30/webcam02/P30_juice.avi",
            "P47/cam01/P47_scrambledegg.avi",
            "P54/stereo/P54_salat_ch0.avi",
            "P54/stereo/P54_salat_ch1.avi",
        ],
    ).parent


def ssv2(root: Path, *, old_names: bool = False) -> Path:
    begin = "something-something-v2-" if old_names else ""
    labels = {"Pushing something from left to right": "1", "Holding something": "0"}
    rows = {
        "train": [("1", "Pushing [something] from left to right"), ("2", "Holding [something]")],
        "validation": [("3", "Holding [something]")],
    }
    text(root / "labels" / f"{begin}labels.json", json.dumps(labels))
    for split, entries in rows.items():
        content = [{"id": video, "label": "x", "template": name} for video, name in entries]
        text(root / "labels" / f"{begin}{split}.json", json.dumps(content))
    text(root / "labels" / f"{begin}test.json", json.dumps([{"id": "4"}]))
    return videos(root, [f"20bn-something-something-v2/{number}.webm" for number in "1234"])


def diving48(root: Path) -> Path:
    vocabulary = [["Back", "15som", "05Twis", "FREE"], ["Inward", "25som", "NoTwis", "PIKE"]]
    text(root / "Diving48_vocab.json", json.dumps(vocabulary))
    for split, names in (("train", ["-a_00000", "b_00001"]), ("test", ["c_00002"])):
        rows = [
            {"vid_name": name, "label": label, "start_frame": 0, "end_frame": 4}
            for label, name in enumerate(names)
        ]
        text(root / f"Diving48_V2_{split}.json", json.dumps(rows))
    return videos(root, [f"rgb/{name}.mp4" for name in ("-a_00000", "b_00001", "c_00002")])

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import layouts
import pytest

from flexvideo.data import VideoSet, from_folder, open_dataset, read_frames, require_known_classes
from flexvideo.data.datasets import DATASETS, first_split, held_out_split
from flexvideo.data.files import video_files
from flexvideo.data.lists import from_list
from flexvideo.data.motion import MotionSet
from flexvideo.data.records import Problem, Splits
from flexvideo.data.sets_long import BREAKFAST_CLASSES, from_breakfast
from flexvideo.data.ucf import write_ucf101
from flexvideo.errors import ConfigError, DatasetError, DatasetWarning


def ids(videos: VideoSet) -> list[str]:
    return [record.id for record in videos]


def open_few(spec: str, **options: object) -> VideoSet:
    """Open a miniature of a set that is known to be larger, or to lack videos."""
    with pytest.warns(DatasetWarning):
        return open_dataset(spec, **options)


# UCF101


def test_ucf101_finds_what_lists_and_archives_spell_differently(tmp_path: Path) -> None:
    train = open_dataset(f"ucf101:{layouts.ucf101(tmp_path)}", split="train")
    assert train.classes == ("ApplyEyeMakeup", "HandstandPushups")
    assert train.labels == (0, 1)
    assert ids(train) == ["v_ApplyEyeMakeup_g08_c01", "v_HandStandPushups_g08_c01"]
    assert train[1].path == f"{tmp_path}/UCF-101/HandStandPushups/v_HandstandPushups_g08_c01.avi"
    assert all(read_frames(record.path, [0]).shape == (1, 16, 16, 3) for record in train)
    assert train.flip_ok
    assert train.omitted == ()
    assert str(train) == "UCF101 train (fold 1): 2 videos of 2 classes, 1 to 1 a class"


def test_ucf101_labels_test_videos_by_their_folder_as_their_list_has_no_labels(tmp_path: Path) -> None:
    test = open_dataset(f"ucf101:{layouts.ucf101(tmp_path)}", split="test", fold=3)
    assert test.labels == (0, 1)
    assert [Path(record.path).stem[-7:] for record in test] == ["g01_c03", "g01_c03"]


def test_ucf101_opens_by_the_folder_of_videos_and_lists_elsewhere(tmp_path: Path) -> None:
    layouts.ucf101(tmp_path / "data")
    beside = open_dataset(f"ucf101:{tmp_path}/data/UCF-101", split="test")
    shutil.move(tmp_path / "data" / "ucfTrainTestlist", tmp_path / "lists")
    named = open_dataset(f"ucf101:{tmp_path}/data/UCF-101", split="test", annotations=tmp_path / "lists")
    assert named == beside


def test_ucf101_takes_videos_in_another_container(tmp_path: Path) -> None:
    layouts.ucf101(tmp_path)
    for path in video_files(tmp_path):
        os.rename(path, path.replace(".avi", ".mp4"))
    assert len(open_dataset(f"ucf101:{tmp_path}", split="train")) == 2


def test_missing_videos_are_counted_named_and_kept(tmp_path: Path) -> None:
    layouts.ucf101(tmp_path)
    (tmp_path / "UCF-101/ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi").unlink()
    expected = (
        r"UCF101 train: 1 of the 2 videos that .*trainlist01.txt lists are not under .*v_ApplyEyeMakeup_g08"
    )
    with pytest.warns(DatasetWarning, match=expected):
        train = open_dataset(f"ucf101:{tmp_path}", split="train")
    assert train.omitted == (Problem("ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi", "no such file"),)
    assert str(train).endswith("1 video of 2 classes, 0 to 1 a class\n  left out: 1 (no such file)")


def test_a_video_that_is_there_twice_is_told(tmp_path: Path) -> None:
    layouts.ucf101(tmp_path)
    shutil.copytree(tmp_path / "UCF-101", tmp_path / "resized")
    with pytest.warns(
        DatasetWarning, match=r"12 videos can be found twice, such as .*UCF-101/.* and .*resized/"
    ):
        open_dataset(f"ucf101:{tmp_path}", split="train")


def test_ucf101_refuses_labels_that_contradict_the_classes(tmp_path: Path) -> None:
    lists = layouts.ucf101(tmp_path) / "ucfTrainTestlist"
    layouts.text(lists / "trainlist01.txt", "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 102")
    with pytest.raises(
        DatasetError, match=r"trainlist01.txt has '.* 102', which contradicts the 2 classes of"
    ):
        open_dataset(f"ucf101:{tmp_path}", split="train")
    layouts.text(lists / "trainlist01.txt", "Yoga/v_Yoga_g08_c01.avi 1")
    with pytest.raises(DatasetError, match="contradicts the 2 classes"):
        open_dataset(f"ucf101:{tmp_path}", split="train")
    layouts.text(lists / "classInd.txt", "0 ApplyEyeMakeup", "1 HandstandPushups")
    with pytest.raises(DatasetError, match="should number the classes from 1 on"):
        open_dataset(f"ucf101:{tmp_path}", split="train")


def test_ucf101_refuses_classes_without_names(tmp_path: Path) -> None:
    layouts.text(layouts.ucf101(tmp_path) / "ucfTrainTestlist" / "classInd.txt", "1", "2")
    message = r"from 1 on, in order, a number and a name on each line; it begins \[\['1'\], \['2'\]\]\.$"
    with pytest.raises(DatasetError, match=message):
        open_dataset(f"ucf101:{tmp_path}", split="train")


def test_written_motion_opens_as_ucf101(tmp_path: Path) -> None:
    """The rendered sets are written in this layout, to take the path of real data."""
    actions = ("bow", "jump")
    train, test = (MotionSet(split, actions=actions, per_class=1) for split in ("train", "test"))
    write_ucf101(tmp_path / "motion", train=train, test=test, size=16, fps=4.0)
    opened = open_dataset(f"ucf101:{tmp_path}/motion", split="test")
    assert opened.classes == ("Bow", "Jump")
    assert opened.labels == (0, 1)


# HMDB51


@pytest.mark.parametrize(("fold", "train", "test"), [(1, [0], [1]), (2, [1], [2]), (3, [2], [0])])
def test_hmdb51_flags_and_odd_names(tmp_path: Path, fold: int, train: list[int], test: list[int]) -> None:
    spec = f"hmdb51:{layouts.hmdb51(tmp_path)}"
    for split, numbers in (("train", train), ("test", test)):
        videos = open_dataset(spec, split=split, fold=fold)
        assert videos.classes == ("clap", "wave")
        assert [Path(record.path).name for record in videos if record.label == 0] == [
            layouts.HMDB51_ODD[number] for number in numbers
        ]
        assert ids(videos)[-1] == f"wave/w{numbers[0] + 1}"
        assert all(len(read_frames(record.path, [0])) for record in videos)


def test_hmdb51_refuses_other_flags(tmp_path: Path) -> None:
    lists = layouts.hmdb51(tmp_path) / "testTrainMulti_7030_splits"
    layouts.text(lists / "clap_test_split1.txt", "a.avi 3")
    with pytest.raises(
        DatasetError, match=r"'a.avi 3'; each line should end in 1 \(train\), 2 \(test\) or 0"
    ):
        open_dataset(f"hmdb51:{tmp_path}", split="train")


# Kinetics-400


def test_kinetics_finds_every_way_of_naming_and_tells_what_is_missing(tmp_path: Path) -> None:
    layouts.kinetics400(tmp_path)
    with pytest.warns(DatasetWarning, match=r"1 of the 4 videos .*train.csv.*__absent_____000000_000010.mp4"):
        train = open_dataset(f"k400:{tmp_path}", split="train")
    assert train.classes == (
        "abseiling",
        "massaging person's head",
        "passing American football (in game)",
    )
    assert train.labels == (0, 1, 2)
    assert ids(train)[0] == "-0abc_defgh_000417_000427"
    assert [problem.path for problem in train.omitted] == ["__absent_____000000_000010.mp4"]


def test_kinetics_validation_has_the_classes_of_training_and_the_repaired_files(tmp_path: Path) -> None:
    val = open_dataset(f"k400:{layouts.kinetics400(tmp_path)}", split="val")
    assert val.labels == (1, 0)
    assert len(val.classes) == 3
    assert "replacement_for_corrupted_k400" in val[1].path


def test_kinetics_test_without_labels(tmp_path: Path) -> None:
    test = open_dataset(f"k400:{layouts.kinetics400(tmp_path)}", split="test")
    assert test[0].label is None
    assert str(test) == "Kinetics-400 test: 1 video of 3 classes, 1 without label"
    with pytest.raises(
        DatasetError, match="Kinetics-400 test tells no label for 1 of its 1 videos; use a split"
    ):
        _ = test.labels


@pytest.mark.parametrize(("line", "said"), [("a,x,,", "'' and ''"), ("a,x", "None and None")])
def test_kinetics_refuses_lines_without_times(line: str, said: str, tmp_path: Path) -> None:
    layouts.text(tmp_path / "train.csv", "label,youtube_id,time_start,time_end", line)
    with pytest.raises(DatasetError, match=rf"train\.csv, line 2: .* must be seconds, got {said}\.$"):
        open_dataset(f"k400:{tmp_path}", split="train")


def test_kinetics_refuses_other_encodings(tmp_path: Path) -> None:
    lines = "label,youtube_id,time_start,time_end\nbow,x,1,11\ncafé,y,1,11\n"
    (tmp_path / "train.csv").write_bytes(lines.encode("latin-1"))
    with pytest.raises(DatasetError, match=r"train\.csv, line 3, is not in UTF-8: save the list in that enc"):
        open_dataset(f"k400:{tmp_path}", split="train")


def test_kinetics_refuses_other_csv_files_and_other_classes(tmp_path: Path) -> None:
    lists = layouts.kinetics400(tmp_path) / "annotations"
    header = "label,youtube_id,time_start,time_end,split"
    layouts.text(lists / "val.csv", header, "yodelling,vvvvvvvvvvv,1,11,validate")
    with pytest.raises(DatasetError, match="class 'yodelling', outside the 3 classes of the training list"):
        open_dataset(f"k400:{tmp_path}", split="val")
    layouts.text(lists / "val.csv", "a.mp4,0")
    with pytest.raises(DatasetError, match=r"should name youtube_id, time_start, time_end, and is 'a.mp4,0'"):
        open_dataset(f"k400:{tmp_path}", split="val")


# COIN and Breakfast


def test_coin_by_number_of_the_recipe(tmp_path: Path) -> None:
    layouts.coin(tmp_path)
    train = open_dataset(f"coin:{tmp_path}/videos", split="train")
    assert train.classes == ("AssembleBed", "MakeTea")
    assert {record.id: record.label for record in train} == {"-dashed__id1": 1, "aaaaaaaaaaa": 0}
    assert train[0].start is None  # the protocol classifies whole videos
    with pytest.warns(DatasetWarning, match=r"1 of the 3 videos .*COIN.json.* \(1/gone_______.mp4\)"):
        test = open_dataset(f"coin:{tmp_path}", split="test")
    assert ids(test) == ["bbbbbbbbbbb", "ccccccccccc"]
    require_known_classes(train, test)


def test_breakfast_as_videomamba_divides_it(tmp_path: Path) -> None:
    spec = f"breakfast:{layouts.breakfast(tmp_path)}"
    train, test = (open_few(spec, split=split) for split in ("train", "test"))
    assert ids(train) == ["P03-cam01-P03_cereals", "P16-webcam01-P16_tea", "P30-webcam02-P30_juice"]
    assert train.labels == (0, 2, 7)
    assert [problem.reason for problem in train.omitted] == ["skipped by the protocol"] * 2
    assert ids(test) == ["P47-cam01-P47_scrambledegg", "P54-stereo-P54_salat_ch0"]
    assert test.labels == (5, 9)
    assert test.omitted == (Problem("P54/stereo/P54_salat_ch1.avi", "second lens of a stereo camera"),)
    assert [record.view for record in test] == ["cam01", "stereo"]
    assert train.classes == BREAKFAST_CLASSES
    assert train.fold == "videomamba"


@pytest.mark.parametrize(
    ("fold", "tested"), [("s1", {3}), ("s2", {16, 27, 28}), ("s3", {30}), ("s4", {47, 54})]
)
def test_breakfast_official_folds_take_all_people_once(tmp_path: Path, fold: str, tested: set[int]) -> None:
    spec = f"breakfast:{layouts.breakfast(tmp_path)}"
    train, test = (open_few(spec, split=split, fold=fold) for split in ("train", "test"))
    assert {int(name[1:3]) for name in ids(test)} == tested
    assert {int(name[1:3]) for name in ids(train)} == {3, 16, 27, 28, 30, 47, 54} - tested


def test_breakfast_cameras(tmp_path: Path) -> None:
    root = layouts.breakfast(tmp_path)
    with pytest.warns(DatasetWarning):
        videos = from_breakfast(root, split="train", cameras=["webcam01"])
    assert ids(videos) == ["P16-webcam01-P16_tea"]
    with pytest.raises(
        ConfigError, match="no camera 'cam03'; known: cam01, cam02, webcam01, webcam02, stereo"
    ):
        from_breakfast(root, split="train", cameras=["cam03"])


def test_breakfast_tells_that_videos_are_missing_and_with_lists_which(tmp_path: Path) -> None:
    root = layouts.breakfast(tmp_path / "data")
    with pytest.warns(DatasetWarning, match="7 of the 1,712 videos of Breakfast are under"):
        open_dataset(f"breakfast:{root}", split="test")
    header = "file_name,duration,action,class_id"
    lists = tmp_path / "lists"
    layouts.text(
        lists / "train.csv", header, "P03-cam01-P03_cereals,56,cereals,0", "P28-cam01-P28_cereals,9,cereals,0"
    )
    layouts.text(
        lists / "test.csv", header, "P54-stereo-P54_salat_ch0,84,salat,9", "P47-cam02-P47_tea,33,tea,2"
    )
    with pytest.warns(DatasetWarning, match=r"1 of the 2 videos that .*lists lists are not under"):
        test = open_dataset(f"breakfast:{root}", split="test", annotations=lists)
    assert test.omitted == (Problem("P47/cam02/P47_tea.avi", "no such file"),)
    fold_4 = open_dataset(f"breakfast:{root}", split="train", fold="s4", annotations=lists)
    assert ids(fold_4) == ["P03-cam01-P03_cereals", "P28-cam01-P28_cereals"]


# Something-Something V2 and Diving-48


@pytest.mark.parametrize("old_names", [False, True])
def test_ssv2_must_not_be_mirrored(tmp_path: Path, old_names: bool) -> None:
    spec = f"ssv2:{layouts.ssv2(tmp_path, old_names=old_names)}"
    train, val = (open_dataset(spec, split=split) for split in ("train", "val"))
    assert not train.flip_ok
    assert train.classes == ("Holding something", "Pushing something from left to right")
    assert train.labels == (1, 0)
    assert val.labels == (0,)
    assert open_dataset(spec, split="test")[0].label is None


def test_ssv2_test_with_its_answers(tmp_path: Path) -> None:
    layouts.ssv2(tmp_path)
    layouts.text(tmp_path / "labels" / "test-answers.csv", "4;Pushing something from left to right")
    assert open_dataset(f"ssv2:{tmp_path}", split="test").labels == (1,)


def test_ssv2_refuses_a_label_outside_the_classes(tmp_path: Path) -> None:
    layouts.ssv2(tmp_path)
    rows = [{"id": "3", "template": "Eating [something]"}]
    layouts.text(tmp_path / "labels" / "validation.json", json.dumps(rows))
    with pytest.raises(
        DatasetError, match=r"3 is 'Eating \[something\]', outside the 2 classes of .*labels.json"
    ):
        open_dataset(f"ssv2:{tmp_path}", split="val")
    layouts.text(tmp_path / "labels" / "validation.json", "<html>Sign in</html>")
    with pytest.raises(DatasetError, match=r"validation.json is no JSON file .*: download it again"):
        open_dataset(f"ssv2:{tmp_path}", split="val")


def test_diving48(tmp_path: Path) -> None:
    train, test = (
        open_dataset(f"diving48:{layouts.diving48(tmp_path)}", split=split) for split in ("train", "test")
    )
    assert train.classes == ("Back 15som 05Twis FREE", "Inward 25som NoTwis PIKE")
    assert ids(train) == ["-a_00000", "b_00001"]
    assert train.labels == (0, 1)
    assert test.labels == (0,)


def test_a_label_outside_the_classes_is_refused(tmp_path: Path) -> None:
    layouts.diving48(tmp_path)
    layouts.text(tmp_path / "Diving48_V2_test.json", json.dumps([{"vid_name": "c_00002", "label": 48}]))
    with pytest.raises(
        DatasetError,
        match=r"Diving-48 test: c_00002 has label 48, outside its 2 classes, which are .* 0 to 1",
    ):
        open_dataset(f"diving48:{tmp_path}", split="test")


@pytest.mark.parametrize(
    ("kind", "file", "content", "says"),
    [
        ("coin", "COIN.json", {"data": 1}, "{'data': 1}, in which 'database' should be an object"),
        (
            "coin",
            "COIN.json",
            {"database": {"aaaaaaaaaaa": {"class": "MakeTea", "subset": "training"}}},
            "{'class': 'MakeTea', 'subset': 'training'}, in which 'recipe_type' should be a whole number",
        ),
        ("coin", "COIN.json", [1], "should hold an object, and is [1]"),
        ("ssv2", "train.json", [{"video": 1}], "{'video': 1}, in which 'id' should be text"),
        ("ssv2", "train.json", [{"id": 1}], "{'id': 1}, in which 'id' should be text"),
        ("ssv2", "train.json", [{"id": "1"}], "{'id': '1'}, in which 'template' should be text"),
        ("ssv2", "labels.json", {"Holding": "a"}, "should number the classes, and is {'Holding': 'a'}"),
        ("diving48", "Diving48_V2_train.json", [{"vid_name": "a"}], "in which 'label' should be a whole num"),
        ("diving48", "Diving48_V2_train.json", ["a"], "has 'a', in which 'vid_name' should be text"),
        ("diving48", "Diving48_vocab.json", {}, "should hold a list, and is {}"),
    ],
)
def test_lists_that_are_not_as_published(
    kind: str, file: str, content: object, says: str, tmp_path: Path
) -> None:
    lists = tmp_path / "lists"
    layouts.text(lists / "labels.json", "{}")
    layouts.text(lists / "Diving48_V2_train.json", "[]")
    layouts.text(lists / "Diving48_vocab.json", "[]")
    layouts.text(lists / "train.json", "[]")
    path = layouts.text(lists / file, json.dumps(content))
    with pytest.raises(DatasetError, match=rf"^{path} .*{re.escape(says)}.*: download it again\.$"):
        open_dataset(f"{kind}:{tmp_path}", split="train", annotations=lists)


# Folders and lists


def test_folders_of_classes(tmp_path: Path) -> None:
    layouts.videos(
        tmp_path, ["run/b.mp4", "jump/deep/a b.mkv", "jump/._a.mp4", "jump/notes.txt", ".git/x.mp4"]
    )
    everything = open_dataset(f"folder:{tmp_path}")
    assert [(record.id, record.label) for record in everything] == [
        ("jump/deep/a b.mkv", 0),
        ("run/b.mp4", 1),
    ]
    assert everything.classes == ("jump", "run")


def test_folders_of_splits_share_the_classes_of_training(tmp_path: Path) -> None:
    layouts.videos(tmp_path, ["train/jump/1.mp4", "train/run/2.mp4", "val/run/3.mp4"])
    assert open_dataset(f"folder:{tmp_path}", split="val").labels == (1,)
    with pytest.raises(DatasetError, match=r"holds splits \(train, val\), not classes: name the split"):
        from_folder(tmp_path)
    with pytest.raises(DatasetError, match=r" has no split 'test'; it has: train, val\.$"):
        from_folder(tmp_path, split="test")


def test_classes_that_training_lacks_come_last_with_a_warning(tmp_path: Path) -> None:
    layouts.videos(tmp_path, ["train/jump/1.mp4", "train/run/2.mp4", "val/run/3.mp4", "val/hop/4.mp4"])
    told = r"/val has classes that .*/train lacks, so .* learnt there: hop\. Before measuring .* out\.$"
    with pytest.warns(DatasetWarning, match=told):
        val = from_folder(tmp_path, split="val")
    assert val.classes == ("jump", "run", "hop")
    assert [(record.id, record.label) for record in val] == [("run/3.mp4", 1), ("hop/4.mp4", 2)]
    with pytest.raises(
        DatasetError, match=r"Class 'hop' of .* val is none of the 2 classes of .* train: add"
    ):
        require_known_classes(from_folder(tmp_path, split="train"), val)


def test_folders_without_videos(tmp_path: Path) -> None:
    (tmp_path / "jump").mkdir()
    with pytest.raises(DatasetError, match="has 1 folders, and no video in any of them"):
        open_dataset(f"folder:{tmp_path}")
    expected = r"has no split 'train': it holds jump\. If these are its classes, .* \(--split none\)\.$"
    with pytest.raises(DatasetError, match=expected):
        open_dataset(f"folder:{tmp_path}", split="train")
    with pytest.raises(DatasetError, match="train does not exist; a folder of the data set was expected"):
        open_dataset(f"folder:{tmp_path}/jump", split="train")
    with pytest.raises(ConfigError, match="`folder` takes no `annotations`"):
        open_dataset(f"folder:{tmp_path}", annotations=tmp_path)


def test_linked_folders_are_followed_once(tmp_path: Path) -> None:
    layouts.videos(tmp_path / "disk", ["run/b.mp4"])
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "run").symlink_to(tmp_path / "disk" / "run")
    (tmp_path / "disk" / "run" / "loop").symlink_to(tmp_path / "disk" / "run")
    assert ids(open_dataset(f"folder:{tmp_path}/data")) == ["run/b.mp4"]


def test_a_folder_of_lists(tmp_path: Path) -> None:
    layouts.videos(tmp_path, ["a.mp4", "b.mp4", "c.mp4"])
    layouts.text(tmp_path / "lists" / "train.csv", "a.mp4,run", "b.mp4,jump")
    layouts.text(tmp_path / "lists" / "val.csv", "c.mp4,run")
    val = open_dataset(f"list:{tmp_path}", split="val", annotations=tmp_path / "lists")
    assert (val.name, val.split, val.classes, val.labels) == ("lists", "val", ("jump", "run"), (1,))
    with pytest.raises(DatasetError, match=r"has no list test.csv .*It has train.csv, val.csv: name one"):
        open_dataset(f"list:{tmp_path}", split="test", annotations=tmp_path / "lists")
    layouts.text(tmp_path / "lists" / "val.csv", "c.mp4,hop")
    with pytest.warns(
        DatasetWarning, match=r"val\.csv has classes that .*train\.csv lacks, .*: hop\. Before"
    ):
        val = open_dataset(f"list:{tmp_path}", split="val", annotations=tmp_path / "lists")
    assert (val.classes, val.labels) == (("jump", "run", "hop"), (2,))
    with pytest.raises(DatasetError, match=r"lists is a folder\. It has train.csv, val.csv: name one"):
        open_dataset(f"list:{tmp_path}/lists")
    with pytest.raises(
        DatasetError, match=r"has no list val.csv \(nor .txt, .tsv, .list\)\. It has no lists"
    ):
        open_dataset(f"list:{tmp_path}", split="val")


@pytest.mark.parametrize(("train", "learnt"), [("0", ("0",)), ("jump", ("jump",))])
def test_a_number_that_training_lacks_in_lists(tmp_path: Path, train: str, learnt: tuple[str, ...]) -> None:
    layouts.videos(tmp_path, ["a.mp4", "b.mp4"])
    layouts.text(tmp_path / "train.csv", f"a.mp4 {train}")
    layouts.text(tmp_path / "test.csv", "a.mp4 0")
    assert open_dataset(f"list:{tmp_path}", split="test").classes == learnt
    layouts.text(tmp_path / "test.csv", "b.mp4 2")
    with pytest.warns(DatasetWarning, match=r"test\.csv has classes that .* there: 1, 2\. Before"):
        test = open_dataset(f"list:{tmp_path}", split="test")
    assert (test.classes, test.labels) == ((*learnt, "1", "2"), (2,))


def test_paths_do_not_depend_on_the_folder_of_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layouts.ucf101(tmp_path)
    monkeypatch.chdir(tmp_path / "UCF-101")
    relative = open_dataset("ucf101:.", split="test")
    assert relative == open_dataset(f"ucf101:{tmp_path}/UCF-101", split="test")
    assert ids(open_dataset("folder:."))[0] == "ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi"


def test_one_list_has_no_splits(tmp_path: Path) -> None:
    layouts.videos(tmp_path, ["a.mp4"])
    path = layouts.text(tmp_path / "mine.txt", "a.mp4 0")
    assert len(open_dataset(f"list:{path}")) == 1
    with pytest.raises(ConfigError, match=r"mine.txt is one list, so it has no split 'train'.*--split none"):
        open_dataset(f"list:{path}", split="train")
    for split in (None, "train"):
        with pytest.raises(DatasetError, match=r"^The list .*/your\.txt does not exist\.$"):
            open_dataset(f"list:{tmp_path}/your.txt", split=split)


def test_the_split_that_is_learnt_from(tmp_path: Path) -> None:
    assert [first_split(f"{kind}:/nowhere") for kind in DATASETS] == ["train"] * 7 + [None, None]
    layouts.videos(tmp_path, ["f/val/run/1.mp4", "f/training/run/2.mp4", "g/train/1.mp4", "g/bus/2.mp4"])
    layouts.text(tmp_path / "l" / "test.csv", "a.mp4 0")
    layouts.text(tmp_path / "l" / "train.csv", "a.mp4 0")
    assert first_split(f"folder:{tmp_path}/f") == "training"
    assert first_split(f"folder:{tmp_path}/g") is None, "a class may be called train"
    assert first_split(f"folder:{tmp_path}/f/val") is None
    assert first_split(f"list:{tmp_path}/l") == "train"
    assert first_split(f"list:{tmp_path}", annotations=tmp_path / "l") == "train"
    assert first_split(f"list:{tmp_path}/l/test.csv") is None
    with pytest.raises(ConfigError, match="'ucf:x' names no data set"):
        first_split("ucf:x")


def test_the_split_that_a_training_is_measured_on(tmp_path: Path) -> None:
    found = [held_out_split(f"{kind}:/nowhere") for kind in DATASETS]
    assert found == ["val", "test", "test", "test", "test", "val", "test", None, None]
    layouts.videos(tmp_path, ["f/train/run/1.mp4", "f/test/run/2.mp4", "f/Valid/run/3.mp4", "g/run/1.mp4"])
    for name in ("train.csv", "test.txt", "val.txt"):
        layouts.text(tmp_path / "l" / name, "a.mp4 0")
    assert held_out_split(f"folder:{tmp_path}/f") == "Valid"
    assert held_out_split(f"folder:{tmp_path}/g") is None
    assert held_out_split(f"list:{tmp_path}/l") == "val"
    assert held_out_split(f"list:{tmp_path}", annotations=tmp_path / "l") == "val"
    assert held_out_split(f"list:{tmp_path}/l/train.csv") is None


# All of them

OFFICIAL = [kind for kind, dataset in DATASETS.items() if dataset.splits.names]


@pytest.mark.parametrize("spec", ["/data/ucf101", "ucf:/data", "ucf101:", "ucf101"])
def test_a_spec_that_names_no_data_set(spec: str) -> None:
    with pytest.raises(ConfigError, match=r"names no data set: .*Kinds: k400, ucf101, .*folder, list"):
        open_dataset(spec, split="train")


@pytest.mark.parametrize("kind", OFFICIAL)
def test_unknown_splits_folds_and_roots(kind: str, tmp_path: Path) -> None:
    splits: Splits = DATASETS[kind].splits
    with pytest.raises(ConfigError, match=f"Name a split of {splits.title}: {', '.join(splits.names)}"):
        open_dataset(f"{kind}:{tmp_path}")
    with pytest.raises(ConfigError, match=f"no split 'dev'; it has: {', '.join(splits.names)}"):
        open_dataset(f"{kind}:{tmp_path}", split="dev")
    with pytest.raises(
        ConfigError, match="has no fold" if splits.folds else "has no folds; leave `fold` out"
    ):
        open_dataset(f"{kind}:{tmp_path}", split="train", fold=9)
    with pytest.raises(DatasetError, match="nowhere does not exist; a folder of the data set was expected"):
        open_dataset(f"{kind}:{tmp_path}/nowhere", split="train")


@pytest.mark.parametrize(
    ("kind", "lists"),
    [
        ("k400", "train.csv or kinetics"),
        ("ucf101", "classInd.txt"),
        ("hmdb51", r"\*_test_split1.txt"),
        ("coin", "COIN.json"),
        ("ssv2", "labels.json or something-something-v2-labels.json"),
        ("diving48", "Diving48_V2_train.json"),
    ],
)
def test_missing_lists(kind: str, lists: str, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    expected = f" needs {lists}.*, which is not in {tmp_path}/data, .*(Download|Take).* as `annotations`"
    with pytest.raises(DatasetError, match=expected):
        open_dataset(f"{kind}:{tmp_path}/data", split="train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match=f"which is not in {tmp_path}/empty. "):
        open_dataset(f"{kind}:{tmp_path}/data", split="train", annotations=tmp_path / "empty")


@pytest.mark.parametrize("kind", OFFICIAL)
def test_no_video_at_all(kind: str, tmp_path: Path) -> None:
    build = {"k400": layouts.kinetics400}.get(kind) or getattr(layouts, kind)
    build(tmp_path)
    for path in video_files(tmp_path):
        os.unlink(path)
    expected = r"not one of the \d videos .* found 0 videos, none"
    if kind == "breakfast":  # has no list
        expected = r"of 0 videos under .* none is called such as P03/cam01/P03_cereals\.avi\. Name the folder"
    with pytest.raises(DatasetError, match=expected):
        open_dataset(f"{kind}:{tmp_path}", split="train")


@pytest.mark.parametrize("kind", OFFICIAL)
def test_every_split_opens_and_its_videos_decode(kind: str, tmp_path: Path) -> None:
    build = {"k400": layouts.kinetics400}.get(kind) or getattr(layouts, kind)
    build(tmp_path)
    for split in DATASETS[kind].splits.names:
        few = kind == "breakfast" or (kind, split) in {("k400", "train"), ("coin", "test")}
        opened = (open_few if few else open_dataset)(f"{kind}:{tmp_path}", split=split)
        assert opened.split == split
        assert len(set(ids(opened))) == len(opened) > 0
        assert all(read_frames(record.path, [0, 3]).shape == (2, 16, 16, 3) for record in opened)


@pytest.mark.slow
def test_opening_data_sets_imports_no_decoder() -> None:
    code = "import flexvideo.data, sys; sys.exit('av' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_class_without_a_video_is_told_of(tmp_path: Path) -> None:
    for name in ("bow", "jump", "run"):
        (tmp_path / name).mkdir()
    (tmp_path / "jump" / "1.mp4").touch()
    says = r"has folders without a video, which count as classes all the same: bow, run\.$"
    with pytest.warns(DatasetWarning, match=says):
        assert from_folder(tmp_path).classes == ("bow", "jump", "run")


@pytest.mark.parametrize("content", [bytes(range(256)), "a/1.mp4,é\n".encode("utf-16")])
def test_what_is_no_text_is_no_list(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_bytes(content)
    with pytest.raises(DatasetError, match=r"list\.csv is no text in UTF-8, as a list should be\.$"):
        from_list(tmp_path / "list.csv")


def test_lists_in_another_encoding_or_of_long_lines_are_told_in_short(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_bytes("été.mp4,0\n".encode("latin-1"))
    with pytest.raises(
        DatasetError, match=r"list\.csv is not in UTF-8, in which names of files are: save it so"
    ):
        from_list(tmp_path / "list.csv")
    (tmp_path / "list.csv").write_text("1 2 3 " * 5000)
    with pytest.raises(DatasetError, match=r"[ 123]\.\.\., found 0 videos") as caught:
        from_list(tmp_path / "list.csv")
    assert len(str(caught.value)) < 300 + 4 * len(str(tmp_path)) + 200

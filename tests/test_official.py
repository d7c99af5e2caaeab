"""The table of published files: every name of the official model zoo, and what is known of them."""

from collections import Counter

from flexvideo.official import KNOWN_DEFECTS, list_pretrained, pretrained


def test_the_table_has_the_files_of_the_model_zoo():
    files = list_pretrained()
    assert Counter(file.kind for file in files) == {
        "video": 36,
        "masked fine-tuning": 12,
        "masked pretraining": 2,
        "image": 10,
        "multimodal": 3,
    }
    assert len({file.name for file in files}) == len({file.filename for file in files}) == len(files)
    assert {file.repo_id for file in files} == {"OpenGVLab/VideoMamba"}


def test_entries_say_what_a_file_holds():
    file = pretrained("m16_k400_f64_res224to384")
    assert file is not None
    assert (file.filename, file.variant, file.frames, file.size, file.classes) == (
        "videomamba_m16_k400_f64_res224to384.pth",
        "middle",
        64,
        384,
        400,
    )
    image = pretrained("videomamba_t16_in1k_res224to448to576.pth")
    assert image is not None
    assert (image.kind, image.frames, image.size, image.classes) == ("image", None, 576, 1000)
    start = pretrained("m16_k400_mask_pt_f8_res224")
    assert start is not None
    assert (start.kind, start.frames, start.classes) == ("masked pretraining", 8, 0)


def test_the_mislabelled_breakfast_file_is_listed_with_what_it_holds():
    file = pretrained("m16_breakfast_mask_ft_f64_res224")
    assert file is not None
    assert file.frames == 32
    assert "32 frames, not 64" in file.defect
    assert pretrained("m16_breakfast_f64_res224").frames == 64


def test_files_that_the_official_table_does_not_link_are_listed_with_what_it_links():
    file = pretrained("m16_k400_mask_ft_f16_res224")
    assert file is not None
    assert file.defect == "", "the file itself is right"
    assert file.linked == "the ImageNet-initialised file (upstream issue 70)"
    assert [file.name for file in list_pretrained() if file.linked] == [
        "m16_k400_mask_ft_f16_res224",
        "m16_ssv2_mask_ft_f16_res224",
        "t16_in1k_res224to448",
    ]


def test_names_with_and_without_what_all_of_them_share():
    for file in list_pretrained():
        for name in (file.name, file.filename, file.filename.removesuffix(".pth")):
            assert pretrained(name) == file


def test_unknown_names():
    assert pretrained("m16_k400_f128_res224") is None


def test_the_table_is_shown_a_file_a_line():
    lines = repr(list_pretrained()).splitlines()
    assert len(lines) == 63
    assert lines[0] == "t16_k400_f8_res224                tiny    8 x 224 x 224, 400 classes, video"
    (mislabelled,) = (line for line in lines if line.startswith("m16_breakfast_mask_ft_f64"))
    assert mislabelled.endswith("masked fine-tuning, " + KNOWN_DEFECTS["m16_breakfast_mask_ft_f64_res224"])

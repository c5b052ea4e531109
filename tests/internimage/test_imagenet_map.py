"""The 22K-to-1K class map, against timm's synset lists."""

from timm.data import ImageNetInfo

from internimage.imagenet import in22k_to_1k


def test_every_mapped_row_has_the_synset_of_its_1k_class_except_850():
    in22k, in1k = ImageNetInfo("imagenet22k").label_names(), ImageNetInfo("imagenet1k").label_names()
    rows = in22k_to_1k()
    assert [i for i, row in enumerate(rows.tolist()) if in22k[row] != in1k[i]] == [850]


def test_class_850_which_22k_lacks_takes_row_11136_as_in_the_original():
    rows = in22k_to_1k()
    assert rows[850] == rows[849] == 11136


def test_the_map_is_an_index_for_heads_and_logits():
    rows = in22k_to_1k()
    assert rows.shape == (1000,) and rows.dtype.is_signed and not rows.dtype.is_floating_point
    assert rows.unique().numel() == 999
    assert rows[:3].tolist() == [359, 368, 460]  # tench, goldfish, great white shark
    rows.zero_()
    assert in22k_to_1k().any(), "callers must not share one tensor"
